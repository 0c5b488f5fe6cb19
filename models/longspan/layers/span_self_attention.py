"""Self-attention with adaptive spans (Sukhbaatar et al. 2019a), and persistent vectors beside the text (2019b).

B batch, H heads, T tokens, C remembered rows, S = C + T keys, D head size, E = H * D hidden size, N persistent vectors.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longspan.layers.dense_weights import dense_weights
from longspan.layers.persistent import persistent_attention
from longspan.layers.span import DynamicSpan, FullSpan, Span, StaticSpan, head_windows
from longspan.layers.span_decoding import span_step
from longspan.layers.span_projection import (
    HeadGroup,
    group_heads,
    join_groups,
    project_heads,
    split_heads,
    take_heads,
)
from longspan.ops import merge, span_attention

SpanMode = Literal["static", "static_layer", "dynamic", "none"]


def by_distance(table: Tensor, max_span: int, rows: int, *, bidirectional: bool) -> Tensor:
    """Position keys of the nearest ``rows`` distances, as ``span_attention`` wants them.

    Args:
        table: ``[1, D, max_span]``, the nearest key last; or ``[1, D, 2 * max_span - 1]``, one for each offset.
        max_span: distances that the table knows.
        rows: distances wanted, at most ``max_span``.
        bidirectional: which of the two tables it is.

    Returns:
        ``[1, rows, D]``, the nearest first; or ``[1, 2 * rows - 1, D]`` by offset.
    """
    if bidirectional:
        return table[..., max_span - rows : max_span + rows - 1].transpose(1, 2)
    return table[..., max_span - rows :].flip(-1).transpose(1, 2)


@dataclass
class SpanReach:
    """How far the heads of a layer look, known on the host: what is not in reach is neither projected nor read.

    Args:
        windows: keys that a query of each head reads.
        trimmed: farthest positions that the layer's window leaves out, by the original's rule.
    """

    windows: Sequence[int]
    trimmed: int = 0


def share_of_window(lse: Tensor, window_lse: Tensor) -> Tensor:
    """Part of a softmax over a whole window that what a soft span leaves of it has; 0 where there is nothing."""
    nothing = window_lse == -torch.inf
    return (lse.masked_fill(nothing, -torch.inf) - window_lse.masked_fill(nothing, 0.0)).exp()


class SpanSelfAttention(nn.Module):
    """Self-attention with its output projection.

    Args:
        hidden_size: E.
        num_heads: H.
        max_span: distances from here on are never seen; rows of the position keys.
        ramp: tokens over which weights fade behind a span.
        span_mode: "static": a span for each head; "static_layer": one; "dynamic": one for each head and token, computed
            from the token; "none": all see ``max_span`` tokens.
        span_init: span of a new layer, as a fraction of ``max_span``.
        bidirectional: see both sides and the own token; else what stands before.
        zero_cache: positions before the first key take part, as keys and values of zero. Causal layers only.
        renormalise: divide weights by their sum; else they keep their share of the softmax over the whole window.
        epsilon: what the original adds to that sum.
        persistent: N vectors of each head that take part in every attention, whatever its span.
        own_positions: have a table of position keys, in place of one that is passed in.
        dropout: probability of dropping an attention weight in training.

    Attributes:
        persistent_key: ``[H, D, N]``, used times sqrt(D).
        persistent_value: ``[H, N, D]``, used times sqrt(N).
        key_position_embeddings: ``[1, D, max_span]``, the nearest last; bidirectional ``[1, D, 2 * max_span - 1]``.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        max_span: int,
        ramp: int,
        span_mode: SpanMode = "static",
        span_init: float = 0.0,
        bidirectional: bool = False,
        zero_cache: bool = False,
        renormalise: bool = True,
        epsilon: float = 0.0,
        persistent: int = 0,
        own_positions: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.max_span, self.ramp, self.dropout = max_span, ramp, dropout
        self.bidirectional, self.zero_cache = bidirectional, zero_cache
        self.renormalise, self.epsilon = renormalise, epsilon
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.span: Span
        if span_mode == "dynamic":
            self.span = DynamicSpan(hidden_size, num_heads, max_span, ramp=ramp, init=span_init)
        elif span_mode == "none":
            self.span = FullSpan(num_heads, max_span)
        else:
            self.span = StaticSpan(num_heads, max_span, init=span_init, shared=span_mode == "static_layer")
        self.persistent = persistent
        self.persistent_key = self.persistent_value = self.key_position_embeddings = None
        if persistent:
            self.persistent_key = nn.Parameter(torch.empty(num_heads, self.head_size, persistent))
            self.persistent_value = nn.Parameter(torch.empty(num_heads, persistent, self.head_size))
        if own_positions:
            rows = 2 * max_span - 1 if bidirectional else max_span
            self.key_position_embeddings = nn.Parameter(torch.empty(1, self.head_size, rows))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """New parameters of its own: those that no module within it holds."""
        if self.persistent_key is not None and self.persistent_value is not None:
            nn.init.normal_(self.persistent_key, std=self.head_size**-0.5)
            nn.init.normal_(self.persistent_value, std=self.persistent**-0.5)
        if self.key_position_embeddings is not None:
            nn.init.normal_(self.key_position_embeddings)

    def forward(
        self,
        hidden: Tensor,
        position_key: Tensor | None = None,
        memory: Tensor | None = None,
        key_mask: Tensor | None = None,
        reach: SpanReach | None = None,
        state: Any = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden: ``[B, T, E]``.
            position_key: of ``by_distance``: as many rows as the widest head of ``reach`` reads, or all. None with a
                table of its own.
            memory: ``[B, C, E]``, inputs of this layer that stood before.
            key_mask: bool ``[B, S]``, False: the key takes no part. In causal layers padding stands last, where no
                token sees it.
            reach: how far the heads look; None: not known on the host, they may look as far as they can.
            state: what generation keeps of this layer. It takes in the tokens; earlier ones are seen.
            output_attentions: also return the weights, which costs the memory that attention here avoids.

        Returns:
            ``[B, T, E]``; the spans in tokens, ``[H]`` or ``[B, H, T]``; and weights of all S keys ``[B, H, T, S]``,
            or None. Persistent vectors and zero cache have the rest of their sum.
        """
        query, span = split_heads(self.q_proj(hidden), self.num_heads), self.span(hidden)
        source = hidden if memory is None else torch.cat([memory.to(hidden.dtype), hidden], 1)
        reach = self._reach(span) if reach is None else reach
        if self.key_position_embeddings is not None:
            position_key = by_distance(
                self.key_position_embeddings, self.max_span, self.rows_read(reach), bidirectional=self.bidirectional
            )
        assert position_key is not None
        position_key = position_key.to(query.dtype)
        seed = self._draw_dropout(hidden.device)

        def attend(heads, query, key, value, key_mask=None, seed=seed) -> Tensor:
            some = take_heads(span, heads, 0 if span.dim() == 1 else 1)
            mask = None if self.zero_cache else key_mask
            options: dict[str, Any] = dict(heads=heads, reach=reach, key_mask=mask, seed=seed)
            return self.attend(query, key, value, position_key, some, **options)

        whole = [HeadGroup(None, source.shape[1])]
        continuing = state is not None and not state.is_empty
        if memory is None or output_attentions or torch.compiler.is_compiling():
            groups = whole
        else:
            needed = [self.rows_read(SpanReach([window], reach.trimmed)) for window in reach.windows]
            groups = group_heads(needed, hidden.shape[1], source.shape[1])
        keys, values = (project_heads(f, source, self.num_heads, groups) for f in (self.k_proj, self.v_proj))
        if continuing:
            out = span_step(state, query, keys[0], values[0], attend=attend, mask=key_mask)
            return self._join(out), span, None
        parts = []
        for at, (group, key, value) in enumerate(zip(groups, keys, values, strict=True)):
            some = take_heads(query, group.heads)
            mask = None if key_mask is None else key_mask[:, key_mask.shape[1] - group.rows :]
            parts.append(attend(group.heads, some, key, value, mask, None if seed is None else seed + 2 * at))
        out = parts[0] if len(parts) == 1 else join_groups(parts, groups)
        if state is not None:
            state.append(keys[0], values[0], key_mask)
        weights = None
        if output_attentions:
            key, value = keys[0], values[0]
            constant = attend(None, query, key, torch.zeros_like(value), key_mask, None)  # of persistent vectors
            weights = dense_weights(lambda value: attend(None, query, key, value, key_mask, None) - constant, value)
        return self._join(out), span, weights

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        position_key: Tensor,
        span: Tensor,
        *,
        heads: list[int] | None = None,
        reach: SpanReach | None = None,
        key_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> Tensor:
        """Attention of some heads, between the projections.

        Args:
            query: ``[B, h, T, D]``.
            key: ``[B, h, S, D]``, the queries' own the last T.
            value: ``[B, h, S, D]``.
            position_key: as in ``forward``.
            span: ``[h]`` or ``[B, h, T]``, in tokens.
            heads: which heads these are; None: all.
            reach: as in ``forward``.
            key_mask: bool ``[B, S]``.
            seed: of dropout; None: nothing is dropped.

        Returns:
            ``[B, h, T, D]``.
        """
        reach = SpanReach([self.max_span] * self.num_heads) if reach is None else reach
        windows = reach.windows if heads is None else [reach.windows[head] for head in heads]
        dropout_p = 0.0 if seed is None else self.dropout
        form: dict[str, Any] = dict(
            ramp=self.ramp, zero_cache=self.zero_cache, bidirectional=self.bidirectional, key_mask=key_mask
        )

        def nearest(rows: int) -> Tensor:
            have = (position_key.shape[1] + 1) // 2 if self.bidirectional else position_key.shape[1]
            return position_key[:, have - rows : have + rows - 1] if self.bidirectional else position_key[:, :rows]

        window = max(windows)
        out, lse = span_attention(
            query, key, value, nearest(window), span, max_span=window,
            dropout_p=dropout_p, dropout_seed=seed, return_lse=True, **form,
        )  # fmt: skip
        vectors = vectors_lse = None
        if self.persistent_key is not None and self.persistent_value is not None:
            keys, values = (take_heads(x, heads, 0) for x in (self.persistent_key, self.persistent_value))
            vectors, vectors_lse = persistent_attention(
                query,
                keys.mT * math.sqrt(self.head_size),
                values * math.sqrt(self.persistent),
                dropout_p=dropout_p,
                dropout_seed=None if seed is None else seed + 1,
            )
            out, lse = merge([out, vectors.to(out.dtype)], [lse, vectors_lse])
        if self.exact:
            return out
        rows = self.max_span - reach.trimmed
        _, window_lse = span_attention(
            query, key, value, nearest(rows), torch.full_like(span, rows), max_span=rows, return_lse=True, **form
        )
        if vectors_lse is not None:
            window_lse = torch.logaddexp(window_lse, vectors_lse)
        share = share_of_window(lse, window_lse)
        if self.renormalise:
            share = share / (share + self.epsilon)
        return out * share[..., None].to(out.dtype)

    @property
    def exact(self) -> bool:
        """Whether weights are divided by exactly their sum, so that what is out of reach does not matter."""
        return isinstance(self.span, FullSpan) or (self.renormalise and self.epsilon == 0)

    def rows_read(self, reach: SpanReach) -> int:
        """Distances that the widest of the heads looks at."""
        return max(reach.windows) if self.exact else max(*reach.windows, self.max_span - reach.trimmed)

    def _reach(self, span: Tensor) -> SpanReach:
        """Where nothing is known on the host, but can be had without waiting for a device, spans of tokens say it."""
        everything = SpanReach([self.max_span] * self.num_heads)
        if not isinstance(self.span, DynamicSpan) or torch.compiler.is_compiling() or span.device.type != "cpu":
            return everything
        if not span.numel():
            return everything
        longest = span.detach().amax((0, 2)).tolist()
        if any(math.isnan(value) for value in longest):
            raise ValueError(
                "spans are not finite: training has diverged. Try a lower learning rate, or a longer warm-up"
            )
        return SpanReach(head_windows(longest, self.num_heads, self.ramp, self.max_span))

    def _draw_dropout(self, device) -> Tensor | None:
        if not self.training or self.dropout == 0.0:
            return None
        return torch.randint(2**62, (), dtype=torch.int64, device=device)

    def _join(self, out: Tensor) -> Tensor:
        """``[B, H, T, D]`` -> ``[B, T, E]``, projected."""
        return self.o_proj(out.transpose(1, 2).flatten(2))
