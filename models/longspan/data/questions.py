"""Questions on the agreements whose answers are spans of the unchanged text.

Two sets. The questions are templates, the answers were found by the wording of the documents themselves, so a rule that
knows the wording answers most of them too: report it beside every model.

* ``governing_law``: "Which law governs this agreement?" One question for all documents, so the question gives no key
  to look for; the answer mostly stands thousands of tokens into the text. Other places named by the same clauses, and
  the short form of "State of California", count as right.
* ``definitions``: 'What does "Contributor" mean in this agreement?' The answer is the definition up to its first full
  stop or semicolon. In the training part every (term, definition) pair occurs once, however many agreements share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from longspan.data import agreements, families
from longspan.data.agreements import Agreement, read_agreements
from longspan.data.cached import SPLITS, cached_splits
from longspan.data.packages import AGREEMENTS

FEATURES = Features(
    {
        "id": Value("string"),
        "title": Value("string"),
        "family": Value("string"),
        "question": Value("string"),
        "context": Value("large_string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)

_PLACE = (
    r"((?:(?:[Ss]tate|[Pp]rovince|[Cc]ommonwealth|[Rr]epublic|[Kk]ingdom) of )?"
    r"[A-Z][A-Za-z]+(?: (?:of (?:the )?)?[A-Z][A-Za-z]+){0,4})"
)
_CLAUSE = r"(?:governed|construed|interpreted)\b"
_LAW_OF_PLACE = re.compile(rf"{_CLAUSE}[^.;]{{0,140}}?\b[Ll]aws? (?:in force |applicable )?(?:of|in) (?:the )?{_PLACE}")
_ADJECTIVE_LAW = re.compile(
    rf"{_CLAUSE}[^.;]{{0,60}}?(?:by|with|under|to) (?:the )?([A-Z][a-z]+(?: [A-Z][a-z]+)?) (?:[Ll]aws?|legislation)\b"
)
_JOINED_PLACE = re.compile(rf"(?:and|or|,)(?: (?:by|of|the|federal|internal|applicable|laws?|under|in))* {_PLACE}")
_CLAUSE_END = re.compile(r"[.;]|excluding|without|exclusive|except|regard|conflict")
_KIND_OF_PLACE = re.compile(r"^(?:[Ss]tate|[Pp]rovince|[Cc]ommonwealth) of ")
_NO_PLACE = re.compile(r"United Nations|Sale of|Convention|Member State")
_NO_PLACE_FIRST_WORDS = {
    *("Agreement", "Any", "Applicable", "Company", "Copyright", "Country", "Federal", "Governing", "In", "Our", "This"),
    *("Jurisdiction", "Licensee", "Licensor", "Licensors", "Oracle", "Software", "The", "Work", "You", "Your"),
}
_NO_PLACES = {"State", "United Nations"}

_DEFINITION = re.compile(r'["“]([A-Z][^"”]{1,50})["”]\s+(?:means|shall mean|refers to)\s*:?\s+')
_DEFINITION_END = re.compile(r"[.;](?=\s)")
_DEFINITION_WORDS = 60
_DEFINING_DOCUMENT = 3000  # characters; shorter texts that define terms are excerpts

Answer = tuple[str, int]  # text, first character


def load_questions(kind: str) -> DatasetDict:
    """One of the two sets, split so that train, validation and test share no family. Built in seconds, then cached.

    Columns as in SQuAD: ``id``, ``title``, ``family``, ``question``, ``context`` (the whole document), ``answers`` with
    ``text`` and ``answer_start`` of every accepted answer, the first one being the one to train on.

    Args:
        kind: ``governing_law`` or ``definitions``.
    """
    if kind not in _FINDERS:
        raise ValueError(f"kind must be one of {sorted(_FINDERS)}, got {kind!r}")
    return cached_splits(f"questions-{kind}", lambda: _build(kind), [AGREEMENTS], families, agreements)


def governing_law(text: str) -> list[Answer]:
    """Accepted answers to "Which law governs this agreement?", the first clause's place first; empty if none."""
    matches = [match for pattern in (_LAW_OF_PLACE, _ADJECTIVE_LAW) for match in pattern.finditer(text)]
    matches = sorted((m for m in matches if _is_place(m[1])), key=lambda match: match.start(1))
    if not matches:
        return []
    found = [(match[1], match.start(1)) for match in matches]
    after = matches[0].end(1)
    clause = text[after : after + 160]
    end = _CLAUSE_END.search(clause)
    for match in _JOINED_PLACE.finditer(clause[: end.start()] if end else clause):
        if _is_place(match[1]) and len(match[1]) > 3 and not _NO_PLACE.search(match[1]):
            found.append((match[1], after + match.start(1)))
    for place, start in tuple(found):
        kind = _KIND_OF_PLACE.match(place)
        if kind:
            found.append((place[kind.end() :], start + kind.end()))
    first_of: dict[str, int] = {}
    for place, start in found:
        first_of.setdefault(place, start)
    return list(first_of.items())


def definitions(text: str) -> Iterator[tuple[str, Answer]]:
    """Every term that the agreement defines, with its definition; a term that is defined twice counts once."""
    if len(text) < _DEFINING_DOCUMENT:
        return
    seen = set()
    for match in _DEFINITION.finditer(text):
        term, start = match[1], match.end()
        end = _DEFINITION_END.search(text, start, start + 600)
        if term in seen or end is None or end.start() - start < 12:
            continue
        answer = text[start : end.start()]
        if len(answer.split()) <= _DEFINITION_WORDS:
            seen.add(term)
            yield term, (answer, start)


def _is_place(words: str) -> bool:
    return words.split()[0] not in _NO_PLACE_FIRST_WORDS and words not in _NO_PLACES


def _law_rows(agreement: Agreement) -> Iterator[dict[str, Any]]:
    answers = governing_law(agreement.text)
    if answers:
        yield _row(agreement, "law", "Which law governs this agreement?", answers)


def _definition_rows(agreement: Agreement) -> Iterator[dict[str, Any]]:
    for number, (term, answer) in enumerate(definitions(agreement.text)):
        yield _row(agreement, f"term-{number}", f'What does "{term}" mean in this agreement?', [answer])


_FINDERS: dict[str, Callable[[Agreement], Iterator[dict[str, Any]]]] = {
    "governing_law": _law_rows,
    "definitions": _definition_rows,
}


def _row(agreement: Agreement, suffix: str, question: str, answers: list[Answer]) -> dict[str, Any]:
    for answer, start in answers:
        assert agreement.text[start : start + len(answer)] == answer, (agreement.name, answer, start)
    return {
        "id": f"{agreement.name}/{suffix}",
        "title": agreement.name,
        "question": question,
        "context": agreement.text,
        "answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]},
    }


def _build(kind: str) -> DatasetDict:
    rows = {name: [row for one in read_agreements() for row in find(one)] for name, find in _FINDERS.items()}
    texts = {row["title"]: row["context"] for found in rows.values() for row in found}
    family = families.find_families(texts)  # of both sets together, so that they can be mixed without a leak
    asked = dict.fromkeys((row["title"] for row in rows["governing_law"]), 1.0)
    split = families.draw_split(family, asked, test=0.25, validation=0.15, largest=25)
    parts: dict[str, list[dict[str, Any]]] = {part: [] for part in SPLITS}
    seen = set()
    for row in rows[kind]:
        part = split[row["title"]]
        pair = (row["question"], row["answers"]["text"][0])
        if kind == "definitions" and part == "train":
            if pair in seen:
                continue
            seen.add(pair)
        parts[part].append({**row, "family": family[row["title"]]})
    return DatasetDict({part: Dataset.from_list(parts[part], features=FEATURES) for part in SPLITS})
