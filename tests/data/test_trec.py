"""Questions with the types of their answers: made lines, and the real file where its package can be had."""

import pytest

from longspan.data.packages import PackageUnavailable
from longspan.data.trec import load_trec, parse_trec

LINES = """DESC:manner How did it develop ?
HUM:ind Who was it ?
DESC:manner How did it develop ?
HUM:desc who was it ?
LOC:city Which sister\u00ef\u00bf\u00bdcity is old ?
"""


def test_every_question_once_with_both_types():
    data = parse_trec(LINES)
    assert list(data["text"]) == ["How did it develop ?", "Who was it ?", "Which sister city is old ?"]
    assert data.features["coarse"].names == ["DESC", "HUM", "LOC"]
    assert data.features["fine"].names == ["DESC:manner", "HUM:ind", "LOC:city"]
    assert data["coarse"][:] == [0, 1, 2] and data["fine"][:] == [0, 1, 2]


def test_the_real_questions():
    try:
        data = load_trec()
    except PackageUnavailable as missing:
        pytest.skip(str(missing))
    assert len(data) == 5380 == len({text.lower() for text in data["text"]})
    assert data.features["coarse"].num_classes == 6 and data.features["fine"].num_classes == 50
    row = data[0]
    assert row["text"] == "How did serfdom develop in and then leave Russia ?"
    assert data.features["fine"].int2str(row["fine"]) == "DESC:manner"
    for row in data.select(range(0, 5380, 50)):
        fine, coarse = (data.features[name].int2str(row[name]) for name in ("fine", "coarse"))
        assert fine.split(":")[0] == coarse
