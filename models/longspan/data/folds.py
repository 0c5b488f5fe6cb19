"""Folds for cross-validation in which every label has its share."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fold:
    """Numbers of the examples to learn from, to choose by, and to report on; each in ascending order."""

    train: list[int]
    validation: list[int]
    test: list[int]


def draw_folds(labels: Sequence[Hashable], count: int, *, validation: float = 0.1, seed: int = 0) -> list[Fold]:
    """``count`` folds: every example is in the test part of one, and labels are spread evenly.

    Args:
        labels: one per example.
        count: number of folds, at least 2.
        validation: share of what is not tested that is set apart to choose by.
        seed: of the draw.

    Raises:
        ValueError: for fewer than two folds, or more than examples.
    """
    if not 2 <= count <= len(labels):
        raise ValueError(f"count must be from 2 to the number of examples, {len(labels)}, got {count}")
    if not 0 <= validation < 1:
        raise ValueError(f"validation must lie in [0, 1), got {validation}")
    draw = random.Random(f"{seed} folds")
    groups = defaultdict(list)
    for number, label in enumerate(labels):
        groups[label].append(number)
    order = [number for label in sorted(groups, key=str) for number in draw.sample(groups[label], len(groups[label]))]
    dealt = [order[part::count] for part in range(count)]  # neighbours, mostly of one label, go to different parts
    place = {number: at for at, number in enumerate(order)}
    folds = []
    for part in range(count):
        others = [number for other in range(1, count) for number in dealt[(part + other) % count]]
        others.sort(key=place.__getitem__)
        every = round(1 / validation) if validation else 0
        chosen = set(others[every // 2 :: every]) if every else set()
        folds.append(Fold(sorted(set(others) - chosen), sorted(chosen), sorted(dealt[part])))
    return folds
