"""Questions on documents as tokens: encoded once, then read whole, cut, slid over, or in short training windows.

Shapes: P tokens before the document (the question and its separators), T tokens of the document.
A reading is the model's input for one question and one window [start, end) of the document's tokens. Its position ids
count from the start of the document, so a window stands where it stands in the whole text.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from longspan.data.spans import char_span_to_tokens


@dataclass(frozen=True)
class EncodedQuestion:
    """A question, its document, and its answer, in tokens.

    Args:
        name: the row's ``id``.
        family: of its document.
        question: its text.
        context: text of the document.
        accepted: texts of the accepted answers.
        prefix: [P] token ids before the document.
        prefix_types: [P] their token types.
        suffix: token ids after the document (a separator).
        document: [T] token ids of the document, without special tokens.
        offsets: [T, 2] character offsets of the document's tokens.
        first: first token of the answer to train on.
        last: its last token, inclusive.
        first_position: the position id of the first token of a text (0; RoBERTa's embedding table reserves rows).
    """

    name: str
    family: str
    question: str
    context: str
    accepted: list[str]
    prefix: list[int]
    prefix_types: list[int]
    suffix: list[int]
    document: np.ndarray
    offsets: np.ndarray
    first: int
    last: int
    first_position: int = 0

    @property
    def length(self) -> int:
        """Tokens of the document, T."""
        return len(self.document)

    @property
    def special(self) -> int:
        """Tokens of a reading that are not of the document."""
        return len(self.prefix) + len(self.suffix)

    def cut(self, kept: int) -> EncodedQuestion:
        """The same question on the first ``kept`` tokens of its document."""
        if self.last >= kept:
            raise ValueError(f"the answer of {self.name} ends at token {self.last}, after the {kept} that are kept")
        return replace(self, document=self.document[:kept], offsets=self.offsets[:kept])

    def reading(self, start: int, end: int) -> dict[str, list[int]]:
        """The model's input for the document's tokens [start, end), without the answer."""
        before, size, after = len(self.prefix), end - start, len(self.suffix)
        document_start = self.first_position + before + start
        return {
            "input_ids": [*self.prefix, *self.document[start:end].tolist(), *self.suffix],
            "token_type_ids": [*self.prefix_types, *[1] * (size + after)],
            "position_ids": [
                *range(self.first_position, self.first_position + before),
                *range(document_start, document_start + size + after),
            ],
            "global_attention_mask": [1] * before + [0] * (size + after),
        }


def encode_questions(rows: Iterable[Any], tokenizer: Any, *, first_position: int = 0) -> list[EncodedQuestion]:
    """Tokenize rows in SQuAD form; every document once, however many questions it has.

    Args:
        rows: rows of `load_questions`.
        tokenizer: a fast tokenizer.
        first_position: see `EncodedQuestion`.
    """
    rows = list(rows)
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    encoded = tokenizer(
        contexts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        truncation=False,
        verbose=False,
    )
    documents = {
        context: (np.array(ids, dtype=np.int64), np.array(offsets, dtype=np.int64).reshape(-1, 2))
        for context, ids, offsets in zip(contexts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    }
    frames = {question: _frame(question, tokenizer) for question in {row["question"] for row in rows}}
    questions = []
    for row in rows:
        document, offsets = documents[row["context"]]
        prefix, prefix_types, suffix = frames[row["question"]]
        text, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
        first, last = char_span_to_tokens(offsets, start, start + len(text))
        questions.append(
            EncodedQuestion(
                name=row["id"],
                family=row["family"],
                question=row["question"],
                context=row["context"],
                accepted=list(row["answers"]["text"]),
                prefix=prefix,
                prefix_types=prefix_types,
                suffix=suffix,
                document=document,
                offsets=offsets,
                first=first,
                last=last,
                first_position=first_position,
            )
        )
    return questions


class ShortWindows(Dataset[dict[str, Any]]):
    """Short windows of long documents for training, each around its answer, at its true place in the document.

    The answer stands at a random place of the window. All windows of a batch have one random length (log-uniform), so
    nothing is padded; the number of windows is fixed beforehand. Item i depends on (seed, i) alone: the order is that
    of the indices (``train_sampling_strategy="sequential"``), and a resumed run continues exactly.

    Args:
        questions: what to train on.
        batch_size: windows of one length that follow each other.
        batches: number of batches.
        shortest: of a reading, in tokens, question included.
        longest: of a reading.
        seed: draws order, lengths and places.
    """

    def __init__(
        self,
        questions: Sequence[EncodedQuestion],
        *,
        batch_size: int,
        batches: int,
        shortest: int,
        longest: int,
        seed: int,
    ) -> None:
        if not questions:
            raise ValueError("questions must hold at least one question, got none")
        if not 0 < shortest <= longest:
            raise ValueError(f"wanted 0 < shortest <= longest, got shortest={shortest}, longest={longest}")
        self.questions = list(questions)
        self.batch_size, self.batches = batch_size, batches
        self.shortest, self.longest, self.seed = shortest, longest, seed
        order = random.Random(f"{seed} order")
        rounds = -(-batch_size * batches // len(self.questions))
        self._order = [n for _ in range(rounds) for n in order.sample(range(len(questions)), len(questions))]
        self._sizes = [self._size(batch) for batch in range(batches)]

    def __len__(self) -> int:
        return self.batch_size * self.batches

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        question = self.questions[self._order[index]]
        size = self._sizes[index // self.batch_size] - question.special
        draw = random.Random(f"{self.seed} window {index}")
        earliest = max(0, question.last + 1 - size)
        start = draw.randint(earliest, max(earliest, min(question.first, len(question.document) - size)))
        end = min(start + size, len(question.document))
        shift = len(question.prefix) - start
        return {
            **question.reading(start, end),
            "start_positions": question.first + shift,
            "end_positions": question.last + shift,
        }

    @property
    def tokens(self) -> int:
        """Tokens of all readings together."""
        return self.batch_size * sum(self._sizes)

    def _size(self, batch: int) -> int:
        """Length of every reading in a batch: a random one, that its longest answer and shortest document allow."""
        draw = random.Random(f"{self.seed} length {batch}")
        size = int(math.exp(draw.uniform(math.log(self.shortest), math.log(self.longest))))
        members = self._order[batch * self.batch_size : (batch + 1) * self.batch_size]
        questions = [self.questions[member] for member in members]
        size = min(size, *(len(one.document) + one.special for one in questions), size)
        return max(size, *(one.last - one.first + 1 + one.special for one in questions))


def _frame(question: str, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """What the tokenizer puts before a document (ids and token types) and after it."""
    pair = tokenizer(question, "a", return_token_type_ids=True)
    sequence = pair.sequence_ids(0)
    start = sequence.index(1)
    end = len(sequence) - sequence[::-1].index(1)
    return list(pair["input_ids"][:start]), list(pair["token_type_ids"][:start]), list(pair["input_ids"][end:])
