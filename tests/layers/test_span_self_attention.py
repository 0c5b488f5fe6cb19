"""The layer against a dense computation of the same formula, and parts of the past against all of it."""

import math

import pytest
import torch

from longspan.layers.span import head_windows
from longspan.layers.span_self_attention import SpanReach, SpanSelfAttention, by_distance, share_of_window

E, H, S, RAMP = 12, 3, 20, 4


def make_layer(**options):
    torch.manual_seed(0)
    layer = SpanSelfAttention(E, H, max_span=S, ramp=RAMP, **options).double()
    for parameter in layer.parameters():
        parameter.data.normal_(0, 0.5)
    if hasattr(layer.span, "span_fraction"):
        layer.span.span_fraction.data.uniform_(0, 0.8)
    return layer.eval()


def dense(layer, hidden, memory, table):
    """Spec: a = m exp(s) / (sum m exp(s) + epsilon sum exp(s)), over the keys of the window and persistent vectors."""
    source = hidden if memory is None else torch.cat([memory, hidden], 1)
    missing = S if layer.zero_cache else 0
    source = torch.nn.functional.pad(source, (0, 0, missing, 0))  # zero states have zero keys and values

    def heads(x):
        return x.unflatten(-1, (H, E // H)).transpose(1, 2)

    query, key, value = heads(layer.q_proj(hidden)), heads(layer.k_proj(source)), heads(layer.v_proj(source))
    place = torch.arange(source.shape[1])
    offset = place - place[-hidden.shape[1] :, None]
    distance = offset.abs() if layer.bidirectional else -1 - offset
    inside = (distance >= 0) & (distance < S)
    column = offset + S - 1 if layer.bidirectional else S - 1 - distance
    position = table[0][:, column.clamp(0, table.shape[2] - 1)]  # [D, T, S']
    scores = (query @ key.mT + torch.einsum("bhtd,dts->bhts", query, position)) / math.sqrt(E // H)
    span = layer.span(hidden)
    span = span[:, None, None] if span.dim() == 1 else span[..., None]
    soft = ((RAMP + span - distance) / RAMP).clamp(0, 1) * inside
    plain = (scores.exp() * inside).sum(-1, keepdim=True)
    weights = scores.exp() * soft
    total = weights.sum(-1, keepdim=True)
    out = weights @ value
    if layer.persistent:
        keys = layer.persistent_key * math.sqrt(E // H)
        persistent = (query @ keys / math.sqrt(E // H)).exp()
        out = out + persistent @ (layer.persistent_value * math.sqrt(layer.persistent))
        plain, total = (x + persistent.sum(-1, keepdim=True) for x in (plain, total))
    out = out / (total + layer.epsilon * plain if layer.renormalise else plain)
    return layer.o_proj(out.nan_to_num(0.0).transpose(1, 2).flatten(2))


KINDS = {
    "static": {"zero_cache": True},
    "one span": {"zero_cache": True, "span_mode": "static_layer"},
    "no zero cache": {},
    "dynamic": {"zero_cache": True, "span_mode": "dynamic"},
    "fixed": {"span_mode": "none"},
    "epsilon": {"zero_cache": True, "epsilon": 0.1},
    "share": {"renormalise": False},
    "persistent": {"zero_cache": True, "persistent": 5},
    "persistent, epsilon, dynamic": {"persistent": 5, "epsilon": 0.2, "span_mode": "dynamic"},
    "both sides": {"bidirectional": True},
    "both sides, persistent, share": {"bidirectional": True, "persistent": 2, "renormalise": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "remembered"), [(7, 0), (7, 30), (1, 9), (30, 3)])
def test_the_formula(kind, length, remembered):
    layer = make_layer(**KINDS[kind])
    if layer.bidirectional:
        remembered = 0
    hidden = torch.randn(2, length, E, dtype=torch.float64)
    memory = torch.randn(2, remembered, E, dtype=torch.float64) if remembered else None
    table = torch.randn(1, E // H, 2 * S - 1 if layer.bidirectional else S, dtype=torch.float64)
    expected = dense(layer, hidden, memory, table)
    reach = None
    if layer.span.__class__.__name__ == "StaticSpan":
        reach = SpanReach(head_windows(layer.span.tokens(), H, RAMP, S))
    rows = S if reach is None else layer.rows_read(reach)
    position_key = by_distance(table, S, rows, bidirectional=layer.bidirectional)
    out, _, weights = layer(hidden, position_key, memory, reach=reach, output_attentions=True)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(layer(hidden, position_key, memory, reach=reach)[0], expected)
    if layer.exact and not layer.persistent and not layer.zero_cache:
        seen = weights.sum(-1) > 0
        torch.testing.assert_close(weights.sum(-1)[seen], torch.ones_like(weights.sum(-1)[seen]))


@pytest.mark.parametrize("kind", ["static", "dynamic", "persistent", "epsilon"])
def test_gradients_do_not_depend_on_what_is_left_out(kind):
    """One head far, two near: read in groups, with position keys cut; against all rows for all heads."""
    layer = make_layer(**KINDS[kind])
    if kind != "dynamic":
        layer.span.span_fraction.data = torch.tensor([0.02, 0.7, 0.04], dtype=torch.float64)
    else:
        layer.span.bias.data = torch.tensor([-4.0, 1.0, -4.0], dtype=torch.float64)
        layer.span.weight.data.mul_(0.1)
    hidden = torch.randn(2, 3, E, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(2, 40, E, dtype=torch.float64)
    table = torch.randn(1, E // H, S, dtype=torch.float64, requires_grad=True)
    found = []
    for known in (True, False):
        reach = SpanReach([S] * H)
        if known:
            reach = None if kind == "dynamic" else SpanReach(head_windows(layer.span.tokens(), H, RAMP, S))
        position_key = by_distance(table, S, S, bidirectional=False)
        if known and reach is not None:
            position_key = position_key[:, : layer.rows_read(reach)]
        leaves = [hidden, table, *layer.parameters()]
        out, _, _ = layer(hidden, position_key, memory, reach=reach)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        found.append([out, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_dropout_in_groups_is_drawn_for_each_group():
    layer = make_layer(zero_cache=True, dropout=0.5).train()
    layer.span.span_fraction.data = torch.tensor([0.02, 0.7, 0.04], dtype=torch.float64)
    hidden, memory = torch.randn(2, 3, E, dtype=torch.float64), torch.randn(2, 40, E, dtype=torch.float64)
    position_key = torch.randn(1, S, E // H, dtype=torch.float64)
    reach = SpanReach(head_windows(layer.span.tokens(), H, RAMP, S))
    torch.manual_seed(5)
    first = layer(hidden, position_key, memory, reach=reach)[0]
    second = layer(hidden, position_key, memory, reach=reach)[0]
    torch.manual_seed(5)
    torch.testing.assert_close(layer(hidden, position_key, memory, reach=reach)[0], first, atol=0, rtol=0)
    assert (first - second).abs().max() > 1e-3
    torch.manual_seed(0)
    mean = torch.stack([layer(hidden, position_key, memory, reach=reach)[0] for _ in range(300)]).mean(0)
    expected = layer.eval()(hidden, position_key, memory, reach=reach)[0]
    assert (mean - expected).abs().max() < 0.25 * expected.abs().max()


def test_share_of_nothing_is_nothing():
    inf = torch.inf
    lse = torch.tensor([0.0, -inf, -inf], requires_grad=True)
    window = torch.tensor([1.0, 2.0, -inf], requires_grad=True)
    share = share_of_window(lse, window)
    assert share.tolist() == pytest.approx([math.exp(-1.0), 0.0, 0.0])
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(share.sum(), (lse, window)))
