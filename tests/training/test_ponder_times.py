from longspan.training.ponder_times import (
    all_sentences,
    other_facts,
    ponder_times,
    steps_by_support,
    steps_table,
    supporting_facts,
    the_longest,
    the_question,
)
from longspan.training.story_reader import Reading


def test_what_is_counted_in_a_story():
    steps, supporting = [1, 4, 2, 1, 3], (1, 2)  # four facts and the question
    assert all_sentences(steps, supporting) == 2.2
    assert supporting_facts(steps, supporting) == 3 and other_facts(steps, supporting) == 1
    assert the_question(steps, supporting) == 3 and the_longest(steps, supporting) == 4
    assert other_facts([2, 2, 1], (0, 1)) is None


def test_gathered_by_number_of_supporting_facts():
    first = Reading(2, 0, [[1, 1, 4], [2, 2, 2, 2]], [(0,), (1, 2)])
    second = Reading(2, 1, [[3, 5], [1, 1, 1, 1, 6]], [(0,), (0,)])
    found = ponder_times([first, second])
    assert found == {1: (8 / 3, found[1].deviation, 3), 2: (2.0, 0.0, 1)}
    assert abs(found[1].deviation - (8 / 9) ** 0.5) < 1e-12
    assert ponder_times([first, second], facts=range(3, 5)) == {1: (2.0, 0.0, 1), 2: (2.0, 0.0, 1)}
    assert ponder_times([Reading(1, 0, [[2, 3]], [(0,)])], other_facts) == {}


def test_table():
    steps = steps_by_support([Reading(1, 0, [[1, 2, 2, 2, 1, 3, 3]], [(0, 1)])])
    lines = steps_table(steps, {1: (2.3, 0.8), 2: (3.1, 1.1)}).splitlines()
    assert lines[0].split() == ["supporting", "facts", "1", "2"]
    assert lines[2].split() == ["all", "sentences", "-", "2.00", "±", "0.00"]
    assert lines[3].split() == ["the", "paper", "2.30", "±", "0.80", "3.10", "±", "1.10"]
    assert lines[4].split()[-3:] == ["2.00", "±", "0.00"] and lines[4].strip().startswith("of 6 to 10 facts")
    assert [line.split()[-3] for line in lines[5:]] == ["1.50", "2.00", "3.00", "3.00"]
