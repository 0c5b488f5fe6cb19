"""Several questions on one document in one pass: ``[CLS] question [SEP] question [SEP] ... document [SEP]``.

Shapes: Q questions, P tokens before the document, T tokens of the document.
`question_index` [P + T + 1] says which question a token belongs to, -1 for all other tokens.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from longspan.data.reading import EncodedQuestion


@dataclass(frozen=True)
class QuestionGroup:
    """Questions on one document that are asked in one pass."""

    questions: tuple[EncodedQuestion, ...]

    @property
    def special(self) -> int:
        """Tokens of a reading that are not of the document."""
        return len(self._prefix()[0]) + len(self.questions[0].suffix)

    @property
    def before(self) -> int:
        """Tokens before the document, P."""
        return len(self._prefix()[0])

    @property
    def length(self) -> int:
        """Tokens of the document, T."""
        return len(self.questions[0].document)

    def reading(self, start: int, end: int) -> dict[str, list[int]]:
        """The model's input for the document's tokens [start, end), without the answers."""
        first = self.questions[0]
        prefix, index = self._prefix()
        before, after, size = len(prefix), len(first.suffix), end - start
        offset = first.first_position
        return {
            "input_ids": [*prefix, *first.document[start:end].tolist(), *first.suffix],
            "token_type_ids": [0] * before + [1] * (size + after),
            "position_ids": [
                *range(offset, offset + before),
                *range(offset + before + start, offset + before + end + after),
            ],
            "global_attention_mask": [1] * before + [0] * (size + after),
            "question_index": [*index, *[-1] * (size + after)],
        }

    def _prefix(self) -> tuple[list[int], list[int]]:
        """Token ids before the document, and the question each belongs to (separators close their question)."""
        ids, index = [self.questions[0].prefix[0]], [-1]
        for number, question in enumerate(self.questions):
            ids += question.prefix[1:]
            index += [number] * (len(question.prefix) - 1)
        return ids, index


def group_questions(questions: Iterable[EncodedQuestion], most: int) -> list[QuestionGroup]:
    """All questions, those of one document together, up to ``most`` in a group."""
    by_document: defaultdict[str, list[EncodedQuestion]] = defaultdict(list)
    for question in questions:
        by_document[question.context].append(question)
    return [
        QuestionGroup(tuple(asked[start : start + most]))
        for asked in by_document.values()
        for start in range(0, len(asked), most)
    ]


class SeveralQuestionWindows(Dataset[dict[str, Any]]):
    """Short windows for training, each with up to ``most`` questions whose answers lie in it.

    Item i is drawn around one question, which comes from shuffled rounds through ``questions``, with a random size
    (log-uniform) at a random place that holds its answer; other questions of the document that the window can answer
    join it. As in `ShortWindows` item i depends on (seed, i) alone, so a resumed run continues exactly.

    Args:
        questions: what to train on; one that occurs twice is drawn twice as often.
        windows: number of items.
        shortest: of the document's part of a window, in tokens.
        longest: of it.
        most: questions in a window.
        seed: draws order, sizes, places and companions.
    """

    def __init__(
        self, questions: Sequence[EncodedQuestion], *, windows: int, shortest: int, longest: int, most: int, seed: int
    ) -> None:
        if not questions:
            raise ValueError("questions must hold at least one question, got none")
        if not 0 < shortest <= longest:
            raise ValueError(f"wanted 0 < shortest <= longest, got shortest={shortest}, longest={longest}")
        if most < 1:
            raise ValueError(f"most must be at least 1 question, got {most}")
        self.questions = list(questions)
        self.windows, self.shortest, self.longest, self.most, self.seed = windows, shortest, longest, most, seed
        order = random.Random(f"{seed} order")
        rounds = -(-windows // len(self.questions))
        self._order = [n for _ in range(rounds) for n in order.sample(range(len(questions)), len(questions))]
        self._of_document: defaultdict[str, dict[str, EncodedQuestion]] = defaultdict(dict)
        for question in self.questions:
            self._of_document[question.context][question.name] = question

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        draw = random.Random(f"{self.seed} window {index}")
        asked = self.questions[self._order[index]]
        length = len(asked.document)
        size = int(math.exp(draw.uniform(math.log(self.shortest), math.log(self.longest))))
        size = min(length, max(size, asked.last - asked.first + 1))
        earliest = max(0, asked.last + 1 - size)
        start = draw.randint(earliest, max(earliest, min(asked.first, length - size)))
        others = [
            other
            for other in self._of_document[asked.context].values()
            if other.name != asked.name and other.first >= start and other.last < start + size
        ]
        group = [asked, *draw.sample(others, min(len(others), self.most - 1))]
        draw.shuffle(group)
        together = QuestionGroup(tuple(group))
        shift = together.before - start
        return {
            **together.reading(start, start + size),
            "start_positions": [question.first + shift for question in group],
            "end_positions": [question.last + shift for question in group],
        }
