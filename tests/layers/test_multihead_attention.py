"""Attention: against the formula, with masks, windows and a source; never NaN."""

import pytest
import torch

from longspan.layers.multihead_attention import SelfAttention, SourceAttention
from longspan.layers.step_tokens import StepTokens


def brute_force(layer, query, source, visible):
    """``visible [B, T, S]``: softmax over what is seen, head by head; 0 where nothing is."""
    projected = layer.q_proj(query), layer.k_proj(source), layer.v_proj(source)
    outs = []
    for q, k, v in zip(*(x.chunk(layer.num_heads, -1) for x in projected), strict=True):
        scores = (q @ k.mT / layer.head_size**0.5).masked_fill(~visible, -1e30)
        weights = torch.where(visible.any(-1, keepdim=True), scores.softmax(-1), 0.0)
        outs.append(weights @ v)
    return layer.o_proj(torch.cat(outs, -1))


def make_mask(kind):
    mask = torch.ones(4, 11, dtype=torch.bool)
    if kind is None:
        return None
    mask[1, 7:], mask[2, :4], mask[3] = False, False, False  # the last row is padding alone
    return mask


@pytest.mark.parametrize("mask", [None, "padded"])
@pytest.mark.parametrize("window", [None, 0, 2, 30])
@pytest.mark.parametrize("causal", [True, False])
def test_self_attention(causal, window, mask):
    layer = SelfAttention(8, 2, causal=causal, window=window).double()
    x = torch.randn(4, 11, 8, dtype=torch.float64, requires_grad=True)
    mask = make_mask(mask)
    after = torch.arange(11) - torch.arange(11)[:, None]
    visible = (after <= 0) if causal else torch.ones(11, 11, dtype=torch.bool)
    if window is not None:
        visible = visible & (after.abs() <= window)
    visible = visible.expand(4, -1, -1) if mask is None else visible & mask[:, None]
    expected = brute_force(layer, x, x, visible)
    for options in ({}, {"explicit": True}):
        at = StepTokens(mask, torch.arange(11)[None]).begin(0)
        out = layer(x, at, "name", **options)
        torch.testing.assert_close(out, expected)
        (grad,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
        assert grad.isfinite().all()
    weights = []
    layer(x, StepTokens(mask, torch.arange(11)[None]).begin(0), "name", weights=weights)
    assert weights[0].shape == (4, 2, 11, 11)
    torch.testing.assert_close(weights[0].sum(-1), visible.any(-1)[:, None].expand(-1, 2, -1).double())
    assert (weights[0].masked_select(~visible[:, None].expand(-1, 2, -1, -1)) == 0).all()


@pytest.mark.parametrize("mask", [None, "padded"])
def test_attention_to_a_source(mask):
    layer = SourceAttention(8, 2).double()
    x, source = torch.randn(4, 5, 8, dtype=torch.float64), torch.randn(4, 11, 8, dtype=torch.float64)
    mask = make_mask(mask)
    tokens = StepTokens(None, torch.arange(5)[None])
    layer.provide(tokens, "cross", source)
    out = layer(x, tokens.begin(0), "cross", mask)
    visible = torch.ones(4, 5, 11, dtype=torch.bool) if mask is None else mask[:, None].expand(-1, 5, -1)
    torch.testing.assert_close(out, brute_force(layer, x, source, visible))
    with pytest.raises(ValueError, match="encoder's output"):
        layer.provide(StepTokens(None, torch.arange(5)[None]), "cross", None)


@pytest.mark.parametrize("window", [None, 3])
def test_dropout_drops_weights_in_training_alone(window):
    layer = SelfAttention(8, 2, dropout=0.5, window=window)
    x = torch.randn(1, 11, 8)

    def run(**options):
        return layer(x, StepTokens(None, torch.arange(11)[None]).begin(0), "name", **options)

    for options in ({}, {"explicit": True}):
        layer.train()
        assert not torch.equal(run(**options), run(**options))
        layer.eval()
        assert torch.equal(run(**options), run(**options))
    layer.train()
    torch.manual_seed(0)
    mean = torch.stack([run() for _ in range(400)]).mean(0)
    torch.testing.assert_close(mean, layer.eval()(x, StepTokens(None, torch.arange(11)[None]).begin(0), "name"),
                               atol=0.1, rtol=0)  # fmt: skip
