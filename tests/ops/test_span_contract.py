"""What span_attention owes torch and its callers: strides, repeatability, compilation, export, errors."""

import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, span_attention
from longspan.testing import has_kernel

from .span_cases import FORMS, assert_all_close, case, ours

every_form = pytest.mark.parametrize("form", FORMS)


@every_form
def test_any_strides(form):
    inputs, options, grads = case((2, 3, 60, 75, 16, 32, 8, [1.5, 20.0, 32.0]), form=form, masked=True)
    wanted = ours(inputs, grads, options)
    layouts = {
        "tokens before heads": lambda x: x.transpose(-2, -3).contiguous().transpose(-2, -3),
        "strided last dimension": lambda x: x.mT.contiguous().mT,
        "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    }
    for name, change in layouts.items():
        query, key, value, span, position_key = inputs
        changed = [change(x) for x in (query, key, value, position_key)]
        got = ours((*changed[:3], span, changed[3]), (change(grads[0]), grads[1]), options)
        assert_all_close(got, wanted, 1e-6)
        assert got[0].stride() == torch.empty_like(changed[0]).stride(), name


def test_expanded_gradient_and_spans():
    (query, key, value, span, position_key), options, _ = case((2, 2, 20, 20, 8, 12, 4, [3.0, 6.0]))
    query.requires_grad_()

    def gradient(weight, span):
        return torch.autograd.grad(
            (span_attention(query, key, value, position_key, span, **options) * weight).sum(), query
        )

    wanted = gradient(torch.ones_like(query), span)
    assert_close(gradient(torch.ones(()), span), wanted)  # strides 0
    assert_close(gradient(torch.ones(()), span[None, :, None].expand(2, 2, 20)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_second_run_and_any_thread_count_are_bit_equal(dtype, dropout_p):
    inputs, options, grads = case((2, 3, 500, 1500, 32, 1200, 32, [18.0, 300.0, 1100.0]), dtype, "zero-cache")
    options |= dict(dropout_p=dropout_p, dropout_seed=5)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 1, 2, 8) if HAS_EXTENSION else (1, 1):  # the products of the reference are torch's own
            torch.set_num_threads(count)
            found.append(ours(inputs, grads, options))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_second_derivatives_are_refused():
    (query, key, value, span, position_key), options, _ = case((1, 1, 8, 8, 4, 5, 2, [3.0]))
    out = span_attention(query.requires_grad_(), key.requires_grad_(), value, position_key, span, **options)
    (grad,) = torch.autograd.grad(out.square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(grad.sum(), key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dynamic", [False, True], ids=["per-head", "per-query"])
def test_opcheck(dtype, dynamic):
    inputs, options, _ = case((2, 2, 10, 12, 4, 6, 2.0, [1.5, 4.0]), dtype, dynamic=dynamic, masked=True)
    query, key, value, span, position_key = (x.requires_grad_() for x in inputs)
    torch.library.opcheck(
        torch.ops.longspan.span_attention.default,
        (query, key, value, position_key, span, options["key_mask"], torch.tensor(1), 0.5, 0.1, 6, 2.0, True, False),
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    def function(query, key, value, position_key, span):
        out, lse = span_attention(
            query * 2, key, value, position_key, span.clamp(0, 8), max_span=8, ramp=3, zero_cache=True, return_lse=True
        )
        return (out * out).sum() + lse.sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (17, 24):
        (query, key, value, span, position_key), *_ = case((1, 2, T, T + 3, 8, 8, 3, [2.5, 7.0]))
        inputs = [x.requires_grad_() for x in (query, key, value, position_key, span)]
        wanted = torch.autograd.grad(function(*inputs), inputs)
        assert_close(torch.autograd.grad(compiled(*inputs), inputs), wanted)


def test_exports():
    class Module(torch.nn.Module):
        def forward(self, query, key, value, position_key, span):
            return span_attention(query, key, value, position_key, span, max_span=8, ramp=3)

    length = torch.export.Dim("length", min=2, max=4096)
    (query, key, value, span, position_key), *_ = case((1, 2, 17, 17, 8, 8, 3, [2.5, 7.0]))
    shapes = ({2: length},) * 3 + (None, None)
    exported = torch.export.export(Module(), (query, key, value, position_key, span), dynamic_shapes=shapes)
    (query, key, value, *_), *_ = case((1, 2, 40, 40, 8, 8, 3, [2.5, 7.0]))
    longer = (query, key, value, position_key, span)
    assert_close(exported.module()(*longer), Module()(*longer))


def test_autocast_computes_in_its_dtype():
    (query, key, value, span, position_key), options, _ = case((1, 2, 20, 20, 8, 12, 4, [3.0, 6.0]))
    with torch.autocast("cpu", torch.bfloat16):
        out = span_attention(query, key.bfloat16(), value, position_key, span, **options)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), span_attention(query, key, value, position_key, span, **options), atol=5e-2, rtol=0)


def test_shapes_on_meta():
    (query, key, value, span, position_key), options, _ = case((1, 2, 20, 30, 8, 12, 4, [3.0, 6.0]), torch.bfloat16)
    tensors = [x.to("meta") for x in (query, key, value, position_key, span)]
    out, lse = span_attention(*tensors, return_lse=True, **options)
    assert out.shape == (1, 2, 20, 8) and lse.shape == (1, 2, 20) and lse.dtype == torch.float32


def test_the_extension_is_what_ran():
    """Else a green run could be the reference compared with itself."""
    for operator in ("span_attention", "span_attention_backward"):
        assert has_kernel(operator, "CPU") == HAS_EXTENSION


QUERY, KEY, SPAN, TABLE = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 6, 4), torch.zeros(2), torch.zeros(1, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_span=0), "max_span must be at least 1"),
        (dict(max_span=8.0), "max_span must be an integer"),
        (dict(ramp=0), "ramp must be a positive number"),
        (dict(ramp=float("inf")), "ramp must be a positive number"),
        (dict(span=torch.zeros(3)), r"span must be floating point \[2\]"),
        (dict(span=torch.zeros(1, 2, 6)), r"\[1, 2, 5\]"),
        (dict(span=torch.zeros(2, dtype=torch.int64)), "span must be floating point"),
        (dict(span=3.0), "span must be a tensor"),
        (dict(position_key=TABLE[:, :7]), r"position_key must be \[2 or 1, 8, 4\]"),
        (dict(position_key=TABLE.expand(3, 8, 4)), "position_key must be"),
        (dict(position_key=TABLE.double()), "one dtype"),
        (dict(position_key=torch.zeros(1, 9, 4), bidirectional=True), r"8 or 15"),
        (dict(zero_cache=True, bidirectional=True), "zero_cache belongs to the causal form"),
        (dict(key_mask=torch.ones(1, 5, dtype=torch.bool)), r"key_mask must be bool \[1, 6\]"),
        (dict(dropout_p=1.0, dropout_seed=1), r"dropout_p must lie in \[0, 1\)"),
        (dict(dropout_p=0.1), "needs dropout_seed"),
        (dict(query=torch.zeros(2, 5, 4)), "query must be"),
        (dict(query=torch.zeros(1, 3, 5, 4), span=torch.zeros(3)), "3 heads"),
        (dict(query=torch.zeros(1, 2, 7, 4)), "6 keys for 7 queries"),
        (dict(query=QUERY.double()), "one dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    call = dict(query=QUERY, key=KEY, value=KEY, position_key=TABLE, span=SPAN, max_span=8, ramp=2) | arguments
    tensors = [call.pop(name) for name in ("query", "key", "value", "position_key", "span")]
    with pytest.raises(ValueError, match=message):
        span_attention(*tensors, **call)
