"""On a machine with a GPU: the compiled kernels against the references, every case, type and head size.

pytest tests/cuda/test_on_device.py
"""

import pytest
import torch

from longspan.ops import banded_attention
from longspan.testing import has_kernel

from . import cases
from .building import registered_operators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(autouse=True)
def on_the_device():
    """Calls get CUDA tensors; masks, buckets and seeds of a case go along."""
    torch.set_default_device("cuda")
    yield
    torch.set_default_device("cpu")


@pytest.mark.parametrize("operator", registered_operators())
def test_the_extension_is_what_runs(operator):
    assert has_kernel(operator, "CUDA")


@pytest.mark.parametrize("head_size", [1, 7, 32, 40, 64, 80, 96, 128, 130, 256])
@pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [*cases.QUICK, *cases.UNUSUAL])
def test_agrees_with_the_reference(name, dtype, head_size):
    """The reference is what the CPU computes, in float64."""
    with torch.device("cpu"):
        case = (cases.QUICK | cases.UNUSUAL)[name](head_size)
        wanted = cases.Case(case.call, [x.to(dtype).double() for x in case.inputs]).run(torch.float64)
    got = (cases.QUICK | cases.UNUSUAL)[name](head_size).run(dtype)
    cases.compare([x.cpu() for x in got], wanted, dtype)


@pytest.mark.parametrize("name", cases.HASHING)
def test_hashing(name):
    with torch.device("cpu"):
        wanted = cases.buckets_of(**cases.HASHING[name])
    assert torch.equal(cases.buckets_of(**cases.HASHING[name]).cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_runs_are_equal_to_the_bit(dtype):
    case = cases.QUICK["lsh, wrapped, with dropout"](64)
    assert all(torch.equal(a, b) for a, b in zip(case.run(dtype), case.run(dtype), strict=True))


LONG = 4096  # tokens: a grid that fills the GPU, many tiles for each block


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        lambda: cases.banded(LONG, 64, H=8, masked=True, window=(256, 256), **cases.DROPOUT),
        lambda: cases.banded(LONG, 128, H=4, window=[(100, 0), (700, 9), (3, 3), (None, 0)], dilation=[1, 1, 7, 1]),
        lambda: cases.banded(1, 64, H=3, cached=8 * LONG, window=(None, None)),
        lambda: cases.lsh(LONG, 64, buckets=64, chunk_size=64, masked=True, **cases.DROPOUT),
        lambda: cases.span(LONG // 4, 64, spans=[30.5, 200.0, 0.0, 512.0], max_span=512, cached=LONG // 8),
    ],
    ids=["band", "bands by head", "decoding", "lsh", "spans"],
)
def test_documents(case, dtype):
    """At sizes where blocks run side by side: right, and equal to the bit every time."""
    with torch.device("cpu"):
        small = case()
        wanted = cases.Case(small.call, [x.to(dtype).double() for x in small.inputs]).run(torch.float64)
    first, *others = (case().run(dtype) for _ in range(4))
    cases.compare([x.cpu() for x in first], wanted, dtype)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def forward_backward(inputs, seed):
    out = banded_attention(*inputs, window=(40, 30), dropout_p=0.2, dropout_seed=seed)
    return [out, *torch.autograd.grad(out, inputs, torch.ones_like(out))]


def drawn(seed, device=None):
    """Three tensors ``[B, H, T, D]``."""
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = (torch.randn(2, 3, 300, 64, generator=generator, device="cpu") for _ in range(3))
    return [x.to(device or torch.get_default_device(), torch.float16).requires_grad_() for x in rows]


def test_cuda_graph():
    """Captured once, replayed with other inputs and another seed: nothing waits for the host, nothing is baked in."""
    inputs, seed = drawn(0), torch.tensor(5)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward_backward(inputs, seed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = forward_backward(inputs, seed)
    with torch.no_grad():
        for old, new in zip(inputs, drawn(1), strict=True):
            old.copy_(new)
        seed.fill_(6)
    graph.replay()
    wanted = forward_backward(drawn(1), torch.tensor(6))
    assert all(torch.equal(a, b) for a, b in zip(results, wanted, strict=True))


def test_other_streams():
    """Kernels run in the current stream: behind what was started there."""
    wanted = forward_backward(drawn(0), torch.tensor(5))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        inputs = drawn(0)
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            inputs = [(2 * x).requires_grad_() for x in inputs]  # late
            inputs = [(x / 2).requires_grad_() for x in inputs]
        got = forward_backward(inputs, torch.tensor(5))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_other_gpus():
    """Tensors say where to run, not the current device."""
    wanted = forward_backward(drawn(0), torch.tensor(5))
    got = forward_backward(drawn(0, "cuda:1"), torch.tensor(5))
    assert all(a.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, wanted, strict=True))


def test_more_than_two_to_the_31_elements():
    """Rows that lie far apart: places in memory are counted in 64 bits."""
    tokens, apart = 2**31 // 2**15 + 500, 2**15  # float16: 4 GiB
    if torch.cuda.get_device_properties(0).total_memory < 2**33:
        pytest.skip("a GPU of 8 GiB or more wanted")
    wide = torch.zeros(1, 1, tokens, apart, dtype=torch.float16)
    wide[..., :64] = torch.randn(1, 1, tokens, 64, dtype=torch.float16)
    far, near = wide[..., :64], wide[..., :64].contiguous()
    out, wanted = (banded_attention(x, x, x, window=(5, 5)) for x in (far, near))
    assert torch.equal(out[:, :, -1000:], wanted[:, :, -1000:])


def test_compiled():
    """By ``torch.compile``: strides and shapes are those that it was told."""
    pytest.importorskip("triton")
    inputs = [x.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_() for x in drawn(0)]

    def function(query, key, value):
        return banded_attention(2 * query, key, value, window=(40, 30)).transpose(1, 2).flatten(2) + 1

    outs = [f(*inputs) for f in (function, torch.compile(function, fullgraph=True))]
    grads = [torch.autograd.grad(out.square().sum(), inputs) for out in outs]
    for got, wanted in zip((outs[1], *grads[1]), (outs[0], *grads[0]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)
