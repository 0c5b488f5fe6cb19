"""Dropout by seed and place: the right share, independent draws, the same again whenever it is asked."""

import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, seeded_dropout
from longspan.testing import CPU_ISAS, has_kernel, limited_cpu_isa

SEED = torch.tensor(0x123456789ABCDEF)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keeps_the_wanted_share_scaled(dtype, p):
    x = torch.ones(300, 1001, dtype=dtype)
    out = seeded_dropout(x, SEED, p)
    kept = out != 0
    assert out.dtype == dtype and out.shape == x.shape
    assert kept.double().mean().item() == pytest.approx(1 - p, abs=4e-3)  # sigma is below 1e-3
    assert_close(out[kept], torch.full_like(out[kept], 1 / (1 - p)))


def test_draws_are_independent():
    kept = (seeded_dropout(torch.ones(64, 64, 64), SEED, 0.25) != 0).double()
    centred = kept - 0.75
    for dim in range(3):
        product = (centred.narrow(dim, 0, 63) * centred.narrow(dim, 1, 63)).mean() / (0.25 * 0.75)
        assert abs(product.item()) < 1e-2
    for seed in (0, 1, -1, 2**63 - 1, -(2**63)):
        other = (seeded_dropout(torch.ones(64, 64, 64), seed, 0.25) != 0).double() - 0.75
        assert abs((other * centred).mean().item()) < 2e-3


def test_is_a_function_of_seed_and_place():
    """Not of the rest of the tensor, its shape, its strides, the generator or how often it is asked."""
    x = torch.rand(40, 500) + 1
    out = seeded_dropout(x, SEED, 0.3)
    state = torch.get_rng_state()
    assert torch.equal(seeded_dropout(x, SEED, 0.3), out)
    assert torch.equal(seeded_dropout(x, int(SEED), 0.3), out)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(seeded_dropout(x[:13], SEED, 0.3), out[:13])
    assert torch.equal(seeded_dropout(x.view(2, 20, 5, 100), SEED, 0.3).view(40, 500), out)
    assert torch.equal(seeded_dropout(x.t().contiguous().t(), SEED, 0.3), out)
    assert torch.equal(seeded_dropout(torch.cat([x, x], 1)[:, :500], SEED, 0.3), out)
    assert not torch.equal(seeded_dropout(x, SEED + 1, 0.3), out)
    dropped = seeded_dropout(x, SEED, 0.6) == 0
    assert (dropped | (out != 0)).all(), "what a small p drops, a large one drops too"


@pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_kernel_draws_what_the_reference_draws(dtype):
    from longspan.ops.dropout import _seeded_dropout

    for size in (0, 1, 15, 4096, 4097, 30_011):
        x = torch.randn(size).to(dtype)
        wanted = _seeded_dropout(x, SEED, 0.2)
        for isa in CPU_ISAS:
            with limited_cpu_isa(isa):
                assert torch.equal(seeded_dropout(x, SEED, 0.2) == 0, wanted == 0)
                assert_close(seeded_dropout(x, SEED, 0.2), wanted)
    assert has_kernel("seeded_dropout", "CPU") == HAS_EXTENSION


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_any_thread_count(threads):
    x, before = torch.randn(300_001), torch.get_num_threads()
    wanted = seeded_dropout(x, SEED, 0.2)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(seeded_dropout(x, SEED, 0.2), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0,), (), (3, 0, 4), (1,)], ids=str)
def test_small_shapes(shape):
    assert seeded_dropout(torch.ones(shape), SEED, 0.5).shape == shape


def test_nothing_to_drop_is_the_tensor_itself():
    x = torch.randn(5)
    assert seeded_dropout(x, SEED, 0.0) is x


def test_what_is_dropped_is_zero_whatever_it_was():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan]).repeat(100)
    out = seeded_dropout(x, SEED, 0.5)
    kept = seeded_dropout(torch.ones(300), SEED, 0.5) != 0
    assert (out[~kept] == 0).all() and not torch.isfinite(out[kept]).any()


def test_gradients():
    x = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: seeded_dropout(x, SEED, 0.4), x)
    assert torch.autograd.gradgradcheck(lambda x: seeded_dropout(x, SEED, 0.4), x)
    out = seeded_dropout(x, SEED, 0.4)
    (grad,) = torch.autograd.grad(out.sum(), x)  # an expanded gradient
    assert_close(grad, (out != 0).double() / 0.6)


def test_opcheck_compile_and_export():
    x = torch.randn(6, 10, requires_grad=True)
    torch.library.opcheck(torch.ops.longspan.seeded_dropout.default, (x, torch.tensor(1), 0.1))

    class Module(torch.nn.Module):
        def forward(self, x, seed):
            return seeded_dropout(x * 2, seed, 0.3)

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(Module(), (x, SEED), dynamic_shapes=({0: rows}, None)).module()
    for size in (6, 20):
        longer = torch.randn(size, 10)
        assert torch.equal(compiled(longer, SEED), Module()(longer, SEED))
        assert torch.equal(exported(longer, SEED), Module()(longer, SEED))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3).long(), SEED, 0.1), "floating point"),
        ((torch.ones(3), SEED, 1.0), r"must lie in \[0, 1\), got 1.0"),
        ((torch.ones(3), SEED, -0.1), r"must lie in \[0, 1\)"),
        ((torch.ones(3), torch.ones(1).long(), 0.1), "0-dim int64"),
        ((torch.ones(3), torch.tensor(1.0), 0.1), "0-dim int64"),
        ((torch.ones(3), None, 0.1), "seed"),
        ((torch.ones(3), 2**64, 0.1), "64 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    with pytest.raises(ValueError, match=f"seeded_dropout.*{message}"):
        seeded_dropout(*arguments)
