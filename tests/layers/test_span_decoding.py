"""Steps of any size against the full pass, with an attention that says itself what it sees."""

import pytest
import torch
from torch.testing import assert_close

from longspan.adaptive_span.cache_adaptive_span import SpanRings
from longspan.layers.span_decoding import align, ring_widths, span_step

B, D, S, RAMP = 3, 4, 100, 5
SPANS = torch.tensor([0.0, 2.5, 17.0, 80.0, 100.0, 3.0], dtype=torch.float64)
H = len(SPANS)


def make(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(B, H, length, D, dtype=torch.float64, generator=generator) for _ in range(3)]
    return *states, torch.randn(H, S, D, dtype=torch.float64, generator=generator)


def attention(position_key, zero_cache=False):
    """The definition, one query and one head after the other."""

    def attend(heads, query, key, value, key_mask):
        out = torch.zeros_like(query)
        before = key.shape[2] - query.shape[2]
        for i, head in enumerate(range(H) if heads is None else heads):
            for t in range(query.shape[2]):
                x = torch.arange(S)
                column = before + t - 1 - x
                k, v = (
                    torch.where((column >= 0)[:, None], states[:, i, column.clamp(min=0)], 0.0)
                    for states in (key, value)
                )
                m = ((RAMP + SPANS[head] - x) / RAMP).clamp(0, 1).expand(B, -1)
                if not zero_cache:
                    m = m * (column >= 0)
                    if key_mask is not None:
                        m = m * key_mask[:, column.clamp(min=0)]
                weights = m * ((k + position_key[head]) @ query[:, i, t, :, None])[..., 0].exp()
                out[:, i, t] = (weights[..., None] * v).sum(1) / weights.sum(1, keepdim=True).clamp(min=1e-30)
        return out

    return attend


def rings():
    return SpanRings(ring_widths(SPANS.tolist(), max_span=S, ramp=RAMP))


def test_widths_are_the_keys_with_weight():
    assert ring_widths([0.0, 2.5, 17.0, 96.0], max_span=S, ramp=RAMP) == [5, 8, 22, 100]
    for span, width in zip(SPANS, ring_widths(SPANS.tolist(), max_span=S, ramp=RAMP), strict=True):
        weights = ((RAMP + span - torch.arange(S)) / RAMP).clamp(0, 1)
        assert width == int((weights > 0).sum())
    assert ring_widths([0.0], max_span=3, ramp=0) == [1]


@pytest.mark.parametrize("zero_cache", [False, True])
@pytest.mark.parametrize("split", [[1] * 30, [3, 1, 1, 20, 5], [7, 23]], ids=str)
def test_steps_equal_the_full_pass(split, zero_cache):
    query, key, value, position_key = make(30)
    attend = attention(position_key, zero_cache)
    whole = attend(None, query, key, value, None)
    state, begin = rings(), split[0]
    state.append(key[:, :, :begin], value[:, :, :begin])
    parts = []
    for size in split[1:]:
        piece = slice(begin, begin + size)
        parts.append(span_step(state, *(x[:, :, piece] for x in (query, key, value)), attend=attend))
        begin += size
    assert_close(torch.cat(parts, 2), whole[:, :, split[0] :])


@pytest.mark.parametrize("zero_cache", [False, True])
def test_rows_of_any_length_continue_as_alone(zero_cache):
    """Prompts padded anywhere, then two tokens for some rows and one for others, then one each."""
    query, key, value, position_key = make(14)
    attend = attention(position_key, zero_cache)
    mask = torch.ones(B, 14, dtype=torch.bool)
    mask[1, :6] = False
    mask[2, [0, 3, 4, 5, 10]] = False
    mask[0, 12] = False  # of the pieces 0..11, 11..13 and 13, padding behind the tokens of each
    mask[2, 12] = False
    state = rings()
    state.append(key[:, :, :11], value[:, :, :11], mask[:, :11])
    two, one = slice(11, 13), slice(13, 14)
    steps = [
        span_step(state, query[:, :, two], key[:, :, two], value[:, :, two], attend=attend, mask=mask[:, two]),
        span_step(state, query[:, :, one], key[:, :, one], value[:, :, one], attend=attend),
    ]
    out = torch.cat(steps, 2)
    for row in range(B):
        alone = [x[:, :, mask[row]] for x in (query, key, value)]
        whole = attend(None, *alone, None)[row]
        assert_close(out[row][:, mask[row, 11:]], whole[:, int(mask[row, :11].sum()) :])


def test_align():
    x = torch.arange(1.0, 6.0)[None, None, :, None].expand(2, 1, 5, 1)
    mask = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 1, 1]]).bool()
    (aligned,) = align([x], mask)
    assert aligned[..., 0].tolist() == [[[0, 0, 1, 3, 5]], [[0, 2, 3, 4, 5]]]
