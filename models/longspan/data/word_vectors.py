"""Word vectors from text files: a word and its numbers on each line, as GloVe's files have them.

E numbers of a vector.
"""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor


def read_word_vectors(path: str | Path, words: Collection[str] | None = None) -> dict[str, Tensor]:
    """Word -> float32 ``[E]``, in the order of the file.

    A first line of two integers, as word2vec's text files have it, is passed over. A word may hold spaces, as some of
    GloVe's largest file do; of a word that comes twice the first vector counts.

    Args:
        path: of the file, UTF-8.
        words: the words to read; None: all. A file may have millions: a set of those that occur saves most memory.

    Raises:
        ValueError: naming the line that does not fit the others, or when the file holds no vector.
    """
    wanted = None if words is None else set(words)
    vectors: dict[str, Tensor] = {}
    size = None
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip().split(" ")
            if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                continue
            if size is None:
                size = _size(fields, path)
            word, values = " ".join(fields[:-size]), fields[-size:]
            if not word or len(values) != size:
                raise ValueError(
                    f"{path}, line {number}: wanted a word and {size} numbers, as on the first line, "
                    f"got {len(fields) - 1} behind the word"
                )
            if (wanted is not None and word not in wanted) or word in vectors:
                continue
            try:
                vectors[word] = torch.tensor([float(value) for value in values])
            except ValueError:
                raise ValueError(
                    f"{path}, line {number}: wanted a word and {size} numbers, as on the first line, "
                    f"got {line[:60].rstrip()!r}"
                ) from None
    if size is None:
        raise ValueError(f"{path} holds no word vectors")
    return vectors


def _size(fields: list[str], path: str | Path) -> int:
    """How many numbers stand at the end of a line, which has a word before them."""
    size = 0
    for field in reversed(fields[1:]):
        try:
            float(field)
        except ValueError:
            break
        size += 1
    if size == 0:
        raise ValueError(f"{path}: wanted a word and numbers on each line, got {' '.join(fields)[:60]!r}")
    return size
