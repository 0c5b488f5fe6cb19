"""Negatives that look like the verse: nearest by words, but saying something else, and each text at most once."""

import re

import pytest

from longspan.data.packages import PackageUnavailable
from longspan.data.verse_pairs import hardest_others, load_verse_pairs

pytest.importorskip("sklearn")

OLD = [
    "and the king of sodom went out",
    "and the king of salem brought bread",
    "the ships sailed unto tarshish",
    "and the king of sodom went forth",  # says what the first says
]
NEW = [
    "the king of sodom went out",
    "the king of salem brought out bread",
    "the ships sailed to tarshish",
    "the king of sodom set out then",
]


def test_the_nearest_that_does_not_say_the_same():
    others = hardest_others(OLD, NEW)
    assert others[0] == 1  # not 3, which is nearer, but its old text is nearly the same
    assert others[1] in (0, 3)
    assert len(set(others.values())) == len(others)
    assert all(number != other for number, other in others.items())


def test_the_real_pairs():
    try:
        data = load_verse_pairs()
    except PackageUnavailable as missing:
        pytest.skip(str(missing))
    test = data["test"]
    seconds = {0: [], 1: []}
    for row in test:
        seconds[row["label"]].append(row["other"])
        assert (row["id"] == row["other"]) == (row["label"] == 1)
    assert 0.9 < len(seconds[0]) / len(seconds[1]) <= 1
    assert len(set(seconds[0])) == len(seconds[0])
    assert set(seconds[0]) <= set(seconds[1])  # of the same split
    negatives = test.filter(lambda row: row["label"] == 0, load_from_cache_file=False)
    for row in negatives.select(range(0, len(negatives), 40)):
        one, other = (set(re.findall(r"[a-z]+", row[name].lower())) for name in ("first", "second"))
        assert len(one & other) >= 1
    positive = {row["id"]: row["first"] for row in test if row["label"] == 1}
    assert all(row["first"] == positive[row["id"]] for row in negatives)
