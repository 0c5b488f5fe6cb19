"""Packed rows and cached tokens against dense steps over whole texts, in a stack with everything between tokens."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from longspan.layers.packed_rows import Packing
from longspan.layers.step_past import StepPast
from longspan.layers.step_tokens import StepTokens
from tests.layers.toy_recurrence import WIDTH, ToyStack, core

FROZEN = ["continue", "recompute", "reuse"]


def make_inputs(batch=3, length=11, seed=0, pad: str | None = "right") -> tuple[torch.Tensor, torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, WIDTH, generator=generator, dtype=torch.float64) * 2
    source = torch.randn(batch, 5, WIDTH, generator=generator, dtype=torch.float64)
    mask = torch.ones(batch, length, dtype=torch.bool)
    if pad == "right":
        mask[1, 7:], mask[2, 2:] = False, False
    elif pad == "left":
        mask[1, :4], mask[2, :9] = False, False
    return x, source, mask if pad else None


def make_stack(causal, frozen, seed=1, **options):
    torch.manual_seed(seed)
    return ToyStack(causal, frozen, **options)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("pad", ["right", "left", None])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_steps_equal_dense_ones(causal, pad, everywhere):
    """Output, number of steps and all gradients; and fewer rows are computed."""
    stack = make_stack(causal, "reuse", everywhere=everywhere)
    x, source, mask = make_inputs(pad=pad)
    x.requires_grad_()
    source.requires_grad_()
    source_mask = torch.ones(3, 5, dtype=torch.bool)
    source_mask[1, 3:] = False
    weight = torch.randn_like(x) * (1.0 if mask is None else mask[..., None])
    results = []
    for packed in (False, True):
        output, counts = stack(x, source, mask, packed=packed, source_mask=source_mask)
        variables = [x, source, *stack.parameters()]
        results.append(
            (stack.computed, counts, output * weight, torch.autograd.grad((output * weight).sum(), variables))
        )
    (dense_rows, *dense), (packed_rows, *packed) = results
    assert_close(packed, dense, atol=1e-12, rtol=0)
    real = dense[0].sum().item() if mask is None else dense[0][mask].sum().item()
    assert packed_rows == real < dense_rows
    assert len(set(dense[0].flatten().tolist())) > 3, "tokens halt at different steps"


@pytest.mark.parametrize("split", [[1] * 11, [4, 1, 1, 1, 3, 1], [11], [0, 11]], ids=str)
@pytest.mark.parametrize("pad", ["left", None])
@pytest.mark.parametrize("frozen", [*FROZEN, "reuse, packed"])
def test_pieces_after_a_cache_equal_the_whole(frozen, pad, split):
    """Tokens halt at different steps, so that later ones go deeper than all before, and less deep."""
    frozen, packed = frozen.split(",")[0], "packed" in frozen
    stack = make_stack(True, frozen)
    x, source, mask = make_inputs(pad=pad, seed=7)
    with torch.no_grad():
        whole, counts = stack(x, source, mask)
        past, begin, outputs, depths = StepPast(), 0, [], []
        for size in split:
            if size == 0:
                continue
            piece = slice(begin, begin + size)
            part = None if mask is None else mask[:, piece]
            outputs.append(stack(x[:, piece], source if begin == 0 else None, part, past, packed=packed))
            depths.append(past.depth)
            begin += size
    real = torch.ones(3, 11, dtype=torch.bool) if mask is None else mask
    assert_close(torch.cat([c for _, c in outputs], 1)[real], counts[real])
    assert_close(torch.cat([o for o, _ in outputs], 1)[real], whole[real], atol=1e-12, rtol=0)
    assert len(split) < 11 or depths[0] < depths[-1], "depth grows on the way"


@pytest.mark.parametrize("frozen", FROZEN)
def test_rows_of_a_cache_can_be_reordered_and_repeated(frozen):
    stack = make_stack(True, frozen)
    x, source, mask = make_inputs(pad="left", seed=3)
    order = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        past = StepPast()
        stack(x[:, :6], source, mask[:, :6], past)
        past.select(order)
        rest, _ = stack(x[order, 6:], None, mask[order, 6:], past)
        whole, _ = stack(x, source, mask)
    real = mask[order, 6:]
    assert_close(rest[real], whole[order, 6:][real], atol=1e-12, rtol=0)


def test_a_cache_with_convolutions_cannot_forget():
    stack = make_stack(True, "reuse")
    x, source, _ = make_inputs(pad=None)
    past = StepPast()
    stack(x, source, None, past)
    with pytest.raises(ValueError, match="convolutions"):
        past.crop(4)


def test_the_number_of_steps_must_not_shrink_while_a_cache_is_used():
    stack = make_stack(True, "continue")
    x, source, _ = make_inputs(pad=None)
    past = StepPast()
    stack(x[:, :6], source, None, past)
    stack.max_steps = 2
    with pytest.raises(ValueError, match="number of steps must not change"):
        stack(x[:, 6:], None, None, past)


def test_finished_texts_take_no_part_in_attention():
    """Keys of texts without active tokens are not handed to attention, and padding among queries stays small."""
    running = torch.zeros(4, 100, dtype=torch.bool)
    running[0, :90], running[2, 5:100], running[3, 40] = True, True, True
    packing = Packing.of(running)
    shapes = []

    def core(query, key, value, key_mask, query_column):
        shapes.append((tuple(query.shape[:2]), key.shape[0]))
        assert query_column is not None
        return query + key.gather(1, query_column[..., None].expand_as(query))

    rows = torch.arange(packing.index.numel())[:, None].double()
    key = torch.arange(400.0, dtype=torch.float64).view(4, 100, 1)
    out = packing.attend(core, rows, key, key, None, 0)
    assert shapes == [((2, 95), 2), ((1, 1), 1)]
    assert_close(out, rows + packing.index[:, None])


def test_a_packing_is_kept_while_nothing_halts():
    running = torch.tensor([[True, True, False], [True, True, True]])
    first = Packing.of(running)
    assert Packing.of(running.clone(), first) is first
    assert Packing.of(running & torch.tensor([True, False, True]), first) is not first


def test_batches_in_which_nothing_runs():
    """All padding, or no token at all: one step, which changes nothing."""
    stack = make_stack(False, "reuse")
    x, source, _ = make_inputs(pad=None)
    output, counts = stack(x, source, torch.zeros(3, 11, dtype=torch.bool), packed=True)
    assert counts.sum() == 0 and output.abs().sum() == 0
    assert stack(x[:, :0], source, None, packed=True)[0].shape == (3, 0, WIDTH)


@pytest.mark.parametrize("size", [1, 4])
def test_layers_beside_the_recurrence_have_a_past_of_their_own(size):
    """And what is provided for all calls is shared with them."""
    x, _, mask = make_inputs(pad="left")
    attention = core(causal=True)
    whole = attention(x, x, x, mask, None)
    past, outs = StepPast(), []
    for begin in range(0, 11, size):
        piece = slice(begin, begin + size)
        tokens = StepTokens(mask[:, piece], torch.zeros(1, x[:, piece].shape[1], dtype=torch.long), past=past)
        tokens.provide("shift", lambda begin=begin: x[:, :1] + begin)
        key = tokens.plain().seen("key", x[:, piece])
        outs.append(tokens.plain().attend(attention, x[:, piece], key, key))
        assert torch.equal(tokens.plain().provided("shift"), x[:, :1])
        tokens.begin(0).seen("key", x[:, piece])
        tokens.finish()
    assert_close(torch.cat(outs, 1)[mask], whole[mask])
    order = torch.tensor([2, 1])
    past.select(order)
    tokens = StepTokens(None, torch.zeros(1, 1, dtype=torch.long), past=past)
    assert torch.equal(tokens.plain().seen("key", x[order, :1])[:, :-1], x[order])
    assert torch.equal(tokens.plain().provided("shift"), x[order, :1])


@pytest.mark.parametrize("split", [[1] * 11, [5, 1, 5], [11]], ids=str)
def test_a_window_is_all_that_its_cache_keeps(split):
    """Of keys; the mask follows."""
    x, _, mask = make_inputs(pad="left")
    reach = 3

    def attention(query, key, value, key_mask, query_column):
        column = torch.arange(key.shape[1])
        near = column[None] >= column[-query.shape[1] :, None] - reach
        key_mask = torch.ones(key.shape[:2], dtype=torch.bool) if key_mask is None else key_mask
        visible = near & (column[None] <= column[-query.shape[1] :, None]) & key_mask[:, None]
        return (query @ key.mT).masked_fill(~visible, -1e9).softmax(-1) @ value

    for given in (None, mask):
        whole = attention(x, x, x, given, None)
        past, begin, outs = StepPast(), 0, []
        for size in split:
            piece = slice(begin, begin + size)
            part = None if given is None else given[:, piece]
            tokens = StepTokens(part, torch.zeros(1, size, dtype=torch.long), past=past)
            at = tokens.begin(0)
            key = at.seen("key", x[:, piece], keep=reach)
            outs.append(at.attend(attention, x[:, piece], key, key))
            tokens.finish()
            begin += size
        real = torch.ones_like(mask) if given is None else given
        assert_close(torch.cat(outs, 1)[real], whole[real])
        assert past.slots[0]["key"].shape[1] == reach


def test_fixed_steps_are_the_same_at_every_call():
    past = StepPast()
    for steps in (2, 3):
        tokens = StepTokens(None, torch.zeros(1, 1, dtype=torch.long), past=past)
        for step in range(2):
            tokens.begin(step).seen("key", torch.ones(1, 1, 2))
        if steps == 3:
            with pytest.raises(ValueError, match="number of steps must not change"):
                tokens.begin(2)
        tokens.finish()


def test_a_dense_call_keeps_nothing_of_earlier_steps():
    """What tokens show is held only where a later step or a later call wants it."""
    tokens = StepTokens(None, torch.arange(4)[None])
    at = tokens.begin(0)
    at.seen("key", torch.ones(1, 4, 2))
    assert not at.after and not at.shown


@pytest.mark.parametrize("packed", [False, True])
def test_nothing_is_held_after_a_call(packed):
    """Not even until Python looks for circles: on a GPU that would be memory."""
    tokens = StepTokens(None, torch.arange(4)[None], frozen="reuse", packed=packed)
    shown = torch.ones(2, 4, 3)
    held = weakref.ref(shown)
    gc.disable()
    try:
        at = tokens.begin(0, torch.ones(2, 4, dtype=torch.bool))
        at.seen("key", shown)
        at.leave(shown, shown)
        tokens.plain().seen("key", shown)
        tokens.finish()
        del at, shown
        assert held() is None
    finally:
        gc.enable()
