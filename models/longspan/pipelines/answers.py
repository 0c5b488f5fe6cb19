"""From the logits of overlapping windows to ranked answers of one document.

Shapes: D tokens of the document, N document tokens of one window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.data.spans import Span, best_spans, merge_spans


def log_probabilities(
    logits: Sequence[Tensor], windows: Sequence[tuple[int, int]], null: Tensor | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Logits of all windows over one common normaliser, so that their scores can be compared.

    It is the softmax over the document: every token counts once, a token that several windows share with the highest
    of its logits. For a single window that is the ordinary softmax over its document tokens.

    Args:
        logits: for each window [N] logits of its document tokens, -inf where no answer may begin (or end).
        windows: for each window its document tokens [first, last).
        null: 0-dim logit of "no answer", one more outcome; ``None``: there is always an answer.

    Returns:
        For each window [N] log-probabilities, and that of ``null``.
    """
    best = torch.full((windows[-1][1],), -torch.inf, dtype=torch.float64)  # [D]
    for values, (first, last) in zip(logits, windows, strict=True):
        best[first:last] = torch.maximum(best[first:last], values.double())
    outcomes = best if null is None else torch.cat([best, null.double().reshape(1)])
    total = outcomes.logsumexp(0)
    return [values.double() - total for values in logits], None if null is None else null.double() - total


def rank_spans(
    starts: Sequence[Tensor],
    ends: Sequence[Tensor],
    windows: Sequence[tuple[int, int]],
    *,
    max_answer_tokens: int,
    top_k: int,
) -> list[Span]:
    """The ``top_k`` best spans of a document, best first, no two overlapping, each whole inside one window.

    The best span of all windows is taken, its tokens are taken away everywhere, and so on: exact, where a fixed number
    of candidates per window would be all variants of one answer.

    Args:
        starts: for each window [N] log-probabilities of being the first token.
        ends: for each window [N] log-probabilities of being the last token.
        windows: for each window its document tokens [first, last).
        max_answer_tokens: longest answer in tokens.
        top_k: number of spans; fewer come back when there are fewer.
    """
    allowed = torch.ones(windows[-1][1], dtype=torch.bool)  # [D]

    def best_of(index: int) -> list[Span]:
        first, last = windows[index]
        return best_spans(starts[index], ends[index], max_answer_tokens=max_answer_tokens, allowed=allowed[first:last])

    candidates = [best_of(index) for index in range(len(windows))]
    origins = [first for first, _ in windows]
    found: list[Span] = []
    while len(found) < top_k:
        best = merge_spans(candidates, origins, top_k=1)
        if not best:
            break
        found += best
        allowed[best[0].first : best[0].last + 1] = False
        for index, (first, last) in enumerate(windows):
            if first <= best[0].last and best[0].first < last:
                candidates[index] = best_of(index)
    return found
