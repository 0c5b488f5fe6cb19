import pytest

from longspan.data.epochs import LengthGroupedEpochs, ShuffledEpochs


def test_each_round_holds_every_item_in_another_order():
    items = [f"item {number}" for number in range(20)]
    drawn = list(ShuffledEpochs(items, 50, seed=1))
    assert len(drawn) == 50
    rounds = [drawn[:20], drawn[20:40], drawn[40:]]
    assert all(sorted(part) == sorted(items) for part in rounds[:2]) and len(set(rounds[2])) == 10
    assert rounds[0] != items and rounds[0] != rounds[1]


def test_items_are_told_by_their_number():
    whole = ShuffledEpochs(range(7), 30, seed=2)
    assert [whole[i] for i in reversed(range(30))] == list(ShuffledEpochs(range(7), 30, seed=2))[::-1]
    assert list(whole) != list(ShuffledEpochs(range(7), 30, seed=3))
    with pytest.raises(IndexError):
        whole[30]
    with pytest.raises(ValueError, match="at least one item"):
        ShuffledEpochs([], 5, seed=0)


def test_batches_of_about_one_length_in_a_drawn_order():
    lengths = [(7 * number) % 40 for number in range(203)]
    grouped = LengthGroupedEpochs(range(203), 400, lengths=lengths, batch_size=10, seed=1)
    drawn = list(grouped)
    assert len(set(drawn[:200])) == 200 == len(set(drawn[200:])), "each round gives every item once"
    batches = [[lengths[number] for number in drawn[begin : begin + 10]] for begin in range(0, 400, 10)]
    assert max(max(batch) - min(batch) for batch in batches) < 5
    longest = [max(batch) for batch in batches[:20]]
    assert longest != sorted(longest) and drawn[:200] != drawn[200:]
    assert list(LengthGroupedEpochs(range(203), 400, lengths=lengths, batch_size=10, seed=1)) == drawn


def test_errors_of_groups():
    with pytest.raises(ValueError, match="one for each of 3 items, got 2"):
        LengthGroupedEpochs("abc", 5, lengths=[1, 2], batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 3\], the number of items, got 4"):
        LengthGroupedEpochs("abc", 5, lengths=[1, 2, 3], batch_size=4, seed=0)
