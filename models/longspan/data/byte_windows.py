"""Windows of a byte text as token ids: drawn anywhere, or one after the other in contiguous rows.

A byte model's id is the byte plus an offset: the ids below it are for padding and the like.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.utils.data import Dataset

from longspan.data.corpora import Bytes


def byte_offset(vocab_size: int) -> int:
    """Id of byte 0 in a vocabulary of bytes: what is left of it comes first (2 of the 258 of Reformer's enwik8 model).

    Raises:
        ValueError: where the vocabulary cannot be one of bytes.
    """
    if not 256 <= vocab_size <= 256 + 16:
        raise ValueError(f"a byte model's vocab_size must be 256 and a few special ids, got {vocab_size}")
    return vocab_size - 256


def to_ids(text: Bytes, offset: int) -> Tensor:
    """Bytes ``[...]`` -> int64 ids of the same shape."""
    return torch.from_numpy(text.astype("int64")) + offset


class RandomWindows(Dataset[dict[str, Tensor]]):
    """Windows from anywhere in a text. Item ``i`` depends on ``seed`` and ``i`` alone, so that a run can be resumed.

    Each item has ``input_ids`` and ``labels``, both int64 ``[size]`` and equal: a causal model compares every id with
    what it said one step earlier.

    Args:
        text: uint8.
        size: bytes in a window.
        count: number of windows.
        offset: id of byte 0.
        seed: of the places.
    """

    def __init__(self, text: Bytes, size: int, count: int, *, offset: int, seed: int) -> None:
        if not 2 <= size <= len(text):
            raise ValueError(f"a window must have from 2 to {len(text)} bytes, the length of the text, got {size}")
        self.text, self.size, self.count, self.offset, self.seed = text, size, count, offset, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        start = random.Random(f"{self.seed} {index}").randrange(len(self.text) - self.size + 1)
        ids = to_ids(self.text[start : start + self.size], self.offset)
        return {"input_ids": ids, "labels": ids}


class ContiguousRows(Dataset[dict[str, Tensor]]):
    """A text cut into ``rows`` long rows that are read side by side, block by block, for models that carry state.

    Item ``block * rows + row``: taken in order, ``rows`` at a time, a batch continues where the one before it ended.
    Each item has ``input_ids`` and ``next_ids``, int64 ``[size]``: the target of a block's last byte is the first byte
    of the next block, so no target is lost in between. What does not fill a block at the end of a row is left out.

    Args:
        text: uint8.
        rows: number of rows, the batch size.
        size: bytes in a block.
        offset: id of byte 0.
    """

    def __init__(self, text: Bytes, rows: int, size: int, *, offset: int) -> None:
        self.length = len(text) // rows
        self.blocks = (self.length - 1) // size
        if self.blocks < 1:
            raise ValueError(f"a text of {len(text)} bytes does not hold {rows} rows of at least {size} + 1 bytes")
        self.text, self.rows, self.size, self.offset = text, rows, size, offset

    def __len__(self) -> int:
        return self.blocks * self.rows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        block, row = divmod(index, self.rows)
        start = row * self.length + block * self.size
        ids = to_ids(self.text[start : start + self.size + 1], self.offset)
        return {"input_ids": ids[:-1], "next_ids": ids[1:]}
