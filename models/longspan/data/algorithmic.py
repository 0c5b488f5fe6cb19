"""Sequences of digits to be copied, reversed or added: what a model must compute at every length, not remember.

As in the code behind the published figures, numbers are written with their units first, so that a sum can be said digit
by digit with a carry, and inputs and outputs alike have the end behind them: what reverses finds there where to begin,
what copies where to stop, at any length. Ids: 0 padding, 1 the end, 2 to 11 the digits, 12 the plus sign.
"""

from __future__ import annotations

from random import Random
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

PAD, END, ZERO, PLUS = 0, 1, 2, 12
VOCAB_SIZE = 13
Task = Literal["copy", "reverse", "addition"]


def draw_input(task: Task, length: int, draw: Random) -> list[int]:
    """Ids of an input of ``length`` symbols, without the end: digits, or for addition two numbers, a plus sign between.

    Raises:
        ValueError: for an unknown task, or a length that is too short for it.
    """
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
    shortest = 3 if task == "addition" else 1
    if length < shortest:
        raise ValueError(f"an input of {task} has at least {shortest} symbols, got length = {length}")
    if task != "addition":
        return [ZERO + draw.randrange(10) for _ in range(length)]
    first = draw.randint(1, length - 2)
    return [*_number(first, draw), PLUS, *_number(length - 1 - first, draw)]


def _number(digits: int, draw: Random) -> list[int]:
    """Ids of a number, units first; only a single digit may be 0 at the end."""
    ids = [ZERO + draw.randrange(10) for _ in range(digits)]
    if digits > 1:
        ids[-1] = ZERO + draw.randint(1, 9)
    return ids


def solve(task: Task, ids: list[int]) -> list[int]:
    """Ids of the output, without the end."""
    if task == "copy":
        return list(ids)
    if task == "reverse":
        return ids[::-1]
    plus = ids.index(PLUS)
    one, two = ids[:plus], ids[plus + 1 :]
    result, carry = [], 0
    for place in range(max(len(one), len(two))):
        carry += sum(number[place] - ZERO for number in (one, two) if place < len(number))
        result.append(ZERO + carry % 10)
        carry //= 10
    return result + [ZERO + carry] * bool(carry)


class AlgorithmicDataset(Dataset[dict[str, Tensor]]):
    """Inputs and outputs of one task. Item ``i`` depends on all arguments but ``count``, and on ``i``.

    Each item has ``input_ids`` ``[length + 1]`` and ``labels``, the output, both with the end behind them; int64.

    Args:
        task: "copy", "reverse" or "addition".
        count: number of items.
        longest: most symbols of an input; every length from ``shortest`` on is as likely as any other.
        shortest: fewest symbols; None: as short as the task allows.
        seed: of the items.
    """

    def __init__(self, task: Task, count: int, *, longest: int, shortest: int | None = None, seed: int = 0) -> None:
        least = 3 if task == "addition" else 1
        shortest = least if shortest is None else shortest
        if not least <= shortest <= longest:
            raise ValueError(
                f"lengths of {task} must rise from {least}, got shortest = {shortest}, longest = {longest}"
            )
        draw_input(task, longest, Random(0))  # complains of an unknown task
        self.task: Task = task
        self.count, self.shortest, self.longest, self.seed = count, shortest, longest, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = Random(f"{self.seed} {self.task} {self.shortest} {self.longest} {index}")
        ids = draw_input(self.task, draw.randint(self.shortest, self.longest), draw)
        return {"input_ids": torch.tensor([*ids, END]), "labels": torch.tensor([*solve(self.task, ids), END])}
