"""Multi-head attention of a step's rows: to the text itself, all of it or a window, and to another sequence.

B batch, H heads, T queries, S keys, D head size, E = H * D; rows are those of a step, see ``step_tokens.py``.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longspan.layers.step_tokens import StepRows, StepTokens
from longspan.ops import banded_attention

_SAFE_WITH_MASKS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class MultiheadAttention(nn.Module):
    """Projections without biases, and attention between them.

    Args:
        hidden_size: E.
        num_heads: H, a divisor of E.
        dropout: probability of dropping an attention weight in training.
        causal: no query sees a later key.
        window: tokens seen to each side, in causal attention back, beside the own one; None: all.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        window: int | None = None,
    ):
        super().__init__()
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.dropout, self.causal, self.window = dropout, causal, window
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4)
        )

    def core(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        query_column: Tensor | None,
        *,
        explicit: bool = False,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Attention of a padded batch.

        Args:
            query: ``[B, T, E]``.
            key: ``[B, S, E]``.
            value: as ``key``.
            key_mask: bool ``[B, S]``, False at keys that nobody sees; None: no such.
            query_column: int64 ``[B, T]``, where among the keys each query stands; None: they are the last T.
            explicit: compute all weights at once, ``B H T S`` of them, not piece by piece.
            weights: receives these, before dropout, ``[B, H, T, S]``.

        Returns:
            ``[B, T, E]``; 0 where a query sees nothing.
        """
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        if explicit or weights is not None:
            out = self._explicit(query, key, value, key_mask, query_column, dropout, weights)
        elif self.window is not None and query_column is None:
            seed = torch.randint(2**62, (), device=query.device) if dropout else None
            band = (self.window, 0 if self.causal else self.window)
            out = banded_attention(
                query, key, value, window=band, key_mask=key_mask, dropout_p=dropout, dropout_seed=seed
            )
        else:
            # One query may see all keys, T queries of T keys without padding need no mask: the fast kernels.
            plain = key_mask is None and query_column is None and self.window is None
            triangle = plain and self.causal and query.shape[2] == key.shape[2] > 1
            everything = plain and (not self.causal or query.shape[2] == 1)
            visible = None if triangle or everything else self._visible(query, key, key_mask, query_column)
            # With a mask, cuDNN's backward pass gives NaN at some lengths (pytorch/pytorch issue 196678).
            safe = sdpa_kernel(_SAFE_WITH_MASKS) if visible is not None and query.is_cuda else nullcontext()
            with safe:
                out = F.scaled_dot_product_attention(query, key, value, visible, dropout, is_causal=triangle)
        return out.transpose(1, 2).flatten(2)

    def _visible(
        self, query: Tensor, key: Tensor, key_mask: Tensor | None, query_column: Tensor | None
    ) -> Tensor | None:
        """Bool ``[B or 1, 1, T or 1, S]``, True where a query sees a key; None: everywhere."""
        visible = None if key_mask is None else key_mask[:, None, None]
        if not self.causal and self.window is None:
            return visible
        keys = torch.arange(key.shape[2], device=key.device)
        columns = keys[None, key.shape[2] - query.shape[2] :] if query_column is None else query_column
        after = keys - columns[:, None, :, None]  # tokens from query to key
        seen = after <= 0 if self.causal else after <= (self.window or 0)
        if self.window is not None:
            seen = seen & (after >= -self.window)
        return seen if visible is None else seen & visible

    def _explicit(self, query, key, value, key_mask, query_column, dropout: float, weights) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (query * self.head_size**-0.5) @ key.mT
        visible = self._visible(query, key, key_mask, query_column)
        if visible is None:
            probability = scores.softmax(-1, dtype=wide)
        else:
            scores = scores.to(wide).masked_fill(~visible, torch.finfo(wide).min)
            probability = scores.softmax(-1) * visible
        probability = probability.to(value.dtype)
        if weights is not None:
            weights.append(probability)
        return F.dropout(probability, dropout) @ value if dropout else probability @ value


class SelfAttention(MultiheadAttention):
    """Attention to the text itself."""

    def forward(self, x: Tensor, at: StepRows, name: str, **options) -> Tensor:
        """Rows ``[..., E]`` -> the same shape; ``name`` is unique in the block, ``options`` are those of ``core``."""
        keep = self.window if self.causal else None
        key = at.seen(f"{name}.key", self.k_proj(x), keep=keep)
        value = at.seen(f"{name}.value", self.v_proj(x), keep=keep)
        core = partial(self.core, **options)
        return self.o_proj(at.attend(core, self.q_proj(x), key, value, everywhere=self.window is not None))


class SourceAttention(MultiheadAttention):
    """Attention to another sequence, whose keys and values are computed once for all steps."""

    def provide(self, tokens: StepTokens, name: str, source: Tensor | None) -> None:
        """Before the first step, with ``source [B, S, E]``; None where a cache holds its keys and values."""

        def projected(layer: nn.Module) -> Tensor:
            if source is None:
                raise ValueError("encoder_hidden_states are missing: this decoder attends to an encoder's output")
            return layer(source)

        tokens.provide(f"{name}.key", lambda: projected(self.k_proj))
        tokens.provide(f"{name}.value", lambda: projected(self.v_proj))

    def forward(self, x: Tensor, at: StepRows, name: str, source_mask: Tensor | None, **options) -> Tensor:
        """Rows ``[..., E]`` -> the same shape; ``source_mask``: bool ``[B, S]``, False at padding of the source."""
        key, value = at.provided(f"{name}.key"), at.provided(f"{name}.value")
        return self.o_proj(at.attend_source(partial(self.core, **options), self.q_proj(x), key, value, source_mask))
