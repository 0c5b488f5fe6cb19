"""Longformer's self-attention: a sliding window, dilated or not, and global tokens (Beltagy et al. 2020, section 3.1).

An ordinary token sees the tokens of its window and all global tokens under one softmax; a global token sees the whole
text, through projections of its own. Padding is seen by nobody and gets zeros.

B batch, H heads, T tokens, D head size, E = H * D hidden size, G slots for global tokens, W columns of the band.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longspan.layers.attention_weights import global_weights, window_weights
from longspan.layers.folded import folded_attention, folding_pays
from longspan.layers.global_tokens import GlobalTokens
from longspan.ops import banded_attention, dense_attention, merge
from longspan.ops.tiled import autocast_dtype


class _Dropout(NamedTuple):
    """Probability and seeds: the three sets of (query, key) pairs draw from streams of their own."""

    p: float
    window: Tensor | None = None
    columns: Tensor | None = None
    rows: Tensor | None = None


class SlidingWindowSelfAttention(nn.Module):
    """Self-attention up to its output projection.

    Args:
        hidden_size: E.
        num_heads: H, a divisor of E.
        window: steps seen to the (left, right); in a causal layer right is 0.
        dilation: step between the tokens of the window, in tokens; one for all heads or one per head.
        dropout: probability of dropping an attention weight in training.
        causal: cut what global tokens see, and who sees them, to positions not later than the query's.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        window: tuple[int, int],
        dilation: int | Sequence[int] = 1,
        dropout: float = 0.0,
        causal: bool = False,
    ):
        super().__init__()
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.window, self.dilation, self.dropout, self.causal = window, dilation, dropout, causal
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.query_global = nn.Linear(hidden_size, hidden_size)
        self.key_global = nn.Linear(hidden_size, hidden_size)
        self.value_global = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        token_mask: Tensor | None = None,
        global_tokens: GlobalTokens | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend.

        Args:
            hidden_states: ``[B, T, E]``.
            token_mask: bool ``[B, T]``, False at padding; None where there is none.
            global_tokens: the global tokens, none of them padding; None where there is none.
            output_attentions: also compute the weights, which costs the memory that attention here avoids.

        Returns:
            ``out [B, T, E]`` and, or None, the weights of the window ``[B, H, T, G + W]`` and of the global tokens
            ``[B, H, T, G]``; layouts in ``attention_weights.py``.
        """
        hidden_states = _cast_once(hidden_states)
        query, key, value = (self._heads(f(hidden_states)) for f in (self.query, self.key, self.value))
        dropout = self._draw_dropout(hidden_states.device)
        window_mask = _window_mask(token_mask, global_tokens)
        band = {"window": self.window, "dilation": self.dilation, "key_mask": window_mask}
        out, lse = banded_attention(
            query, key, value, **band, dropout_p=dropout.p, dropout_seed=dropout.window, return_lse=True
        )
        if global_tokens is None:
            out = self._join(out)
            if token_mask is not None:
                out = out.masked_fill(~token_mask[..., None], 0.0)
            if self.training:
                out = out + self._zero()
            weights = window_weights(query, key, **band, token_mask=token_mask) if output_attentions else None
            return out, weights, None

        chosen = _gather(hidden_states, global_tokens.index)  # [B, G, E]
        global_key, global_value = self._heads(self.key(chosen)), self._heads(self.value(chosen))
        everywhere = torch.arange(hidden_states.shape[1], device=hidden_states.device) if self.causal else None
        columns, columns_lse = dense_attention(
            query,
            global_key,
            global_value,
            key_mask=global_tokens.filled,
            query_position=everywhere,
            key_position=global_tokens.index if self.causal else None,
            dropout_p=dropout.p,
            dropout_seed=dropout.columns,
            return_lse=True,
        )
        out, _ = merge([out, columns], [lse, columns_lse])
        global_query = self._heads(self.query_global(chosen))
        rows = self._global_rows(global_query, hidden_states, token_mask, global_tokens, dropout)
        out = _replace_rows(self._join(out), rows, token_mask, global_tokens)
        if not output_attentions:
            return out, None, None
        local = window_weights(query, key, **band, token_mask=token_mask, global_tokens=global_tokens,
                               global_key=global_key, causal=self.causal)  # fmt: skip
        key = self._heads(self.key_global(hidden_states))
        return out, local, global_weights(global_query, key, token_mask, global_tokens, causal=self.causal)

    def _global_rows(self, query, hidden_states, token_mask, global_tokens, dropout: _Dropout) -> Tensor:
        """What the global tokens see of the whole text: ``query [B, H, G, D]`` -> ``[B, G, E]``."""
        position = global_tokens.index if self.causal else None
        # A layer that stands in for nn.Linear (an adapter, quantisation) must be called, its weight says too little.
        plain = type(self.key_global) is nn.Linear and type(self.value_global) is nn.Linear
        if plain and folding_pays(query.shape[2], self.num_heads, hidden_states.shape[2]):
            out = folded_attention(
                query,
                hidden_states,
                self.key_global,
                self.value_global,
                token_mask=token_mask,
                query_position=position,
                dropout_p=dropout.p,
                dropout_seed=dropout.rows,
            )
            return self._join(out)
        everywhere = torch.arange(hidden_states.shape[1], device=query.device) if self.causal else None
        out, _ = dense_attention(
            query,
            self._heads(self.key_global(hidden_states)),
            self._heads(self.value_global(hidden_states)),
            key_mask=token_mask,
            query_position=position,
            key_position=everywhere,
            dropout_p=dropout.p,
            dropout_seed=dropout.rows,
            return_lse=True,
        )
        return self._join(out)

    def _draw_dropout(self, device) -> _Dropout:
        if not self.training or self.dropout == 0.0:
            return _Dropout(0.0)
        seed = torch.randint(2**62, (), dtype=torch.int64, device=device)
        return _Dropout(self.dropout, seed, seed + 1, seed + 2)

    def _zero(self) -> Tensor:
        """0, to which the global projections contribute: without global tokens they get a zero gradient, not none."""
        layers = (self.query_global, self.key_global, self.value_global)
        return 0.0 * torch.stack([p.sum() for layer in layers for p in layer.parameters()]).sum()

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, E]`` -> ``[B, H, T, D]``, a view."""
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def _join(self, x: Tensor) -> Tensor:
        """``[B, H, T, D]`` -> ``[B, T, E]``, a view where x is one of ``_heads``."""
        return x.transpose(1, 2).flatten(2)


def _cast_once(hidden_states: Tensor) -> Tensor:
    """Under autocast, cast here and not in each of the projections."""
    return hidden_states.to(autocast_dtype(hidden_states) or hidden_states.dtype)


def _window_mask(token_mask: Tensor | None, global_tokens: GlobalTokens | None) -> Tensor | None:
    """Keys of the window: a global token inside it is counted once, among the global columns."""
    if global_tokens is None:
        return token_mask
    return ~global_tokens.is_global if token_mask is None else token_mask & ~global_tokens.is_global


def _gather(hidden_states: Tensor, index: Tensor) -> Tensor:
    """``[B, T, E]`` at ``index [B, G]`` -> ``[B, G, E]``."""
    return hidden_states[torch.arange(index.shape[0], device=index.device)[:, None], index]


def _replace_rows(out: Tensor, rows: Tensor, token_mask: Tensor | None, global_tokens: GlobalTokens) -> Tensor:
    """``out [B, T, E]`` with zeros at padding and, at global tokens, their ``rows [B, G, E]``; changes ``out``.

    In place: no backward pass wants what ``merge`` returned, so no second tensor of this size is held.
    """
    blank = global_tokens.is_global if token_mask is None else global_tokens.is_global | ~token_mask
    out = out.masked_fill_(blank[..., None], 0.0)
    rows = rows.masked_fill(~global_tokens.filled[..., None], 0.0).to(out.dtype)
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None]
    return out.index_put_((batch, global_tokens.index), rows, accumulate=True)
