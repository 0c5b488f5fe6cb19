"""Going through a small set several times, each time in another order, by numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

from torch.utils.data import Dataset


class ShuffledEpochs(Dataset[Any]):
    """``count`` items out of ``items``: all of them in a drawn order, again in another, and so on.

    Item ``i`` depends on ``items``, ``seed`` and ``i`` alone, so that a run can be resumed.

    Args:
        items: what is drawn from; kept in memory.
        count: how many to give.
        seed: of the orders.
    """

    def __init__(self, items: Sequence[Any], count: int, *, seed: int) -> None:
        if not len(items):
            raise ValueError("items must hold at least one item, got none")
        self.items, self.count, self.seed = items, count, seed
        self.epoch_size = len(items)
        self._order = lru_cache(2)(self._draw_order)

    def __len__(self) -> int:
        return self.count

    def _draw_order(self, epoch: int) -> list[int]:
        order = list(range(len(self.items)))
        Random(f"{self.seed} {epoch}").shuffle(order)
        return order

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        epoch, place = divmod(index, self.epoch_size)
        return self.items[self._order(epoch)[place]]


class LengthGroupedEpochs(ShuffledEpochs):
    """The same, ``batch_size`` neighbours of about one length at a time, so that batches hold little padding.

    Batches come in a drawn order. Of each round the items that fill no batch are left out.

    Args:
        items: as above.
        count: as above.
        lengths: one for each item.
        batch_size: items in a batch.
        seed: of the orders.
    """

    POOL = 50  # batches that are sorted together: more of them would make every round alike

    def __init__(self, items: Sequence[Any], count: int, *, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        super().__init__(items, count, seed=seed)
        if len(lengths) != len(items):
            raise ValueError(f"lengths must be one for each of {len(items)} items, got {len(lengths)}")
        if not 1 <= batch_size <= len(items):
            raise ValueError(f"batch_size must lie in [1, {len(items)}], the number of items, got {batch_size}")
        self.lengths, self.batch_size = lengths, batch_size
        self.epoch_size = len(items) // batch_size * batch_size

    def _draw_order(self, epoch: int) -> list[int]:
        order = super()._draw_order(epoch)[: self.epoch_size]
        pool = self.POOL * self.batch_size
        pools = [
            sorted(order[begin : begin + pool], key=self.lengths.__getitem__) for begin in range(0, len(order), pool)
        ]
        flat = [number for members in pools for number in members]
        batches = [flat[begin : begin + self.batch_size] for begin in range(0, len(flat), self.batch_size)]
        Random(f"{self.seed} {epoch} batches").shuffle(batches)
        return [number for batch in batches for number in batch]
