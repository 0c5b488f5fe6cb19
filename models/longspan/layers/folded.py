"""Attention of a few queries to many tokens, without projecting the tokens.

With W_k, W_v the rows of one head and x_j the tokens,

    q . (W_k x_j + b_k) = (W_k' q) . x_j + q . b_k
    sum_j a_j (W_v x_j + b_v) = W_v sum_j a_j x_j + b_v sum_j a_j

so the key projection moves to the queries and the value projection behind the sum. Per token that costs 2 H G E
multiplications where projecting costs 2 E (E + G), and no key or value of T tokens is held for the backward pass.

B batch, H heads, T tokens, D head size, E = H * D hidden size, G queries.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.ops import dense_attention


def folding_pays(num_queries: int, num_heads: int, hidden_size: int) -> bool:
    """Whether folding takes fewer multiplications than projecting every token."""
    return num_heads * num_queries <= hidden_size + num_queries


def folded_attention(
    query: Tensor,
    hidden_states: Tensor,
    key: nn.Linear,
    value: nn.Linear,
    *,
    token_mask: Tensor | None = None,
    query_position: Tensor | None = None,
    dropout_p: float = 0.0,
    dropout_seed: Tensor | None = None,
) -> Tensor:
    """``softmax(query . key(x)) value(x)`` over all tokens x.

    Args:
        query: ``[B, H, G, D]``.
        hidden_states: the tokens, ``[B, T, E]``.
        key: projection of the tokens to keys, E -> E.
        value: projection of the tokens to values, E -> E.
        token_mask: bool ``[B, T]``, True where a token may be seen.
        query_position: int64 ``[B, G]``; given, a query sees only tokens up to its position (causal).
        dropout_p: probability of dropping a weight.
        dropout_seed: 0-dim int64, fixes the dropped weights.

    Returns:
        ``[B, H, G, D]``. A query that may see nothing gives ``value.bias``.
    """
    batch, heads, num_queries, head_size = query.shape
    length, hidden_size = hidden_states.shape[1:]
    key_weight = key.weight.view(heads, head_size, hidden_size)
    value_weight = value.weight.view(heads, head_size, hidden_size)
    key_bias, value_bias = key.bias.view(heads, head_size), value.bias.view(heads, 1, head_size)

    folded = torch.einsum("bhgd,hde->bhge", query, key_weight)
    shift = torch.einsum("bhgd,hd->bhg", query, key_bias).unsqueeze(-1)  # [B, H, G, 1]
    tokens = hidden_states.to(folded.dtype)
    if dropout_p > 0:
        # The weights that dropout leaves do not sum to one: a column of ones carries their sum, and the shift.
        folded, tokens = torch.cat([folded, shift], -1), F.pad(tokens, (0, 1), value=1.0)
    tokens = tokens[:, None]  # one set of keys and values for all heads: [B, 1, T, E (+ 1)]
    causal = query_position is not None
    mixed, _ = dense_attention(
        folded.flatten(1, 2)[:, None],
        tokens,
        tokens,
        key_mask=token_mask,
        query_position=query_position.repeat(1, heads) if causal else None,
        key_position=torch.arange(length, device=query.device) if causal else None,
        scale=head_size**-0.5,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
        return_lse=True,
    )
    mixed = mixed.view(batch, heads, num_queries, -1)
    if dropout_p > 0:
        mixed, total = mixed.split([hidden_size, 1], -1)
    else:
        # A softmax ignores what shifts its whole row. The key bias takes part all the same, with gradient zero: a
        # parameter without a gradient stops distributed training.
        total = 1.0 + 0.0 * shift
    return torch.einsum("bhge,hde->bhgd", mixed, value_weight) + total * value_bias
