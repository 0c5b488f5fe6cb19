"""Reformer's local self-attention: whole neighbouring chunks of the text (Kitaev et al. 2020).

B batch, H heads, T tokens, D head size, E hidden size.
"""

from typing import Any

from torch import Tensor, nn

from longspan.layers.decisions import Decisions
from longspan.layers.decoding import local_step
from longspan.layers.dense_weights import dense_weights
from longspan.ops import block_attention


class LocalSelfAttention(nn.Module):
    """Self-attention up to its output projection: a token sees its own chunk and its neighbours, whole.

    Args:
        hidden_size: E.
        num_heads: H.
        head_size: D; H * D need not be E.
        chunk_length: tokens of a chunk. A text of up to one chunk is seen whole.
        chunks_before: how many chunks before its own a token sees.
        chunks_after: how many chunks after its own a token sees.
        causal: never see a later token.
        wrap: count neighbours modulo the number of chunks, as the original does: the first chunk sees the last.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_size: int,
        *,
        chunk_length: int,
        chunks_before: int = 1,
        chunks_after: int = 0,
        causal: bool = False,
        wrap: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_heads, self.head_size, self.chunk_length = num_heads, head_size, chunk_length
        self.chunks_before, self.chunks_after = chunks_before, chunks_after
        self.causal, self.wrap, self.dropout = causal, wrap, dropout
        self.query = nn.Linear(hidden_size, num_heads * head_size, bias=False)
        self.key = nn.Linear(hidden_size, num_heads * head_size, bias=False)
        self.value = nn.Linear(hidden_size, num_heads * head_size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        token_mask: Tensor | None,
        decisions: Decisions,
        *,
        state: Any = None,
        length: int | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            hidden: ``[B, T, E]``.
            token_mask: bool ``[B, T]``, False at padding; None where there is none.
            decisions: what this call drew.
            state: ``longspan.cache.RingLayer``. It takes in the tokens; if it has earlier ones, they are seen too.
            length: how many of the tokens it takes in, where what follows is padding of the model's own.

        Returns:
            ``[B, T, H * D]``.
        """
        query, key, value = self.project(hidden)
        if state is not None and not state.is_empty:
            out = local_step(
                state,
                query,
                key,
                value,
                token_mask,
                chunk_length=self.chunk_length,
                chunks_before=self.chunks_before,
            )
            return self.join(out)
        out = self.attend(query, key, value, token_mask, decisions)
        if state is not None:
            state.append(key, value, token_mask, length)
        return self.join(out)

    def weights(self, hidden: Tensor, token_mask: Tensor | None, decisions: Decisions) -> Tensor:
        """Attention weights ``[B, H, T, T]`` before dropout, for inspection; the arguments are those of ``forward``."""
        query, key, _ = self.project(hidden)
        return dense_weights(lambda value: self.attend(query, key, value, token_mask), query)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, T, E]`` -> query, key and value ``[B, H, T, D]``."""
        query, key, value = (self._heads(f(hidden)) for f in (self.query, self.key, self.value))
        return query, key, value

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, token_mask: Tensor | None, decisions: Decisions | None = None
    ) -> Tensor:
        """Attention over a whole text: ``[B, H, T, D]`` each -> ``[B, H, T, D]``; zeros where nothing is seen.

        Without ``decisions`` nothing is dropped.
        """
        dropout_p, dropout_seed = 0.0, None
        if self.training and self.dropout > 0.0 and decisions is not None:
            dropout_p, dropout_seed = self.dropout, decisions.seed("attention dropout", query.device)
        one_chunk = query.shape[2] <= self.chunk_length
        return block_attention(
            query,
            key,
            value,
            block_size=self.chunk_length,
            before=0 if one_chunk else self.chunks_before,
            after=0 if one_chunk else self.chunks_after,
            causal=self.causal,
            wrap=self.wrap and not one_chunk,
            key_mask=token_mask,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
        )

    def join(self, out: Tensor) -> Tensor:
        """``[B, H, T, D]`` -> ``[B, T, H * D]``, a view where ``out`` is one of ``project``'s layout."""
        return out.transpose(1, 2).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)
