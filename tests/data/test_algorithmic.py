"""Copying, reversing, adding: outputs against Python's own arithmetic, and what each item depends on."""

from collections import Counter
from random import Random

import pytest
import torch

from longspan.data.algorithmic import END, PLUS, ZERO, AlgorithmicDataset, draw_input, solve


def items(task, count=400, **options):
    return [AlgorithmicDataset(task, count, **options)[i] for i in range(count)]


def number(ids):
    return int("".join(str(symbol - ZERO) for symbol in reversed(ids)))


@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_copies_and_reversals(task):
    for item in items(task, longest=20):
        ids, labels = item["input_ids"], item["labels"]
        assert ids.dtype == labels.dtype == torch.int64 and ids[-1] == labels[-1] == END
        ids = ids[:-1]
        assert torch.equal(labels[:-1], ids if task == "copy" else ids.flip(0))
        assert int(ids.min()) >= ZERO and int(ids.max()) < PLUS


def test_sums_are_those_of_python_units_first():
    for item in items("addition", longest=30):
        ids, labels = item["input_ids"].tolist(), item["labels"].tolist()
        assert ids.count(PLUS) == 1 and ids.pop() == labels[-1] == END
        plus = ids.index(PLUS)
        assert number(labels[:-1]) == number(ids[:plus]) + number(ids[plus + 1 :])
        for digits in (ids[:plus], ids[plus + 1 :], labels[:-1]):
            assert len(digits) == len(str(number(digits))), "no zeros in front"


def test_a_long_carry():
    nines, one = [ZERO + 9] * 50, [ZERO + 1]
    assert solve("addition", [*nines, PLUS, *one]) == [ZERO] * 50 + [ZERO + 1]
    assert solve("addition", [*one, PLUS, *nines]) == [ZERO] * 50 + [ZERO + 1]


@pytest.mark.parametrize(("task", "least"), [("copy", 1), ("reverse", 1), ("addition", 3)])
def test_every_length_and_symbol_occurs(task, least):
    drawn = items(task, 2000, longest=10)
    lengths = Counter(len(item["input_ids"]) - 1 for item in drawn)
    assert set(lengths) == set(range(least, 11)) and min(lengths.values()) > 100
    symbols = {int(symbol) for item in drawn for symbol in item["input_ids"][:-1]}
    assert len(symbols) == (11 if task == "addition" else 10)
    assert {len(item["input_ids"]) for item in items(task, 50, longest=8, shortest=8)} == {9}


def test_items_depend_on_seed_and_number_alone():
    few, many = AlgorithmicDataset("copy", 5, longest=30, seed=1), AlgorithmicDataset("copy", 50, longest=30, seed=1)
    other = AlgorithmicDataset("copy", 5, longest=30, seed=2)
    assert all(torch.equal(few[i]["input_ids"], many[i]["input_ids"]) for i in range(5))
    assert not all(torch.equal(few[i]["input_ids"], other[i]["input_ids"]) for i in range(5))
    with pytest.raises(IndexError):
        few[5]


def test_errors():
    with pytest.raises(ValueError, match="task must be one of copy, reverse, addition, got 'sort'"):
        AlgorithmicDataset("sort", 5, longest=5)
    with pytest.raises(ValueError, match="lengths of addition must rise from 3, got shortest = 2, longest = 9"):
        AlgorithmicDataset("addition", 5, longest=9, shortest=2)
    with pytest.raises(ValueError, match="at least 3 symbols, got length = 2"):
        draw_input("addition", 2, Random(0))
