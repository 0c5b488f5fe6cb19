"""Computing active tokens alone gives what computing all of them gives: values, gradients, and less work."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from longspan.universal_transformer import (
    UniversalTransformerConfig,
    UniversalTransformerForConditionalGeneration,
    UniversalTransformerModel,
)


def make_pair(seed=0, model_class=UniversalTransformerModel, dtype=torch.float64, **changes):
    """One model twice, packed and dense, whose tokens halt after one to six steps."""
    fields = dict(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_recurrent_steps=6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        activation_dropout_prob=0.0,
        is_encoder_decoder=False,
    )
    torch.manual_seed(seed)
    models = []
    for packed in (True, False):
        config = UniversalTransformerConfig.efficient(**(fields | changes), recurrence_options={"packed": packed})
        models.append(model_class(config).to(dtype).train())
    first, second = models
    for name, parameter in first.named_parameters():
        if "halting.weight" in name:
            torch.nn.init.normal_(parameter, std=0.8)
        elif "halting.bias" in name:
            torch.nn.init.constant_(parameter, -0.7)
        elif "word_embeddings" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    second.load_state_dict(first.state_dict())
    return first, second


def make_inputs(side: str | None = "right", batch=4, length=13) -> tuple[torch.Tensor, Any]:
    ids = torch.randint(1, 30, (batch, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, count in enumerate([length, 9, 4, 1]):
        if side == "right":
            mask[row, count:] = 0
        elif side == "left":
            mask[row, : length - count] = 0
    return ids * mask, None if side is None else mask


def count_rows(model):
    """Rows that the transition of the block computes from now on, one number per call."""
    rows = []
    stack = model.decoder if model.config.is_decoder else model.encoder
    stack.block[0].ffn.register_forward_hook(lambda module, inputs, out: rows.append(inputs[0].shape[:-1].numel()))
    return rows


def gradients(model, outputs):
    loss = outputs.last_hidden_state.square().sum() + outputs.ponder_loss
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])


KINDS = {
    "encoder": {},
    "post-norm": dict(norm_position="post"),
    "decoder": dict(is_decoder=True),
    "sepconv": dict(transition="sepconv"),
    "sepconv decoder": dict(transition="sepconv", is_decoder=True),
    "window": dict(window=3),
    "window decoder": dict(window=3, is_decoder=True),
    "inner, prelude and coda layers": dict(num_inner_layers=2, num_prelude_layers=1, num_coda_layers=1),
    "paper's signals, concatenated": dict(position_signal="paper", step_signal="sinusoid", timing="concat"),
}


@pytest.mark.parametrize("side", ["right", "left", None])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_dense(kind, side):
    packed, dense = make_pair(**KINDS[kind])
    ids, mask = make_inputs(side)
    rows = count_rows(packed)
    outputs = [model(ids, mask, output_hidden_states=True, output_halting=True) for model in (packed, dense)]
    ours, theirs = outputs
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    assert_close(ours.last_hidden_state[real], theirs.last_hidden_state[real], atol=1e-10, rtol=0)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert_close(a[real], b[real], atol=1e-10, rtol=0)
    for name in ("n_updates", "remainders", "ponder_loss", "halting_probabilities"):
        assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-10, rtol=0)
    assert len(ours.n_updates[real].unique()) > 1, "tokens halt at different steps"
    assert sum(rows) == ours.n_updates.sum() and all(a >= b for a, b in pairwise(rows))

    for model in (packed, dense):
        model.zero_grad()
    parts = []
    for model, output in zip((packed, dense), outputs, strict=True):
        masked = output.last_hidden_state * real[..., None]
        parts.append(torch.autograd.grad(masked.square().sum() + output.ponder_loss, list(model.parameters())))
    assert_close(parts[0], parts[1], atol=1e-9, rtol=0)


def test_encoder_and_decoder_with_a_source():
    """Losses of a sequence-to-sequence model: source attention of packed queries, padding in source and target."""
    packed, dense = make_pair(model_class=UniversalTransformerForConditionalGeneration, is_encoder_decoder=True)
    ids, mask = make_inputs("right")
    labels = torch.randint(2, 30, (4, 9), generator=torch.Generator().manual_seed(2))
    labels[1, 5:], labels[3, 1:] = -100, -100
    losses = [model(ids, attention_mask=mask, labels=labels).loss for model in (packed, dense)]
    assert_close(losses[0], losses[1], atol=1e-10, rtol=0)
    ours, theirs = (
        torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, (packed, dense), strict=True)
    )
    assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["encoder", "sepconv decoder"])
def test_steps_can_be_checkpointed(kind):
    """Recomputed steps see what they saw, whatever later steps changed; less is kept for the backward pass."""
    packed, _ = make_pair(**KINDS[kind])
    ids, mask = make_inputs()
    kept = []

    def sizes(model):
        held = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: held.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}) or x, lambda x: x
        ):
            outputs = model(ids, mask)
        kept.append(sum(held.values()))
        return outputs

    plain = gradients(packed, sizes(packed))
    packed.activation_checkpointing_enable()
    assert_close(gradients(packed, sizes(packed)), plain, atol=1e-10, rtol=0)
    assert kept[1] < 0.8 * kept[0]


def test_other_texts_of_a_batch_and_padding_change_nothing():
    packed, _ = make_pair()
    packed.eval()
    ids, mask = make_inputs()
    with torch.no_grad():
        together = packed(ids, mask)
        for row, count in enumerate([13, 9, 4, 1]):
            alone = packed(ids[row : row + 1, :count])
            assert_close(together.last_hidden_state[row, :count], alone.last_hidden_state[0], atol=1e-10, rtol=0)
            assert torch.equal(together.n_updates[row, :count], alone.n_updates[0])


def test_attention_weights_and_compiled_graphs_come_from_dense_steps():
    packed, dense = (model.eval() for model in make_pair())
    ids, mask = make_inputs()
    with torch.no_grad():
        rows = count_rows(packed)
        ours, theirs = (model(ids, mask, output_attentions=True) for model in (packed, dense))
        assert_close(ours.attentions, theirs.attentions, atol=1e-10, rtol=0)
        assert set(rows) == {ids.numel()}
        packed, dense = (model.eval() for model in make_pair(num_recurrent_steps=2))
        theirs = dense(ids, mask)
        compiled = torch.compile(packed, fullgraph=True, backend="eager")(ids, mask)
    real = mask.bool()
    assert_close(compiled.last_hidden_state[real], theirs.last_hidden_state[real], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["encoder", "sepconv decoder"])
def test_autocast_and_half_precision(kind):
    """State, keys and outputs of different dtypes meet in one step."""
    packed, dense = make_pair(dtype=torch.float32, **KINDS[kind])
    ids, mask = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (model(ids, mask) for model in (packed, dense))
    same = mask.bool() & (ours.n_updates == theirs.n_updates)
    assert same.sum() > 0.8 * mask.sum()
    gradients(packed, ours)
    half = copy.deepcopy(packed).bfloat16()
    outputs = half(ids, mask)
    assert outputs.last_hidden_state.dtype == torch.bfloat16 and outputs.remainders.dtype == torch.float32
    assert all(torch.isfinite(grad).all() for grad in gradients(half, outputs))


def test_dropout_is_drawn_for_active_tokens():
    packed, _ = make_pair(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, activation_dropout_prob=0.2)
    ids, mask = make_inputs()
    torch.manual_seed(3)
    first = packed(ids, mask).last_hidden_state
    torch.manual_seed(3)
    assert torch.equal(packed(ids, mask).last_hidden_state, first)
    assert not torch.equal(packed(ids, mask).last_hidden_state, first)
