"""Pairs of verses, one in old and one in modern words: the same verse, or one that only looks like it.

Random negatives, and neighbours in the text, are told by their words alone. So each verse's negative is the other verse
that is nearest by its words (cosine of TF-IDF) among those of the same split, unless it says the same: verses whose old
or modern versions share most of their words are taken for one. A modern verse stands in at most one negative, as it
stands in one positive; what stands on the right tells nothing.

N verses, V words.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from longspan.data import verses
from longspan.data.cached import cached_splits
from longspan.data.packages import KING_JAMES, WORLD_ENGLISH

SAME = 0.6  # share of common words from which two verses of one version say the same
CANDIDATES = 50  # nearest verses that are looked at
COMMON = 0.05  # share of verses from which a word is too common to make two verses alike
FEATURES = Features(
    {
        "id": Value("string"),
        "other": Value("string"),
        "first": Value("string"),
        "second": Value("string"),
        "label": ClassLabel(names=["other", "same"]),
    }
)


def load_verse_pairs() -> DatasetDict:
    """Pairs with labels, split as `load_verses`: about as many negatives as verses.

    Columns: ``id`` of the first verse (King James) and ``other`` of the second (World English), their texts ``first``
    and ``second``, and ``label``: 1 = the same verse. Building takes seconds, once; needs scikit-learn.
    """
    return cached_splits("verse-pairs", _build, [KING_JAMES, WORLD_ENGLISH], verses)


def hardest_others(first: Sequence[str], second: Sequence[str]) -> dict[int, int]:
    """For the first texts of pairs, the second text of another pair: the nearest that does not say the same.

    The nearest pairs are given first, and no text is given twice; a few first texts are left without one.

    Args:
        first: N texts.
        second: N texts, that of the same number says the same as the first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    rare = max(10, round(COMMON * 2 * len(first)))
    vectorizer: Any = TfidfVectorizer(sublinear_tf=True, max_df=rare).fit([*first, *second])
    nearness = vectorizer.transform(first) @ vectorizer.transform(second).T  # sparse: few pairs share a rare word
    words = [[_words(text) for text in texts] for texts in (first, second)]
    found: list[tuple[float, int, int]] = []
    for number, (begin, end) in enumerate(itertools.pairwise(nearness.indptr)):
        places, values = nearness.indices[begin:end], nearness.data[begin:end]
        if len(values) > CANDIDATES:
            nearest = np.argpartition(-values, CANDIDATES)[:CANDIDATES]
            places, values = places[nearest], values[nearest]
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            if place != number and not any(_alike(side[number], side[place]) for side in words):
                found.append((-value, number, place))
    chosen: dict[int, int] = {}
    taken: set[int] = set()
    for _, number, place in sorted(found):
        if number not in chosen and place not in taken:
            chosen[number] = place
            taken.add(place)
    return chosen


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W\d_]+", text.lower()))


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= SAME * len(one | other)


def _build() -> DatasetDict:
    return DatasetDict({str(part): _pairs(rows) for part, rows in verses.load_verses().items()})


def _pairs(rows: Dataset) -> Dataset:
    names, first, second = (list(rows[column]) for column in ("id", "kjv", "web"))
    others = hardest_others(first, second)
    pairs = []
    for number, name in enumerate(names):
        pairs.append((name, name, first[number], second[number], 1))
        if number in others:
            other = others[number]
            pairs.append((name, names[other], first[number], second[other], 0))
    return Dataset.from_list([dict(zip(FEATURES, pair, strict=True)) for pair in pairs], features=FEATURES)
