"""BLEU of a corpus (Papineni et al. 2002), without a network."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 4  # n-grams


def words(text: str) -> list[str]:
    """Words and marks, one by one; capital letters count."""
    return re.findall(r"\w+(?:[’']\w+)*|[^\w\s]", text)


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Geometric mean of the shares of right n-grams, 1 to 4, times the penalty of brevity: 0 to 100.

    One reference each, no smoothing. Figures depend on how words are told apart (here: see `words`), and compare with
    none that were made otherwise.

    Args:
        predictions: what was written.
        references: what was wanted.

    Raises:
        ValueError: when they differ in number, or there are none.
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(f"predictions and references must be as many, got {len(predictions)} and {len(references)}")
    right, said = [0] * LONGEST, [0] * LONGEST
    written = wanted = 0
    for prediction, reference in zip(predictions, references, strict=True):
        own, other = words(prediction), words(reference)
        written, wanted = written + len(own), wanted + len(other)
        for n in range(1, LONGEST + 1):
            grams = _count(own, n)
            right[n - 1] += (grams & _count(other, n)).total()
            said[n - 1] += grams.total()
    if not min(right):
        return 0.0
    mean = sum(math.log(a / b) for a, b in zip(right, said, strict=True)) / LONGEST
    return 100 * math.exp(mean + min(0.0, 1 - wanted / written))


def _count(tokens: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[place : place + n]) for place in range(len(tokens) - n + 1))
