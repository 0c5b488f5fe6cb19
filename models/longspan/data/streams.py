"""A long stream of token ids cut into rows that are read side by side, block by block, for models that carry state.

B rows, M tokens of a block.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

Ids: TypeAlias = NDArray[np.integer] | Tensor | Sequence[int]
"""Token ids of one long text, 1-D, of any integer type: an array that the system maps from a file will do."""


def check_ids(ids: Any, name: str) -> NDArray[np.integer] | Tensor:
    """Token ids as they can be sliced. Raises ValueError, with ``name``, for what is not one row of integers."""
    if not isinstance(ids, Tensor | np.ndarray):
        if not (isinstance(ids, Sequence) and len(ids) and isinstance(ids[0], int | np.integer)):
            raise ValueError(
                f"{name} must be the token ids of one long text, an integer array [tokens], got {type(ids).__name__}; "
                "documents are joined first: numpy.concatenate(dataset['input_ids'])"
            )
        ids = np.asarray(ids)
    integer = (
        ids.dtype.kind in "iu" if isinstance(ids, np.ndarray) else not (ids.is_floating_point() or ids.is_complex())
    )
    if ids.ndim != 1 or not integer:
        raise ValueError(
            f"{name} must be the token ids of one long text, an integer array [tokens], got {ids.dtype} of shape "
            f"{list(ids.shape)}"
        )
    return ids


def take(ids: NDArray[np.integer] | Tensor, start: int, stop: int) -> Tensor:
    """Ids ``[start, stop)`` as int64."""
    part = ids[start:stop]
    return part.to(torch.int64) if isinstance(part, Tensor) else torch.from_numpy(part.astype(np.int64))


class ContiguousRows(Dataset[dict[str, Any]]):
    """A stream as ``rows`` long rows that advance together; a batch continues where the one before it ended.

    An item has ``input_ids`` and ``next_ids``, int64 ``[M]``: the target of a block's last token is the first token of
    the next block, so that no target is lost in between. ``begins``: nothing precedes it, state is reset.

    Items are numbered pass by pass, block by block, row by row, and go on beyond the length, which is that of one pass.
    Every pass but the first begins at an offset drawn from [0, M), so that blocks are cut elsewhere each time; it
    depends on ``seed`` and the pass alone, so that a run can be resumed.

    Args:
        ids: the stream.
        rows: number of rows, the batch size.
        block_size: tokens in a block.
        seed: of the offsets.
    """

    def __init__(self, ids: Ids, rows: int, block_size: int, *, seed: int = 0) -> None:
        self.ids = check_ids(ids, "ids")
        for name, value in (("rows", rows), ("block_size", block_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.length = len(self.ids) // rows
        if self.length <= block_size:
            raise ValueError(
                f"ids must hold {rows} rows of at least {block_size} + 1 tokens, got {len(self.ids)} tokens in all: "
                "take fewer rows or shorter blocks"
            )
        self.rows, self.block_size, self.seed = rows, block_size, seed
        self.blocks = max(1, (self.length - block_size) // block_size)  # of a pass: as many as fit at any offset
        self._offsets = min(block_size, self.length - self.blocks * block_size)

    def __len__(self) -> int:
        return self.blocks * self.rows

    def offset(self, number: int) -> int:
        """Where in its row pass ``number`` begins."""
        return random.Random(f"{self.seed} {number}").randrange(self._offsets) if number else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(index)
        block, row = divmod(index, self.rows)
        number, block = divmod(block, self.blocks)
        start = row * self.length + self.offset(number) + block * self.block_size
        ids = take(self.ids, start, start + self.block_size + 1)
        return {"input_ids": ids[:-1], "next_ids": ids[1:], "begins": block == 0}


class StreamBatches(Sampler[list[int]]):
    """Which items of `ContiguousRows` one process reads, batch by batch: the same rows in every block.

    All rows together are ``parts * ranks * batch_size``. The parts of a block, whose gradients make one step, come one
    after the other; each is split over the ranks.

    Args:
        rows: the data.
        batch_size: rows in a batch of one process.
        parts: batches of one process that make a block.
        rank: number of this process.
        ranks: number of processes.
        current_pass: asked at the beginning of each iteration, which is one pass.
    """

    def __init__(
        self,
        rows: ContiguousRows,
        batch_size: int,
        *,
        parts: int = 1,
        rank: int = 0,
        ranks: int = 1,
        current_pass: Callable[[], int] = lambda: 0,
    ) -> None:
        assert rows.rows == parts * ranks * batch_size
        self.rows, self.batch_size, self.current_pass = rows, batch_size, current_pass
        self.first_rows = [(part * ranks + rank) * batch_size for part in range(parts)]

    def __len__(self) -> int:
        return self.rows.blocks * len(self.first_rows)

    def __iter__(self) -> Iterator[list[int]]:
        first_block = self.current_pass() * self.rows.blocks
        for block in range(first_block, first_block + self.rows.blocks):
            for row in self.first_rows:
                start = block * self.rows.rows + row
                yield list(range(start, start + self.batch_size))


def collate_rows(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch: ``input_ids`` and ``next_ids [B, M]``, and ``begins``, which is the same for all rows."""
    batch: dict[str, Any] = {name: torch.stack([item[name] for item in items]) for name in ("input_ids", "next_ids")}
    return batch | {"begins": all(item["begins"] for item in items)}
