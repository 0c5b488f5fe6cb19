"""Attention weights, for looking at, belong to the attention that is computed."""

import torch

from longspan.layers import SlidingWindowSelfAttention, collect_global_tokens


def weights_and_output(window=(2, 2), causal=False, length=11):
    torch.manual_seed(0)
    layer = SlidingWindowSelfAttention(8, 2, window=window, dilation=[1, 2], causal=causal).double().eval()
    x = torch.randn(2, length, 8, dtype=torch.float64)
    state = torch.ones(2, length, dtype=torch.long)
    state[0, [1, 6]] = 2
    state[1, 3] = 2
    state[1, -2:] = 0
    out, local, distant = layer(x, state > 0, collect_global_tokens(state == 2), output_attentions=True)
    return layer, x, state, out, local, distant


def values_of(layer, linear, x):
    return layer._heads(linear(x))


def test_weights_times_values_are_the_output():
    for causal in (False, True):
        window = (2, 0) if causal else (2, 2)
        layer, x, state, out, local, distant = weights_and_output(window, causal)
        width = sum(window) + 1
        assert local.shape == (2, 2, 11, 2 + width) and distant.shape == (2, 2, 11, 2)
        tokens = collect_global_tokens(state == 2)
        assert tokens is not None
        value, value_global = values_of(layer, layer.value, x), values_of(layer, layer.value_global, x)
        for row in range(2):
            index = tokens.index[row]
            for head, dilation in enumerate([1, 2]):
                expected = torch.zeros(11, 4, dtype=torch.float64)
                for token in range(11):
                    expected[token] = local[row, head, token, :2] @ value[row, head, index]
                    for column in range(width):
                        key = token + dilation * (column - window[0])
                        if 0 <= key < 11:
                            expected[token] += local[row, head, token, 2 + column] * value[row, head, key]
                for slot in range(int((state[row] == 2).sum())):
                    expected[index[slot]] = distant[row, head, :, slot] @ value_global[row, head]
                torch.testing.assert_close(out[row, :, 4 * head : 4 * head + 4], expected, atol=1e-10, rtol=0)


def test_rows_sum_to_one_or_are_silent():
    _, _, state, _, local, distant = weights_and_output()
    sums = local.sum(-1)
    torch.testing.assert_close(sums, (state == 1).double()[:, None].expand_as(sums))
    assert torch.equal(distant.sum(2).round(decimals=9), torch.tensor([[[1, 1]] * 2, [[1, 0]] * 2]).double())


def test_a_short_text_keeps_the_columns_of_the_window():
    local = weights_and_output(window=(30, 30), length=11)[4]
    assert local.shape[-1] == 2 + 61
    assert local[0, 0, 0, 2 + 30] > 0  # a token sees itself in the middle column
    assert local[..., 2 : 2 + 20].abs().max() == 0  # farther back than any token stands
