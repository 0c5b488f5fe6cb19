"""LSH self-attention: tokens attend to tokens that hash alike (Kitaev et al. 2020, section 2).

Queries and keys are one projection; keys are scaled to unit length inside the operators.

B batch, H heads, R hash rounds, T tokens, D head size, E hidden size.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from longspan.layers.decisions import Decisions
from longspan.layers.decoding import Semantics, lsh_step
from longspan.layers.dense_weights import dense_weights
from longspan.ops import bucket_attention, lsh_attention, lsh_buckets
from longspan.ops.rotations import seeded_rotations
from longspan.ops.transfers import put_integers

Buckets = int | list[int]

EVALUATION_SEED = 0x5EED  # of the rotations in evaluation where no seed is given


def automatic_buckets(num_tokens: int, chunk_length: int, max_positions: int) -> Buckets:
    """How many buckets suit a text: about two for each chunk, in two factors where there are many.

    The rule of transformers' Reformer, so that its checkpoints hash as they did; the paper's is two per chunk as well.

    Args:
        num_tokens: tokens of the text.
        chunk_length: tokens of a chunk.
        max_positions: the longest text of the model; from it follows from where on there are two factors.
    """
    exponent = (2 * max(1, num_tokens // chunk_length)).bit_length() - 1
    if 2**exponent > 2 * max(math.isqrt(max_positions // chunk_length), chunk_length):
        return [2 ** (exponent // 2), 2 ** (exponent - exponent // 2)]
    return 2**exponent


class LSHSelfAttention(nn.Module):
    """Self-attention up to its output projection.

    Args:
        hidden_size: E.
        num_heads: H.
        head_size: D; H * D need not be E.
        chunk_length: tokens of a chunk of the sorted order.
        chunks_before: how many chunks before its own a token sees.
        chunks_after: how many chunks after its own a token sees.
        num_hashes: R.
        num_buckets: an even number, a list of even factors of it, or None: by the length of the text.
        hash_seed: seed of the rotations, in training and evaluation. None: drawn afresh in training, always the same
            in evaluation.
        max_positions: the longest text, for automatic numbers of buckets.
        layer_index: number of the layer; where ``hash_seed`` is None, layers differ in their rotations.
        causal: never see a later token.
        semantics: "original": neighbours count modulo the chunks of all rounds, as in the released code; "chunked":
            they end with the round; "strict": the newest ``chunk_length * (1 + chunks_before)`` earlier tokens of the
            same bucket, which no later token can change.
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
        num_hashes: int = 1,
        num_buckets: Buckets | None = None,
        hash_seed: int | None = None,
        max_positions: int = 4096,
        layer_index: int = 0,
        causal: bool = False,
        semantics: Semantics = "chunked",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.semantics: Semantics = semantics
        self.num_heads, self.head_size, self.chunk_length = num_heads, head_size, chunk_length
        self.chunks_before, self.chunks_after = chunks_before, chunks_after
        self.num_hashes, self.num_buckets, self.hash_seed = num_hashes, num_buckets, hash_seed
        self.max_positions, self.layer_index = max_positions, layer_index
        self.causal, self.dropout = causal, dropout
        self.query_key = nn.Linear(hidden_size, num_heads * head_size, bias=False)
        self.value = nn.Linear(hidden_size, num_heads * head_size, bias=False)

    @property
    def window(self) -> int:
        """Keys of a bucket that a query sees under strict semantics."""
        return self.chunk_length * (1 + self.chunks_before)

    def forward(
        self,
        hidden: Tensor,
        token_mask: Tensor | None,
        decisions: Decisions,
        *,
        num_hashes: int | None = None,
        state: Any = None,
        length: int | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            hidden: ``[B, T, E]``.
            token_mask: bool ``[B, T]``, False at padding; None where there is none.
            decisions: what this call drew; its buckets are kept under "buckets".
            num_hashes: R, where it is not the layer's own.
            state: ``longspan.cache.RowsLayer``. It takes in the tokens; if it has earlier ones, they are seen too.
            length: how many of the tokens it takes in, where what follows is padding of the model's own.

        Returns:
            ``[B, T, H * D]``.
        """
        query_key, value = self.project(hidden)

        def hashing(num_tokens: int) -> tuple[Tensor, Buckets]:
            buckets = self.buckets_for(num_tokens)
            return self.rotations(query_key, buckets, num_hashes or self.num_hashes), buckets

        if state is not None and not state.is_empty:
            out = lsh_step(
                state,
                query_key,
                value,
                token_mask,
                hashing,
                chunk_length=self.chunk_length,
                chunks_before=self.chunks_before,
                chunks_after=self.chunks_after,
                semantics=self.semantics,
            )
            return self.join(out)
        buckets = decisions.once("buckets", lambda: self.hash(query_key, token_mask, num_hashes).int())
        out = self.attend(query_key, value, buckets, token_mask, decisions)
        if state is not None:
            state.append(query_key, value, token_mask, length)
        return self.join(out)

    def weights(
        self, hidden: Tensor, token_mask: Tensor | None, decisions: Decisions, *, num_hashes: int | None = None
    ) -> Tensor:
        """Attention weights ``[B, H, T, T]`` before dropout, for inspection; the arguments are those of ``forward``."""
        query_key, _ = self.project(hidden)
        buckets = decisions.once("buckets", lambda: self.hash(query_key, token_mask, num_hashes).int())
        return dense_weights(lambda value: self.attend(query_key, value, buckets, token_mask), query_key)

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, E]`` -> the shared query and key, and the value, ``[B, H, T, D]``."""
        return self._heads(self.query_key(hidden)), self._heads(self.value(hidden))

    def hash(self, query_key: Tensor, token_mask: Tensor | None, num_hashes: int | None = None) -> Tensor:
        """Buckets ``[B, H, R, T]`` of ``query_key [B, H, T, D]``; padding has one behind all others.

        A text of up to one chunk needs none: one round with one bucket.
        """
        batch, heads, length, _ = query_key.shape
        if self.semantics != "strict" and length <= self.chunk_length:
            return query_key.new_zeros(batch, heads, 1, length, dtype=torch.int64)
        num_hashes = self.num_hashes if num_hashes is None else num_hashes
        groups = self._rows_by_buckets(token_mask, length)
        if len(groups) == 1:
            buckets, _ = groups[0]
            rotations = self.rotations(query_key, buckets, num_hashes)
            return lsh_buckets(query_key, rotations, buckets, key_mask=token_mask)
        assert token_mask is not None
        out = query_key.new_empty(batch, heads, num_hashes, length, dtype=torch.int64)
        for buckets, rows in groups:
            rotations = self.rotations(query_key, buckets, num_hashes)
            at = put_integers(rows, query_key.device)
            out[at] = lsh_buckets(query_key[at], rotations, buckets, key_mask=token_mask[at])
        return out

    def buckets_for(self, num_tokens: int) -> Buckets:
        """The number of buckets for a text of ``num_tokens``."""
        if self.num_buckets is not None:
            return self.num_buckets
        # Strict: nothing that later tokens can change, and the text's length is such a thing.
        tokens = self.max_positions if self.semantics == "strict" else num_tokens
        return automatic_buckets(tokens, self.chunk_length, self.max_positions)

    def rotations(self, like: Tensor, buckets: Buckets, num_hashes: int | None = None) -> Tensor:
        """Rotations ``[H, D, R, S / 2]`` on the device of ``like``, S the sum of the factors of ``buckets``."""
        num_hashes = self.num_hashes if num_hashes is None else num_hashes
        columns = (buckets if isinstance(buckets, int) else sum(buckets)) // 2
        size = (self.num_heads, self.head_size, num_hashes, columns)
        if self.hash_seed is not None:
            return seeded_rotations(like, self.hash_seed, size)
        if not self.training:
            return seeded_rotations(like, EVALUATION_SEED + self.layer_index, size)
        return torch.randn(size, device=like.device)

    def attend(
        self,
        query_key: Tensor,
        value: Tensor,
        buckets: Tensor,
        token_mask: Tensor | None,
        decisions: Decisions | None = None,
    ) -> Tensor:
        """Attention over a whole text.

        Args:
            query_key: ``[B, H, T, D]``.
            value: ``[B, H, T, D]``.
            buckets: ``[B, H, R, T]``, as ``hash`` makes them.
            token_mask: bool ``[B, T]`` or None.
            decisions: what this call drew; without them nothing is dropped.

        Returns:
            ``[B, H, T, D]``. A token that finds no other takes its own value.
        """
        dropout_p, dropout_seed = 0.0, None
        if self.training and self.dropout > 0.0 and decisions is not None:
            dropout_p, dropout_seed = self.dropout, decisions.seed("attention dropout", query_key.device)
        if self.semantics == "strict":
            return bucket_attention(
                query_key,
                value,
                buckets,
                window=self.window,
                key_mask=token_mask,
                dropout_p=dropout_p,
                dropout_seed=dropout_seed,
            )
        one_chunk = query_key.shape[2] <= self.chunk_length
        return lsh_attention(
            query_key,
            value,
            buckets,
            chunk_size=self.chunk_length,
            chunks_before=0 if one_chunk else self.chunks_before,
            chunks_after=0 if one_chunk else self.chunks_after,
            causal=self.causal,
            wrap=self.semantics == "original" and not one_chunk,
            key_mask=token_mask,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
        )

    def join(self, out: Tensor) -> Tensor:
        """``[B, H, T, D]`` -> ``[B, T, H * D]``, a view where ``out`` is one of ``project``'s layout."""
        return out.transpose(1, 2).flatten(2)

    def _rows_by_buckets(self, token_mask: Tensor | None, length: int) -> list[tuple[Buckets, list[int]]]:
        """Numbers of buckets and the rows that hash with each: by their own tokens, so that padding changes nothing.

        One entry serves all rows where the number is given, where nothing is padding, or in a graph, whose shapes are
        fixed; and under the original semantics, where the padded length counts.
        """
        given = self.num_buckets is not None or self.semantics != "chunked"
        if given or token_mask is None or torch.compiler.is_compiling() or token_mask.device.type == "meta":
            return [(self.buckets_for(length), [])]
        groups: dict[str, tuple[Buckets, list[int]]] = {}
        for row, count in enumerate(token_mask.sum(1).tolist()):
            buckets = self.buckets_for(count)
            groups.setdefault(str(buckets), (buckets, []))[1].append(row)
        return list(groups.values()) or [(self.buckets_for(length), [])]

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)
