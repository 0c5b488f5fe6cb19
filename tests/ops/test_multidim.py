"""Multi-dimensional attention against all scores at once in float64, and the two functions beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, multidim_attention, multidim_weights, source2token_pooling
from longspan.ops.multidim import DIRECTIONS, multidim_attention_backward_reference, multidim_attention_reference
from longspan.testing import CPU_ISAS, has_kernel, limited_cpu_isa

from .brute_force_multidim import every_score, visible_pairs

# batch, tokens, features: nothing, one of everything, odd, more features than a tile, longer than a tile of tokens
SHAPES = [
    (1, 0, 3), (0, 4, 3), (1, 1, 1), (2, 2, 1), (3, 5, 7), (1, 13, 16), (13, 6, 17), (70, 3, 5), (2, 26, 70),
    (1, 64, 65), (2, 65, 33), (1, 131, 20),
]  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
directions = pytest.mark.parametrize("direction", list(DIRECTIONS))
NAMES = ("dependent", "head", "value", "bias")


def random_inputs(shape, dtype=torch.float64, spread=2.0):
    B, L, D = shape
    return [(torch.randn(size) * spread).to(dtype).requires_grad_() for size in [(B, L, D)] * 3 + [(D,)]]


def doubles(inputs):
    return [tensor.detach().double().requires_grad_() for tensor in inputs]


def compare(inputs, options, tolerance):
    """Output, lse and all gradients, by the error relative to the largest number."""
    ours, theirs = inputs, doubles(inputs)
    out, lse = multidim_attention(*ours, return_lse=True, **options)
    wanted, wanted_lse, _ = every_score(*theirs, **options)
    assert out.dtype == ours[2].dtype and out.is_contiguous()
    assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    assert_close(lse.double(), wanted_lse, atol=tolerance, rtol=tolerance)
    weight, lse_weight = torch.randn_like(wanted), torch.randn_like(wanted)
    seen = wanted_lse > -torch.inf
    loss = (out.double() * weight).sum() + (lse[seen].double() * lse_weight[seen]).sum()
    wanted_loss = (wanted * weight).sum() + (wanted_lse[seen] * lse_weight[seen]).sum()
    grads, wanted_grads = torch.autograd.grad(loss, ours), torch.autograd.grad(wanted_loss, theirs)
    for got, grad, tensor in zip(grads, wanted_grads, ours, strict=True):
        assert got.dtype == tensor.dtype and got.shape == tensor.shape
        error, size = (x.abs().max() if x.numel() else torch.zeros(()) for x in (got.double() - grad, grad))
        assert error <= 10 * tolerance * size.clamp(min=1.0)


@shapes
@directions
@pytest.mark.parametrize("masked", [False, True], ids=["all-tokens", "key-mask"])
def test_matches_every_score(shape, direction, masked):
    options = {"direction": direction, "key_mask": torch.rand(shape[:2]) > 0.3 if masked else None}
    compare(random_inputs(shape), options, 1e-10)


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 300.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-9)], ids=str)
def test_any_scale_and_size_of_scores(scale, spread, dtype, tolerance):
    """Where factors of exp(x) would leave the range of float32, too; tanh is 1 there, and not NaN."""
    inputs = random_inputs((3, 20, 37), dtype, spread)
    compare(inputs, {"direction": "full", "scale": scale}, tolerance * max(1.0, scale / 5, spread))


@pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")
@pytest.mark.parametrize("isa", CPU_ISAS[:3])
@directions
def test_every_instruction_set(isa, direction):
    assert has_kernel("multidim_attention", "CPU") and has_kernel("multidim_attention_backward", "CPU")
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        for shape in SHAPES:
            for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)):
                key_mask = torch.rand(shape[:2]) > 0.2
                compare(random_inputs(shape, dtype), {"direction": direction, "key_mask": key_mask}, tolerance)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.tuples(st.integers(0, 5), st.integers(0, 70), st.integers(1, 70)),
    st.sampled_from(list(DIRECTIONS)),
    st.floats(0.5, 40.0),
    st.floats(0.0, 1.0),
    st.integers(0, 2**31),
)
def test_any_problem(shape, direction, scale, share, seed):
    torch.manual_seed(seed)
    key_mask = torch.rand(shape[:2]) < share
    options = {"direction": direction, "scale": scale, "key_mask": key_mask}
    compare(random_inputs(shape, torch.float32), options, 2e-5 * max(1.0, scale / 5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_operator_does_what_the_reference_does(dtype):
    """Denominators and every gradient; half precision: no more than twice the error of the reference."""
    shape = (5, 33, 21)
    tensors = [tensor.detach() for tensor in random_inputs(shape, dtype)]
    tensors[3] = tensors[3].to(torch.promote_types(dtype, torch.float32))
    options = (torch.rand(shape[:2]) > 0.2, True, False, True, 5.0)
    grad_out, grad_denominator = torch.randn(shape).to(dtype), torch.randn(shape, dtype=tensors[3].dtype)

    def both(forward, backward, tensors):
        out, denominator = forward(*tensors, *options)
        grads = backward(
            grad_out.to(out.dtype), grad_denominator.to(denominator.dtype), *tensors, out, denominator, *options
        )
        return [out, denominator, *grads]

    operators = (
        torch.ops.longspan.multidim_attention.default, torch.ops.longspan.multidim_attention_backward.default,
    )  # fmt: skip
    references = (multidim_attention_reference, multidim_attention_backward_reference)
    exact = both(*references, [tensor.double() for tensor in tensors])
    for got, wanted, truth in zip(both(*operators, tensors), both(*references, tensors), exact, strict=True):
        assert got.dtype == wanted.dtype and got.stride() == wanted.stride()
        size = truth.abs().max()
        assert (got - truth).abs().max() <= 2 * (wanted - truth).abs().max() + 1e-6 * size


@directions
def test_who_sees_nothing_gets_zero(direction):
    inputs = random_inputs((3, 6, 5))
    key_mask = torch.tensor([[True] * 6, [True, False, False, True, False, False], [False] * 6])
    out, lse = multidim_attention(*inputs, direction=direction, key_mask=key_mask, return_lse=True)
    alone = ~(visible_pairs(6, direction) & key_mask[:, None] & key_mask[:, :, None]).any(2)
    assert alone[2].all() and (out[alone] == 0).all() and (lse[alone] == -torch.inf).all()
    assert (out[~alone] != 0).all() and torch.isfinite(lse[~alone]).all()
    grads = torch.autograd.grad(out.square().sum() + lse[~alone].sum(), inputs)
    for grad in grads[:3]:
        assert torch.isfinite(grad).all() and (grad[~key_mask] == 0).all()


def test_padding_may_hold_anything():
    """NaN and infinity in padding reach neither outputs nor gradients."""
    inputs = random_inputs((2, 9, 4))
    key_mask = torch.rand(2, 9) > 0.4
    spoilt = [torch.where(key_mask[..., None], x, torch.nan).detach().requires_grad_() for x in inputs[:3]]
    results = []
    for tensors in (inputs, [*spoilt, inputs[3]]):
        out = multidim_attention(*tensors, direction="full", key_mask=key_mask)
        results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    for clean, other in zip(*results, strict=True):
        assert torch.equal(clean, other)


def test_not_a_number_stays_one():
    inputs = [tensor.detach().float() for tensor in random_inputs((1, 5, 20))]
    for which in range(4):
        spoilt = [tensor.clone() for tensor in inputs]
        spoilt[which][..., 3] = torch.nan
        out = multidim_attention(*spoilt, direction="full")
        assert out[..., 3].isnan().all() and torch.isfinite(out[..., :3]).all() and torch.isfinite(out[..., 4:]).all()


@directions
def test_padding_on_either_side_changes_nothing(direction):
    inputs = random_inputs((2, 7, 9), torch.float32)
    alone = multidim_attention(*inputs, direction=direction)
    for left, right in ((3, 0), (0, 5), (2, 4)):
        padded = [torch.nn.functional.pad(x, (0, 0, left, right), value=7.0) for x in inputs[:3]]
        key_mask = torch.nn.functional.pad(torch.ones(2, 7, dtype=torch.bool), (left, right))
        out = multidim_attention(*padded, inputs[3], direction=direction, key_mask=key_mask)
        assert_close(out[:, left : left + 7], alone, atol=1e-6, rtol=1e-6)
        assert (out[~key_mask] == 0).all()


def test_backward_is_forward_reversed():
    dependent, head, value, bias = random_inputs((2, 11, 6))
    turned = multidim_attention(*(x.flip(1) for x in (dependent, head, value)), bias, direction="forward").flip(1)
    assert_close(multidim_attention(dependent, head, value, bias, direction="backward"), turned)


def test_sequences_and_features_are_apart():
    inputs = random_inputs((70, 5, 130), torch.float32)
    out = multidim_attention(*inputs, direction="forward")
    one = multidim_attention(*(x[13:14, :, 40:41] for x in inputs[:3]), inputs[3][40:41], direction="forward")
    assert torch.equal(one, out[13:14, :, 40:41])


def test_any_strides():
    dependent, head, value, bias = random_inputs((3, 10, 8), torch.float32)
    wanted = multidim_attention(dependent, head, value, bias, direction="full")
    both = torch.cat([dependent, head], -1)
    strided = [
        *both.chunk(2, -1),
        value.transpose(1, 2).contiguous().transpose(1, 2),
        torch.stack([bias, bias], 1)[:, 1],
    ]
    assert torch.equal(multidim_attention(*strided, direction="full"), wanted)
    (grad,) = torch.autograd.grad(multidim_attention(dependent, head, value, bias, direction="full").sum(), value)
    weight = torch.ones_like(wanted)
    (same,) = torch.autograd.grad(multidim_attention(*strided, direction="full"), value, weight)
    assert torch.equal(grad, same)  # the gradient of a sum is expanded: strides of 0


@pytest.mark.parametrize("shape", [(200, 6, 90), (1, 200, 90)], ids=str)
def test_second_run_and_any_thread_count_are_equal(shape):
    inputs = random_inputs(shape, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 1, 2, 8):
            torch.set_num_threads(threads)
            out = multidim_attention(*inputs, direction="forward")
            results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@directions
def test_gradcheck(direction):
    inputs = random_inputs((2, 5, 3), spread=1.0)
    key_mask = torch.tensor([[True] * 5, [False, True, True, False, True]])

    def function(*inputs):
        out, lse = multidim_attention(*inputs, direction=direction, key_mask=key_mask, return_lse=True, scale=2.0)
        return out, lse.exp()

    assert torch.autograd.gradcheck(function, inputs)


def test_some_gradients_only():
    inputs = random_inputs((2, 5, 3))
    out, lse = multidim_attention(*inputs, direction="full", return_lse=True)
    (alone,) = torch.autograd.grad(lse.sum(), inputs[0], retain_graph=True)
    wanted = every_score(*inputs, direction="full")[1]
    assert_close(alone, torch.autograd.grad(wanted.sum(), inputs[0])[0])
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(torch.autograd.grad(out.sum(), inputs[0], create_graph=True)[0].sum(), inputs[0])


def test_opcheck_compile_and_export():
    inputs, key_mask = random_inputs((2, 7, 5), torch.float32), torch.rand(2, 7) > 0.3
    for mask in (None, key_mask):
        arguments = (*inputs, mask, True, False, False, 5.0)
        torch.library.opcheck(torch.ops.longspan.multidim_attention.default, arguments)

    class Module(torch.nn.Module):
        def forward(self, dependent, head, value, bias, key_mask):
            out = multidim_attention(dependent * 2, head, value, bias, direction="backward", key_mask=key_mask)
            return source2token_pooling(out, value, key_mask=key_mask)

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    length = torch.export.Dim("length", min=2, max=4096)
    dims = ({1: length}, {1: length}, {1: length}, None, {1: length})
    exported = torch.export.export(Module(), (*inputs, key_mask), dynamic_shapes=dims).module()
    for L in (7, 12):
        inputs, key_mask = random_inputs((2, L, 5), torch.float32), torch.rand(2, L) > 0.3
        eager = Module()(*inputs, key_mask)
        grads = torch.autograd.grad(eager.sum(), inputs)
        assert_close(exported(*inputs, key_mask), eager)
        out = compiled(*inputs, key_mask)
        assert_close(out, eager)
        for got, wanted in zip(torch.autograd.grad(out.sum(), inputs), grads, strict=True):
            assert_close(got, wanted)


def test_autocast_and_checkpointing():
    inputs = random_inputs((2, 9, 5), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = multidim_attention(*inputs, direction="full")
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), multidim_attention(*inputs, direction="full"), atol=0.05, rtol=0.05)
    again = torch.utils.checkpoint.checkpoint(
        lambda *tensors: multidim_attention(*tensors, direction="full"), *inputs, use_reentrant=False
    )
    wanted = torch.autograd.grad(multidim_attention(*inputs, direction="full").sum(), inputs)
    for got, grad in zip(torch.autograd.grad(again.sum(), inputs), wanted, strict=True):
        assert torch.equal(got, grad)


@directions
def test_weights_are_those_of_the_attention(direction):
    dependent, head, value, bias = random_inputs((2, 7, 4))
    options = {"direction": direction, "key_mask": torch.rand(2, 7) > 0.3, "scale": 3.0}
    weights = multidim_weights(dependent, head, bias, **options)
    assert_close(weights, every_score(dependent, head, value, bias, **options)[2].detach())
    out = multidim_attention(dependent, head, value, bias, **options)
    assert_close((weights * value[:, None]).sum(2), out)
    assert multidim_weights(dependent[:, :0], head[:, :0], bias, direction=direction).shape == (2, 0, 0, 4)


@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (0, 4, 2), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all-tokens", "key-mask"])
def test_source2token_pooling(shape, masked):
    logits, value = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    key_mask = torch.rand(shape[:2]) > 0.5 if masked else torch.ones(shape[:2], dtype=torch.bool)
    out = source2token_pooling(logits, value, key_mask=key_mask if masked else None)
    assert out.shape == (shape[0], shape[2])
    for b in range(shape[0]):
        kept = key_mask[b]
        wanted = (torch.softmax(logits[b, kept], 0) * value[b, kept]).sum(0)
        assert_close(out[b], wanted)
    if out.numel():
        assert torch.autograd.gradcheck(
            lambda *inputs: source2token_pooling(*inputs, key_mask=key_mask if masked else None), (logits, value)
        )


def test_source2token_pooling_of_padding_is_zero():
    logits, value = (torch.full((2, 3, 4), torch.nan).index_fill(0, torch.tensor(0), 1.0) for _ in range(2))
    logits, value = logits.requires_grad_(), value.requires_grad_()
    key_mask = torch.tensor([[True, True, False], [False, False, False]])
    out = source2token_pooling(logits, value, key_mask=key_mask)
    assert_close(out, torch.tensor([[1.0] * 4, [0.0] * 4]))
    for grad in torch.autograd.grad(out.sum(), (logits, value)):
        assert torch.isfinite(grad).all() and (grad[~key_mask] == 0).all()
    hot = source2token_pooling(torch.tensor([[[1e4], [-1e4]]]), torch.tensor([[[2.0], [3.0]]]))
    assert hot.item() == 2.0
    assert source2token_pooling(value.detach().bfloat16(), value.detach().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "sideways"}, "direction must be one of forward, backward, diagonal_free, full, got 'sideways'"),
        ({"direction": None}, "direction must be one of"),
        ({"direction": ["full"]}, "direction must be one of"),
        ({"scale": 0.0}, r"scale must lie in \(0, 40\], got 0.0"),
        ({"scale": 41}, "scale must lie in"),
        ({"scale": float("nan")}, "scale must lie in"),
        ({"dependent": torch.zeros(4, 3)}, r"dependent must be \[batch, tokens, features\], got \[4, 3\]"),
        ({"dependent": torch.zeros(2, 4, 3).long()}, "dependent must be floating point"),
        ({"head": torch.zeros(2, 5, 3)}, r"head must be torch.float32 \[2, 4, 3\], as dependent, got"),
        ({"value": torch.zeros(2, 4, 3).double()}, "value must be torch.float32"),
        ({"bias": torch.zeros(4)}, r"bias must be floating point \[3\]"),
        ({"bias": torch.zeros(3).long()}, "bias must be floating point"),
        ({"key_mask": torch.ones(2, 4)}, r"key_mask must be bool \[2, 4\]"),
        ({"key_mask": torch.ones(2, 5).bool()}, "key_mask must be bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    rows = {name: torch.zeros(2, 4, 3) for name in NAMES[:3]} | {"bias": torch.zeros(3), "direction": "full"}
    with pytest.raises(ValueError, match=f"multidim_attention: {message}"):
        multidim_attention(**(rows | arguments))


def test_errors_of_pooling_teach():
    with pytest.raises(ValueError, match="source2token_pooling: value must be"):
        source2token_pooling(torch.zeros(2, 4, 3), torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match="source2token_pooling: key_mask must be bool"):
        source2token_pooling(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), key_mask=torch.ones(2, 3).bool())
