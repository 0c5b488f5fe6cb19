"""Folds: every example is tested once, parts do not overlap, labels have their shares."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.folds import draw_folds


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=5, max_size=80), st.integers(2, 5), st.sampled_from([0.0, 0.1, 0.25]))
def test_every_example_is_tested_once_and_learnt_from_elsewhere(labels, count, validation):
    folds = draw_folds(labels, count, validation=validation)
    assert sorted(number for fold in folds for number in fold.test) == list(range(len(labels)))
    for fold in folds:
        assert sorted([*fold.train, *fold.validation, *fold.test]) == list(range(len(labels)))
        assert bool(fold.validation) <= (validation > 0)


def test_labels_are_spread_evenly():
    labels = ["rare"] * 20 + ["common"] * 480
    for fold in draw_folds(labels, 5, validation=0.1, seed=3):
        for part, size in ((fold.test, 100), (fold.validation, 40), (fold.train, 360)):
            counts = Counter(labels[number] for number in part)
            assert abs(len(part) - size) <= 1 and abs(counts["rare"] - size * 0.04) <= 1


def test_the_draw_depends_on_the_seed_alone():
    labels = [number % 3 for number in range(60)]
    assert draw_folds(labels, 4, seed=1) == draw_folds(labels, 4, seed=1) != draw_folds(labels, 4, seed=2)


@pytest.mark.parametrize("count", [1, 0, 4])
def test_numbers_of_folds_that_make_no_sense(count):
    with pytest.raises(ValueError, match=f"from 2 to the number of examples, 3, got {count}"):
        draw_folds("abc", count)
    with pytest.raises(ValueError, match="validation must lie in"):
        draw_folds("abcd", 2, validation=1.0)
