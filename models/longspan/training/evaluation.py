"""Answers of a question-answering model over documents read whole, cut, or slid over, and how right they are.

Shapes: P tokens before the document, T tokens of the window.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from longspan.data.reading import EncodedQuestion
from longspan.data.spans import Span, best_spans, merge_spans, split_windows, token_span_to_chars
from longspan.training.answer_metric import exact_match, f1


class Readable(Protocol):
    """What can be read in windows: one question or several on a document of ``length`` tokens."""

    @property
    def length(self) -> int: ...

    @property
    def special(self) -> int: ...


Windows = Callable[[Readable], list[tuple[int, int]]]


@dataclass(frozen=True)
class Answered:
    """A question, the answer given to it, and how right it is.

    Args:
        question: what was asked.
        text: the answer given.
        start: its first character in the document (-1 where the answer is not a place, as a constant answer).
        exact_match: 1.0 or 0.0.
        f1: 0.0 to 1.0.
    """

    question: EncodedQuestion
    text: str
    start: int
    exact_match: float
    f1: float


@dataclass(frozen=True)
class Result:
    """All answers of one method, and what they cost.

    Args:
        answered: one per question.
        tokens: read by the model, all windows together.
        seconds: wall time.
    """

    answered: list[Answered]
    tokens: int = 0
    seconds: float = 0.0

    @property
    def exact_match(self) -> float:
        return _mean([one.exact_match for one in self.answered])

    @property
    def f1(self) -> float:
        return _mean([one.f1 for one in self.answered])

    def by_position(self, edges: Sequence[int]) -> list[tuple[int, float | None]]:
        """Number of questions and exact match by the place of the answer's last token.

        Args:
            edges: bounds in tokens of the document; k bounds make k + 1 classes.
        """
        bounds = [0, *edges, 1 << 62]
        classes = []
        for low, high in itertools.pairwise(bounds):
            inside = [one.exact_match for one in self.answered if low <= one.question.last < high]
            classes.append((len(inside), _mean(inside) if inside else None))
        return classes


def whole(longest: int) -> Windows:
    """The whole document in one pass, up to ``longest`` tokens with the question; overlapping windows beyond that."""

    def windows(asked: Readable) -> list[tuple[int, int]]:
        size = longest - asked.special
        return split_windows(asked.length, size, min(128, size // 2))

    return windows


def cut(size: int) -> Windows:
    """The first ``size`` tokens, question included; what comes after is never seen."""
    return lambda asked: [(0, min(asked.length, size - asked.special))]


def slide(size: int, overlap: int) -> Windows:
    """Windows of ``size`` tokens, question included, that share ``overlap``; the best span of all of them counts."""
    return lambda asked: split_windows(asked.length, size - asked.special, overlap)


def judge(question: EncodedQuestion, text: str, start: int = -1) -> Answered:
    """Compare one answer with the accepted ones."""
    return Answered(question, text, start, exact_match(text, question.accepted), f1(text, question.accepted))


@torch.no_grad()
def answer_questions(
    model: Any,
    questions: Iterable[EncodedQuestion],
    windows: Windows,
    *,
    max_answer_tokens: int,
    autocast: torch.dtype | None = None,
) -> Result:
    """Ask a model every question, one document at a time.

    Args:
        model: a question-answering model; it is set to evaluation mode.
        questions: what to ask.
        windows: how to read: `whole`, `cut` or `slide`.
        max_answer_tokens: longest answer.
        autocast: run under autocast of this type; ``None``: as the weights are.
    """
    model.eval()
    answered, tokens, began = [], 0, time.perf_counter()
    for question in questions:
        found, starts = [], []
        for start, end in windows(question):
            inputs = {
                name: torch.tensor([row], device=model.device) for name, row in question.reading(start, end).items()
            }
            with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
                output = model(**inputs)
            inside = slice(len(question.prefix), len(question.prefix) + end - start)  # the document's tokens
            found.append(
                best_spans(
                    output.start_logits[0, inside], output.end_logits[0, inside], max_answer_tokens=max_answer_tokens
                )
            )
            starts.append(start)
            tokens += inputs["input_ids"].shape[1]
        answered.append(take(question, merge_spans(found, starts, top_k=1)))
    return Result(answered, tokens, time.perf_counter() - began)


def take(question: EncodedQuestion, spans: Sequence[Span]) -> Answered:
    """The first of ranked spans in tokens of the document, as an answer."""
    if not spans:
        return judge(question, "")
    start, end = token_span_to_chars(question.offsets, spans[0].first, spans[0].last)
    return judge(question, question.context[start:end], start)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
