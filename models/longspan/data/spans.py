"""Windows over a document, character offsets, and answer spans: the one place for all three.

Shapes: T tokens of the document (or of one window of it), L longest answer in tokens.
Token spans are (first, last), both inclusive; character spans and windows are [start, end), as in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Span(NamedTuple):
    """An answer candidate: ``score`` is the sum of its start and end logits, ``first`` and ``last`` are its tokens."""

    score: float
    first: int
    last: int


def split_windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Windows [start, end) of at most ``size`` tokens that cover [0, length).

    Neighbours share ``overlap`` tokens, the last two possibly more: the last window is moved back so that it is full
    too, and the last words of a document are read with as much context as all others. An empty document has none.

    Args:
        length: tokens of the document.
        size: longest window, in tokens.
        overlap: tokens shared by two neighbours, smaller than ``size``.

    Raises:
        ValueError: when a length is negative or the windows would not advance.
    """
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    if size < 1:
        raise ValueError(f"size must be at least 1 token, got {size}")
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must be in [0, size) = [0, {size}), got {overlap}")
    if length <= size:
        return [(0, length)] if length else []
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def char_span_to_tokens(offsets: Any, start_char: int, end_char: int) -> tuple[int, int]:
    """The first and the last token (inclusive) that hold the characters [start_char, end_char).

    Args:
        offsets: [T, 2] character offsets in text order, as a fast tokenizer gives them (list, array or tensor).
            ``None`` and empty entries (special tokens, padding, the question) belong to no text and are passed over.
        start_char: first character of the span.
        end_char: one past its last character.

    Raises:
        ValueError: when the span is empty, or the tokens do not reach over it (it was cut off).
    """
    if start_char < 0 or end_char <= start_char:
        raise ValueError(f"the span [start_char, end_char) must hold a character, got [{start_char}, {end_char})")
    table = _offset_table(offsets)
    text = np.flatnonzero(table[:, 1] > table[:, 0])
    starts, ends = table[text, 0], table[text, 1]
    if len(text) == 0 or start_char < starts[0] or end_char > ends[-1]:
        reach = f"characters [{starts[0]}, {ends[-1]})" if len(text) else "no characters"
        raise ValueError(f"the span [{start_char}, {end_char}) is outside the tokens given, which cover {reach}")
    first = int(np.searchsorted(ends, start_char, side="right"))  # first token that ends after the span begins
    last = int(np.searchsorted(starts, end_char, side="left")) - 1  # last token that begins before the span ends
    if last < first:
        raise ValueError(f"the span [{start_char}, {end_char}) lies between two tokens and holds none (only spaces?)")
    return int(text[first]), int(text[last])


def token_span_to_chars(offsets: Any, first: int, last: int) -> tuple[int, int]:
    """The characters [start, end) that the tokens ``first`` to ``last`` (inclusive) cover.

    Args:
        offsets: [T, 2] character offsets, see `char_span_to_tokens`.
        first: first token.
        last: last token, inclusive.

    Raises:
        ValueError: when the tokens are out of range or hold no text.
    """
    if not 0 <= first <= last < len(offsets):
        raise ValueError(f"wanted 0 <= first <= last < {len(offsets)} (tokens given), got first={first}, last={last}")
    table = _offset_table(offsets[first : last + 1])
    table = table[table[:, 1] > table[:, 0]]
    if len(table) == 0:
        raise ValueError(f"the tokens {first} to {last} hold no text: they are special tokens, padding or the question")
    return int(table[:, 0].min()), int(table[:, 1].max())


def best_spans(
    start_logits: Any, end_logits: Any, *, max_answer_tokens: int, top_k: int = 1, allowed: Any = None
) -> list[Span]:
    """The ``top_k`` best spans by start logit plus end logit, distinct, best first.

    Exact: every span of up to ``max_answer_tokens`` is looked at, in memory linear in T (one pass per answer length).

    Args:
        start_logits: [T] logits of being the first token.
        end_logits: [T] logits of being the last token.
        max_answer_tokens: longest answer in tokens.
        top_k: number of spans; fewer come back when there are fewer.
        allowed: [T] bool, tokens that may be part of an answer; a span holds allowed tokens only. ``None``: all.

    Raises:
        ValueError: when shapes differ or a number is below 1.
    """
    start, end = torch.as_tensor(start_logits).detach().float(), torch.as_tensor(end_logits).detach().float()
    if start.dim() != 1 or start.shape != end.shape:
        raise ValueError(f"logits must be two [T] vectors, got {list(start.shape)} and {list(end.shape)}")
    if max_answer_tokens < 1:
        raise ValueError(f"max_answer_tokens must be at least 1, got {max_answer_tokens}")
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    blocked_before = None
    if allowed is not None:
        mask = torch.as_tensor(allowed, device=start.device).bool()
        if mask.shape != start.shape:
            raise ValueError(f"allowed must be a [T] = {list(start.shape)} mask, got {list(mask.shape)}")
        blocked_before = torch.cat([mask.new_zeros(1, dtype=torch.long), (~mask).cumsum(0)])  # [T + 1]

    best: list[Span] = []
    for extra in range(min(max_answer_tokens, len(start))):  # spans of extra + 1 tokens
        scores = start[: len(start) - extra] + end[extra:]
        if blocked_before is not None:
            holds_blocked = blocked_before[extra + 1 :] > blocked_before[: len(scores)]
            scores = scores.masked_fill(holds_blocked, -torch.inf)
        best += _top(scores, extra, top_k)
        best = sorted(best, key=_rank)[:top_k]
    return best


def merge_spans(candidates: Sequence[Sequence[Span]], starts: Sequence[int], *, top_k: int | None = None) -> list[Span]:
    """One ranked list for a document from the candidates of its windows.

    The windows share tokens, so the same answer is found twice, often with other edges: of spans that overlap in the
    document only the best stays.

    Args:
        candidates: for each window, spans in tokens of that window.
        starts: for each window, its first token in the document.
        top_k: keep so many; ``None``: all.

    Returns:
        Spans in tokens of the document, best first, no two overlapping.
    """
    if len(candidates) != len(starts):
        raise ValueError(
            f"starts must name one first token per window: got {len(starts)} for {len(candidates)} windows"
        )
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1 or None, got {top_k}")
    shifted = [
        Span(span.score, span.first + start, span.last + start)
        for spans, start in zip(candidates, starts, strict=True)
        for span in spans
    ]
    kept: list[Span] = []
    for span in sorted(shifted, key=_rank):
        if len(kept) == top_k:
            break
        if all(span.last < other.first or other.last < span.first for other in kept):
            kept.append(span)
    return kept


def _top(scores: Tensor, extra: int, top_k: int) -> list[Span]:
    values, firsts = scores.topk(min(top_k, len(scores)))
    pairs = zip(values.tolist(), firsts.tolist(), strict=True)
    return [Span(value, first, first + extra) for value, first in pairs if value > -torch.inf]


def _rank(span: Span) -> tuple[float, int, int]:
    """Best score first; at equal scores the earlier, then the shorter span, so that the order is fixed."""
    return (-span.score, span.first, span.last)


def _offset_table(offsets: Any) -> np.ndarray:
    """[T, 2] int64; ``None`` becomes an empty entry."""
    if not isinstance(offsets, np.ndarray | Tensor):
        offsets = [(0, 0) if pair is None else pair for pair in offsets]
    table = np.asarray(offsets, dtype=np.int64)
    if table.size == 0:
        return table.reshape(0, 2)
    if table.ndim != 2 or table.shape[1] != 2:
        raise ValueError(f"offsets must be pairs (start, end), [T, 2], got shape {list(table.shape)}")
    return table
