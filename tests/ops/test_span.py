import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, merge, soft_mask, span_attention, span_reach
from longspan.ops.dropout import keep_mask
from longspan.testing import CPU_ISAS, SPAN_SHAPES, limited_cpu_isa, span_shape_id

from .brute_force import random_inputs
from .span_cases import FORMS, TOLERANCES, assert_all_close, brute_force, case, ours

span_shapes = pytest.mark.parametrize("shape", SPAN_SHAPES, ids=span_shape_id)
needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")
every_form = pytest.mark.parametrize("form", FORMS)


@span_shapes
@every_form
@pytest.mark.parametrize("dynamic", [False, True], ids=["per-head", "per-query"])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES, ids=str)
def test_matches_brute_force(shape, form, dynamic, dtype, tolerance):
    masked = dtype in (torch.float64, torch.bfloat16)
    positions = {torch.float64: "per-head", torch.float16: "none"}.get(dtype, "shared")
    if shape[1] == 0:
        positions = "shared"
    inputs, options, grads = case(shape, dtype, form, dynamic, masked, positions)
    assert_all_close(ours(inputs, grads, options), brute_force(inputs, grads, options), tolerance)


@needs_extension
@span_shapes
@every_form
@pytest.mark.parametrize("isa", CPU_ISAS[:3])
def test_every_instruction_set(shape, form, isa):
    inputs, options, grads = case(shape, torch.float32, form, masked=True)
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        assert_all_close(ours(inputs, grads, options), brute_force(inputs, grads, options), 2e-5)


@span_shapes
@pytest.mark.parametrize("form", ["zero-cache", "both-sides"])
def test_dropout_draws_what_the_definition_draws(shape, form):
    B, H, T, S, *_ = shape
    inputs, options, grads = case(shape, torch.float32, form)
    seed = torch.tensor(0x123456789ABCDEF)
    keep = keep_mask(seed, 0.3, B, list(range(H)), torch.arange(T), torch.arange(S)).double() / 0.7
    got = ours(inputs, grads, options | dict(dropout_p=0.3, dropout_seed=seed))
    assert_all_close(got, brute_force(inputs, grads, options | dict(keep=keep)), 3e-5)


@every_form
@pytest.mark.parametrize("dynamic", [False, True], ids=["per-head", "per-query"])
def test_gradcheck(form, dynamic):
    shape = (2, 2, 9, 12, 3, 8, 3, [2.3, 4.6])  # off the kinks by more than the step
    (query, key, value, span, position_key), options, _ = case(shape, torch.float64, form, masked=True)
    if dynamic:
        span = span[None, :, None] + torch.randint(-2, 3, (2, 2, 9))

    def function(query, key, value, position_key, span):
        out, lse = span_attention(
            query, key, value, position_key, span, return_lse=True, dropout_p=0.2, dropout_seed=3, **options
        )
        return out, lse.exp()  # exp: rows that see nothing have lse -inf

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in (query, key, value, position_key, span)])


def ramp_keys(span, max_span, ramp=4):
    """Distances whose mask depends on the span, for the last of 40 tokens: d out / d span is a sum over them."""
    zeros = torch.zeros(1, 1, 40, 1, dtype=torch.float64)
    found = []
    for distance in range(39):
        value = zeros.clone()
        value[0, 0, 38 - distance] = 1.0
        z = torch.tensor([span], dtype=torch.float64, requires_grad=True)
        out, lse = span_attention(zeros, zeros, value, None, z, max_span=max_span, ramp=ramp, return_lse=True)
        (slope,) = torch.autograd.grad(out[0, 0, -1, 0] * lse[0, 0, -1].detach().exp(), z, retain_graph=True)
        (others,) = torch.autograd.grad(lse[0, 0, -1], z)
        own = slope + out[0, 0, -1, 0].item() * lse[0, 0, -1].exp() * others  # d m(distance) / d span
        if own.item() > 1e-9:
            assert own.item() == pytest.approx(1 / ramp)
            found.append(distance)
    return found


def test_the_ramp_has_both_ends():
    """At whole spans: ramp + 1 keys have a slope, one of them weight 1 and one weight 0."""
    assert ramp_keys(7.0, 30) == [7, 8, 9, 10, 11]
    assert ramp_keys(0.0, 30) == [0, 1, 2, 3, 4]
    assert ramp_keys(7.5, 30) == [8, 9, 10, 11]
    assert ramp_keys(9.0, 10) == [9]
    assert ramp_keys(10.0, 10) == []


def test_the_greatest_span_is_a_plain_window():
    inputs, options, grads = case((1, 2, 50, 90, 16, 24, 8, [24.0, 24.0]))
    wider = options | dict(ramp=0.5)
    assert_all_close(ours(inputs, grads, options), ours(inputs, grads, wider), 1e-6)


@every_form
def test_keys_out_of_reach_are_never_read(form):
    """The cost follows the span: what a head cannot see may hold anything."""
    B, H, T, S = 1, 2, 60, 900
    inputs, options, grads = case((B, H, T, S, 16, 700, 8, [5.0, 250.5]), form=form)
    wanted = ours(inputs, grads, options)
    reach = span_reach(inputs[3], max_span=700, ramp=8).tolist()
    assert reach == [14, 259]
    first = [S - T - (steps - 1 if options.get("bidirectional") else steps) for steps in reach]
    for head in range(H):
        inputs[1][:, head, : first[head]] = torch.nan
        inputs[2][:, head, : first[head]] = torch.nan
    got = ours(inputs, grads, options)
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, rtol=0, atol=0)
    for head in range(H):
        assert (got[3][:, head, : first[head]] == 0).all() and (got[3][:, head, first[head] + 1] != 0).any()
    if form != "both-sides-signed":
        assert (got[6][:, max(reach) :] == 0).all() and (got[6][:, max(reach) - 2] != 0).any()


@pytest.mark.parametrize("zero_cache", [False, True])
@pytest.mark.parametrize("split", [1, 48, 77])
def test_a_block_in_two_with_the_cache_passed_on(zero_cache, split):
    shape = (2, 2, 130, 190, 24, 64, 16, [3.5, 50.0])
    (query, key, value, span, position_key), options, _ = case(shape, masked=not zero_cache)
    options["zero_cache"] = zero_cache
    mask = options.pop("key_mask", None)
    whole = span_attention(query, key, value, position_key, span, key_mask=mask, **options)
    end = key.shape[2] - query.shape[2] + split
    parts = [
        span_attention(q, key[:, :, :stop], value[:, :, :stop], position_key, span,
                       key_mask=mask if mask is None else mask[:, :stop], **options)
        for q, stop in ((query[:, :, :split], end), (query[:, :, split:], key.shape[2]))
    ]  # fmt: skip
    assert_close(torch.cat(parts, 2), whole, atol=2e-6, rtol=1e-5)


def test_left_padding_of_zero_rows_is_a_shorter_history():
    """With a zero cache: rows of zeros in front are what would be there anyway."""
    inputs, options, grads = case((1, 2, 40, 47, 16, 64, 16, [3.5, 60.0]), form="zero-cache")
    query, key, value, span, position_key = inputs
    wanted = ours(inputs, grads, options)
    longer = [torch.nn.functional.pad(x, (0, 0, 23, 0)) for x in (key, value)]
    got = ours((query, *longer, span, position_key), grads, options)
    for index in (3, 4):
        got[index] = got[index][:, :, 23:]
    assert_all_close(got, wanted, 2e-6)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["causal", "both-sides"])
def test_masked_padding_changes_nothing(side, form):
    (query, key, value, span, position_key), options, _ = case((2, 2, 45, 45, 16, 30, 8, [3.5, 20.0]), form=form)
    wanted = span_attention(query, key, value, position_key, span, **options)
    pad = (23, 0) if side == "left" else (0, 23)
    longer = [torch.nn.functional.pad(x, (0, 0, *pad), value=3.0) for x in (query, key, value)]
    mask = torch.nn.functional.pad(torch.ones(2, 45, dtype=torch.bool), pad, value=False)
    out = span_attention(*longer, position_key, span, key_mask=mask, **options)
    assert_close(out[:, :, pad[0] : pad[0] + 45], wanted, atol=2e-6, rtol=1e-5)


def test_a_window_of_nothing_but_zero_cache():
    """The first query of a stream: all its keys are zeros, and its output is too, with an lse that counts them."""
    query, key, value = random_inputs(1, 1, 1, 1, 8, torch.float32)
    options = dict(max_span=16, ramp=4, zero_cache=True, return_lse=True)
    out, lse = span_attention(query, key, value, None, torch.tensor([3.0]), **options)
    assert (out == 0).all()
    assert lse.item() == pytest.approx(torch.tensor(4 + 0.75 + 0.5 + 0.25).log().item())
    position_key = torch.randn(1, 16, 8)
    out, lse = span_attention(query, key, value, position_key, torch.tensor([3.0]), **options)
    assert (out == 0).all() and torch.isfinite(lse).all()


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    inputs, options, grads = case((2, 2, 12, 12, 8, 6, 2, [2.0, 4.0]))
    options["key_mask"] = torch.tensor([[True] * 12, [False] * 12])
    out, lse, *rest = ours(inputs, grads, options)
    assert (lse[1] == -torch.inf).all() and (lse[0, :, 0] == -torch.inf).all() and torch.isfinite(lse[0, :, 1:]).all()
    for tensor in (out, *rest[:3]):
        assert torch.isfinite(tensor).all() and (tensor[1] == 0).all() and (tensor[0] != 0).any()
    assert all(torch.isfinite(tensor).all() for tensor in rest)
    options["key_mask"] = torch.zeros(2, 12, dtype=torch.bool)
    assert all((tensor == 0).all() for tensor in ours(inputs, grads, options)[2:])


def test_a_negative_span_closes_the_head():
    inputs, options, grads = case((1, 2, 20, 20, 8, 6, 2, [-2.0, 3.0]))
    out, lse, *rest = ours(inputs, grads, options)
    assert (out[:, 0] == 0).all() and (lse[:, 0] == -torch.inf).all()
    assert all((tensor[:, 0] == 0).all() for tensor in rest[:3]) and rest[3][0] == 0 and rest[3][1] != 0


@pytest.mark.parametrize("form", ["zero-cache", "both-sides"])
def test_large_scores_stay_finite(form):
    """Even behind the end of the ramp, where a key has weight 0 and a slope."""
    inputs, options, grads = case((1, 1, 200, 250, 16, 150, 16, [40.0]), form=form)
    query, key, value, span, position_key = inputs
    inputs = (query * 100, key * 100, value, span, position_key)
    got, wanted = ours(inputs, grads, options), brute_force(inputs, grads, options)
    assert all(torch.isfinite(tensor).all() for tensor in got)
    assert_close(got[0].double(), wanted[0], atol=2e-2, rtol=0)  # scores near 1e5 carry 8e-3 of rounding in float32


def test_persistent_vectors_join_by_merge():
    """The all-attention variant: a second key set, one softmax."""
    (query, key, value, span, position_key), options, _ = case((1, 2, 30, 30, 16, 20, 4, [3.0, 12.5]), torch.float64)
    more_key, more_value = (torch.randn(1, 2, 7, 16, dtype=torch.float64) for _ in range(2))
    window = span_attention(query, key, value, position_key, span, return_lse=True, **options)
    scores = query @ more_key.mT / 4
    out, lse = merge([window[0], scores.softmax(-1) @ more_value], [window[1], scores.logsumexp(-1)])
    total = window[1].exp() + scores.exp().sum(-1)
    by_hand = (window[1].exp()[..., None] * window[0] + scores.exp() @ more_value) / total[..., None]
    assert_close(out, by_hand)
    assert_close(lse, total.log())


def test_batch_order_does_not_matter():
    inputs, options, grads = case((3, 2, 70, 90, 16, 40, 8, [5.5, 30.0]), masked=True)
    query, key, value, span, position_key = inputs
    order = [2, 0, 1]
    wanted = ours(inputs, grads, options)
    options["key_mask"] = options["key_mask"][order]
    turned = (query[order], key[order], value[order], span, position_key)
    got = ours(turned, [grad[order] for grad in grads], options)
    for a, b in zip(got[:5], wanted[:5], strict=True):
        assert torch.equal(a, b[order])
    assert_all_close(got[5:], wanted[5:], 1e-6)


@needs_extension
def test_gradients_summed_in_several_waves():
    """The backward kernel's rows of their own take more than it wants to hold at once: the same sums."""
    heads, tokens = 34, 4000
    inputs, options, grads = case((1, heads, tokens, tokens, 9, tokens, 32, [3900.0] * heads))
    got = ours(inputs, grads, options)
    query, key, value, span, position_key = inputs
    alone = []
    for head in (0, 17, 33):
        at = slice(head, head + 1)
        parts = (query[:, at], key[:, at], value[:, at], span[at], position_key)
        alone.append((at, ours(parts, [grad[:, at] for grad in grads], options)))
    for at, part in alone:
        for index in range(5):
            assert_close(got[index][:, at], part[index], atol=1e-5, rtol=1e-4)
        assert_close(got[5][at], part[5], atol=1e-3, rtol=1e-3)
    # A score is linear in the position key: summed over the queries, q . dq = k . dk + p . dp (no scale, no other way).
    total = (query.double() * got[2]).sum()
    assert_close(total, (key.double() * got[3]).sum() + (position_key.double() * got[6]).sum(), atol=1e-2, rtol=1e-4)


def test_the_soft_mask_is_the_formula():
    span = torch.tensor([2.0, 2.5], requires_grad=True)
    mask = soft_mask(span[:, None], torch.arange(8), ramp=4)
    assert_close(mask[0], torch.tensor([1, 1, 1, 0.75, 0.5, 0.25, 0, 0]))
    assert_close(mask[1], torch.tensor([1, 1, 1, 0.875, 0.625, 0.375, 0.125, 0]))
    assert_close(torch.autograd.grad(mask.sum(), span)[0], torch.tensor([5 / 4, 4 / 4]))
    assert span_reach(span, max_span=100, ramp=4).tolist() == [7, 7]
    assert span_reach(torch.tensor([-9.0, 0.0, 99.0]), max_span=50, ramp=4).tolist() == [0, 5, 50]
