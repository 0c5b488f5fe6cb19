"""Windows of a byte text as token ids, drawn anywhere. For long rows in order, see `streams`.

A byte model's id is the byte plus an offset: the ids below it are for padding and the like.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray
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


def byte_ids(text: Bytes, offset: int) -> NDArray[np.uint16]:
    """All ids of a text, in two bytes each: a stream for `streams.ContiguousRows`."""
    return text.astype(np.uint16) + np.uint16(offset)


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
