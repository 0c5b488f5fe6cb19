"""Answers without a model: what a score on these questions has to beat.

The answers were found by the documents' own wording, so a rule that knows the wording does well: these rows say how
much of a score is the markup.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from longspan.data.reading import EncodedQuestion
from longspan.training.evaluation import Result, judge

_AFTER_LAW_OF = re.compile(r"\blaws? of (?:the )?([A-Z][A-Za-z]+(?: (?:of|[A-Z][A-Za-z]+)){0,4})")
_SENTENCE_END = re.compile(r"[.;](?=\s)")
_LONGEST = 150  # characters of a definition without an end


def most_frequent(train: Sequence[EncodedQuestion], test: Sequence[EncodedQuestion]) -> Result:
    """The most frequent answer of the training part, always."""
    answer = _ranked(train)[0]
    return _result(test, lambda question: answer)


def most_frequent_present(train: Sequence[EncodedQuestion], test: Sequence[EncodedQuestion]) -> Result:
    """The most frequent answer of the training part that occurs in the text."""
    ranked = _ranked(train)
    return _result(test, lambda question: next((answer for answer in ranked if answer in question.context), ""))


def law_rule(test: Sequence[EncodedQuestion]) -> Result:
    """The capitalised words after the first "law of" or "laws of"."""

    def answer(question: EncodedQuestion) -> str:
        match = _AFTER_LAW_OF.search(question.context)
        return match[1] if match else ""

    return _result(test, answer)


def definition_rule(test: Sequence[EncodedQuestion]) -> Result:
    """What follows the first mention of the quoted term and one more word, up to the end of the sentence."""

    def answer(question: EncodedQuestion) -> str:
        term = re.search(r'"(.+)"', question.question)
        place = term and re.search(rf'["“]{re.escape(term[1])}["”]\s+\S+(?: mean)?\s+', question.context)
        if not place:
            return ""
        rest = question.context[place.end() : place.end() + 600]
        end = _SENTENCE_END.search(rest)
        return rest[: end.start() if end else _LONGEST]

    return _result(test, answer)


def _ranked(train: Sequence[EncodedQuestion]) -> list[str]:
    return [answer for answer, _ in Counter(question.accepted[0] for question in train).most_common()]


def _result(test: Sequence[EncodedQuestion], answer: Callable[[EncodedQuestion], str]) -> Result:
    return Result([judge(question, answer(question)) for question in test])
