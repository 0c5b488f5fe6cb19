"""bAbI-style stories: the answer follows from the text, the supporting facts suffice, and nothing gives it away."""

import itertools
from collections import Counter

import pytest
import torch
from tests.data.story_interpreter import State, answer

from longspan.data.stories import ANSWERS, TASKS, WORDS, StoryCollator, StoryDataset, make_story, words_of

MANY = 300
NEED_ALL = (15, 16, 17, 18, 19, 20)  # tasks in which no supporting fact can be missed


def texts_of(story):
    return [*story.sentences, story.question]


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_text(task):
    for index in range(MANY):
        story = make_story(task, 7, index)
        assert answer(story.sentences, story.question) == story.answer, story


@pytest.mark.parametrize("task", [1, 2, 3, 5, 6, 7, 8])
def test_only_what_is_possible_happens(task):
    for index in range(MANY):
        story = make_story(task, 7, index)
        assert State(story.sentences).impossible == [], story


@pytest.mark.parametrize("task", TASKS)
def test_supporting_facts_suffice_and_are_needed(task):
    for index in range(MANY):
        story = make_story(task, 8, index)
        facts = [story.sentences[number] for number in story.supporting]
        assert list(story.supporting) == sorted(set(story.supporting)) and facts
        assert answer(facts, story.question) == story.answer, story
        if task in NEED_ALL:
            for left_out in range(len(facts)):
                rest = facts[:left_out] + facts[left_out + 1 :]
                assert answer(rest, story.question) is None, (story, left_out)


SUPPORT = {2: {2}, 3: {3}, 11: {1, 2}, 13: {1, 2}, 14: {2}, 15: {2}, 16: {3}, 17: {2}, 18: {1, 2, 3}, 19: {2}}


@pytest.mark.parametrize("task", [task for task in TASKS if task not in (7, 8)])
def test_number_of_supporting_facts(task):
    assert {len(make_story(task, 3, index).supporting) for index in range(MANY)} == SUPPORT.get(task, {1})


@pytest.mark.parametrize("task", TASKS)
def test_variety(task):
    """Stories differ, lengths too, and always saying the commonest answer helps little."""
    stories = [make_story(task, 5, index) for index in range(MANY)]
    assert len({(story.sentences, story.question) for story in stories}) > (0.75 if task in (4, 20) else 0.97) * MANY
    answers = Counter(story.answer for story in stories)
    assert len(answers) > 1 and answers.most_common(1)[0][1] < 0.62 * MANY
    assert len({len(story.sentences) for story in stories}) > 1 or task in (4, 16, 17, 19, 15)
    assert len({story.supporting for story in stories}) > 1 or task == 17


@pytest.mark.parametrize("task", [1, 2, 3, 6, 9, 10, 11, 12, 13])
def test_the_last_sentence_does_not_give_the_answer_away(task):
    last = [story.supporting[-1] == len(story.sentences) - 1 for story in (make_story(task, 6, i) for i in range(MANY))]
    assert 0.1 < sum(last) / MANY < 0.7


def test_same_seed_same_story():
    assert make_story(3, 1, 4) == make_story(3, 1, 4)
    assert make_story(3, 1, 4) != make_story(3, 2, 4) and make_story(3, 1, 4) != make_story(3, 1, 5)
    dataset, longer = StoryDataset((2, 16), 10, seed=3), StoryDataset((2, 16), 50, seed=3)
    assert [dataset[i] for i in range(10)] == [longer[i] for i in range(10)]
    assert [item["task"] for item in dataset] == [2, 16] * 5
    assert dataset.story(3) == make_story(16, 3, 1)


def test_every_word_and_answer_is_numbered_and_occurs():
    stories = [make_story(task, 9, index) for task in TASKS for index in range(600)]
    words = {word for story in stories for text in texts_of(story) for word in words_of(text)}
    assert words == set(WORDS)
    said = {story.answer for story in stories}
    assert said <= set(ANSWERS)
    back_again = {f"{a},{b}" for a, b in itertools.permutations(("north", "south", "east", "west"), 2)}
    assert set(ANSWERS) - said <= back_again | {"four"}


def test_batches():
    dataset = StoryDataset(tuple(TASKS), 40, seed=0)
    batch = StoryCollator()([dataset[i] for i in range(40)])
    B, S, W = batch["input_ids"].shape
    assert B == 40 and batch["attention_mask"].shape == (40, S) and batch["labels"].shape == (40,)
    for index in range(40):
        story = dataset.story(index)
        texts = texts_of(story)
        assert batch["attention_mask"][index].tolist() == [1] * len(texts) + [0] * (S - len(texts))
        for number, text in enumerate(texts):
            ids = [int(word) for word in batch["input_ids"][index, number] if word]
            assert [WORDS[word - 1] for word in ids] == words_of(text)
        assert ANSWERS[batch["labels"][index]] == story.answer
    assert max(len(words_of(text)) for i in range(40) for text in texts_of(dataset.story(i))) == W
    assert torch.equal(batch["input_ids"].any(-1).long(), batch["attention_mask"])


def test_errors():
    with pytest.raises(ValueError, match="task must be from 1 to 20, got 21"):
        make_story(21, 0)
    with pytest.raises(ValueError, match=r"tasks must be numbers from 1 to 20, got \[3, 0\]"):
        StoryDataset((3, 0), 5, seed=0)
    with pytest.raises(ValueError, match="tasks must be"):
        StoryDataset((), 5, seed=0)
    with pytest.raises(IndexError):
        StoryDataset((1,), 5, seed=0)[5]
