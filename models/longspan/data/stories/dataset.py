"""Stories as numbers: a row of word ids for each sentence, and the answer as one of a fixed list of answers.

B stories, S sentences with the question, W words of the longest sentence.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from longspan.data.stories import moves, relations, sayings
from longspan.data.stories.story import DIRECTIONS, PEOPLE, PLACES, THINGS, Story, words_of

TASKS: dict[int, tuple[str, Callable[[Random], Story]]] = {
    1: ("one supporting fact", moves.one_fact),
    2: ("two supporting facts", moves.two_facts),
    3: ("three supporting facts", moves.three_facts),
    4: ("two arguments", relations.two_arguments),
    5: ("three arguments", moves.giving),
    6: ("yes or no", moves.yes_or_no),
    7: ("counting", moves.counting),
    8: ("lists", moves.listing),
    9: ("negation", sayings.negation),
    10: ("indefinite knowledge", sayings.indefinite),
    11: ("coreference", sayings.coreference),
    12: ("conjunction", sayings.conjunction),
    13: ("compound coreference", sayings.compound_coreference),
    14: ("time", sayings.time_order),
    15: ("deduction", relations.deduction),
    16: ("induction", relations.induction),
    17: ("positions", relations.positions),
    18: ("sizes", relations.sizes),
    19: ("finding a way", relations.way),
    20: ("wishes", relations.wishes),
}

_FRAMES = (  # words of facts and questions that are in none of the lists
    "a above afraid and are before below bigger carrying colour did do does either fit fits from gave give go "
    "he how in inside is left many not of or received right she take than the they things to took was went "
    "what where who why will you"
)


def _word_list() -> tuple[str, ...]:
    """Every word that a story can hold, in the order of the alphabet."""
    texts = [_FRAMES, *PEOPLE, *PLACES, *THINGS, *DIRECTIONS, *moves.MOVES, *moves.TAKES, *moves.DROPS, *moves.GIVES]
    texts += [*sayings.AFTERWARDS, *sayings.TIMES, *relations.SIDES, *relations.KINDS, *relations.KINDS.values()]
    texts += [*relations.COLOURS, *relations.SHAPES, *relations.CONTAINERS, *relations.WISHES]
    texts += [word for pair in relations.WISHES.values() for word in pair]
    return tuple(sorted({word for text in texts for word in words_of(text)}))


def _answer_list() -> tuple[str, ...]:
    """Every answer to every task."""
    lists = [",".join(held) for size in (1, 2, 3) for held in itertools.combinations(sorted(THINGS), size)]
    ways = [",".join(pair) for pair in itertools.product(DIRECTIONS, repeat=2)]
    plain = ["yes", "no", "maybe", "nothing", *moves.COUNTS, *PLACES, *PEOPLE, *relations.KINDS, *relations.COLOURS]
    return tuple(sorted({*plain, *lists, *ways, *relations.WISHES}))


WORDS = _word_list()
"""Vocabulary; the id of word ``WORDS[i]`` is ``i + 1``, 0 is padding."""
ANSWERS = _answer_list()
"""Classes that a model chooses among."""
_WORD_IDS = {word: number for number, word in enumerate(WORDS, 1)}
_ANSWER_IDS = {answer: number for number, answer in enumerate(ANSWERS)}


def make_story(task: int, seed: int, index: int = 0) -> Story:
    """Story number ``index`` of a task; the same for the same three numbers.

    Raises:
        ValueError: for a task that is not in `TASKS`.
    """
    if task not in TASKS:
        raise ValueError(f"task must be from 1 to {len(TASKS)}, got {task}")
    return TASKS[task][1](Random(f"{seed} {task} {index}"))


def encode_story(story: Story) -> dict[str, Any]:
    """Word ids of every sentence, the question last, and the number of the answer."""
    sentences = [[_WORD_IDS[word] for word in words_of(text)] for text in (*story.sentences, story.question)]
    return {"input_ids": sentences, "labels": _ANSWER_IDS[story.answer], "task": story.task}


class StoryDataset(Dataset[dict[str, Any]]):
    """Stories of some tasks, one task after the other. Item ``i`` depends on ``seed``, ``tasks`` and ``i`` alone.

    Each item has ``input_ids``, one list of word ids for each sentence, ``labels``, a number in `ANSWERS`, and
    ``task``; `story` gives the text. `StoryCollator` makes batches.

    Args:
        tasks: numbers in `TASKS`.
        count: number of stories.
        seed: of all of them; sets of different seeds share a story by chance only.
    """

    def __init__(self, tasks: Sequence[int], count: int, *, seed: int) -> None:
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise ValueError(f"tasks must be numbers from 1 to {len(TASKS)}, got {list(tasks)}")
        self.tasks, self.count, self.seed = tuple(tasks), count, seed

    def __len__(self) -> int:
        return self.count

    def story(self, index: int) -> Story:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return make_story(self.tasks[index % len(self.tasks)], self.seed, index // len(self.tasks))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return encode_story(self.story(index))


class StoryCollator:
    """Batches of stories: ``input_ids [B, S, W]``, ``attention_mask [B, S]``, ``labels [B]``, ``task`` left out."""

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        rows = [feature["input_ids"] for feature in features]
        sentences, words = max(map(len, rows)), max(len(sentence) for row in rows for sentence in row)
        blank = [0] * words
        padded = [
            [*(sentence + blank[len(sentence) :] for sentence in row), *([blank] * (sentences - len(row)))]
            for row in rows
        ]
        ids = torch.tensor(padded)
        labels = torch.tensor([feature["labels"] for feature in features])
        return {"input_ids": ids, "attention_mask": (ids != 0).any(-1).long(), "labels": labels}
