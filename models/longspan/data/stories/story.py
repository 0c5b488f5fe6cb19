"""One story with a question, and the words that stories are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass

WOMEN = ("Anna", "Clara", "Emma", "Grace")
MEN = ("Ben", "David", "Felix", "Henry")
PEOPLE = WOMEN + MEN
PLACES = ("kitchen", "garden", "office", "hallway", "bedroom", "cellar", "library")
THINGS = ("ball", "cup", "book", "lamp")
DIRECTIONS = ("north", "east", "south", "west")


@dataclass(frozen=True)
class Story:
    """Facts, a question about them, and the answer.

    Args:
        task: 1 to 20, see `TASKS`.
        sentences: the facts, in the order in which they are told.
        question: asked after all of them.
        answer: one word; where it is a list, words with commas between, as "ball,cup".
        supporting: numbers of the sentences that the answer follows from, in rising order.
    """

    task: int
    sentences: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]


def words_of(sentence: str) -> list[str]:
    """Its words in small letters, without full stop and question mark."""
    return re.findall(r"[a-z]+", sentence.lower())
