"""Stories in which it matters how something is said: negation, doubt, pronouns, conjunction, time. Tasks 9 to 14."""

from __future__ import annotations

from random import Random

from longspan.data.stories.moves import MOVES
from longspan.data.stories.story import MEN, PEOPLE, PLACES, WOMEN, Story

AFTERWARDS = ("Then", "Afterwards", "Later")
TIMES = ("Yesterday", "This morning", "This afternoon", "This evening")


def _other(draw: Random, *places: str) -> str:
    return draw.choice([place for place in PLACES if place not in places])


def negation(draw: Random) -> Story:
    """Is somebody there of whom it was said last that he is there, or that he is not?"""
    people = draw.sample(PEOPLE, 4)
    told = [(draw.choice(people), draw.random() < 1 / 3, draw.choice(PLACES)) for _ in range(draw.randint(2, 10))]
    sentences = [f"{person} is {'not ' if denied else ''}in the {place}." for person, denied, place in told]
    last = {person: number for number, (person, *_) in enumerate(told)}
    person = draw.choice(list(last))
    _, denied, place = told[last[person]]
    if denied:
        asked, answer = place, "no"
    elif draw.random() < 0.75:  # what was denied is always "no": half of all answers shall be "yes"
        asked, answer = place, "yes"
    else:
        asked, answer = _other(draw, place), "no"
    return Story(9, tuple(sentences), f"Is {person} in the {asked}?", answer, (last[person],))


def indefinite(draw: Random) -> Story:
    """Yes, no, or maybe, where somebody is in one of two places."""
    people = draw.sample(PEOPLE, 4)
    told = [(draw.choice(people), draw.sample(PLACES, draw.choice((1, 2, 2)))) for _ in range(draw.randint(2, 10))]
    sentences = [
        f"{person} is in the {places[0]}."
        if len(places) == 1
        else f"{person} is either in the {places[0]} or in the {places[1]}."
        for person, places in told
    ]
    last = {person: number for number, (person, _) in enumerate(told)}
    person = draw.choice(list(last))
    places = told[last[person]][1]
    if draw.random() < 1 / 3:
        asked, answer = _other(draw, *places), "no"
    else:
        asked, answer = draw.choice(places), "yes" if len(places) == 1 else "maybe"
    return Story(10, tuple(sentences), f"Is {person} in the {asked}?", answer, (last[person],))


def _pairs(draw: Random, task: int, groups: list[tuple[tuple[str, ...], str]]) -> Story:
    """Groups of people go somewhere by name and then, most of them, somewhere else by pronoun."""
    sentences: list[str] = []
    last: dict[str, tuple[str, tuple[int, ...]]] = {}  # person -> place, sentences that say so
    for people, pronoun in groups:
        place, number = draw.choice(PLACES), len(sentences)
        sentences.append(f"{' and '.join(people)} {draw.choice(MOVES)} the {place}.")
        support: tuple[int, ...] = (number,)
        if pronoun and draw.random() < 0.8:
            place = _other(draw, place)
            sentences.append(f"{draw.choice(AFTERWARDS)} {pronoun} {draw.choice(MOVES)} the {place}.")
            support = (number, number + 1)
        last |= dict.fromkeys(people, (place, support))
    person = draw.choice(list(last))
    place, support = last[person]
    return Story(task, tuple(sentences), f"Where is {person}?", place, support)


def coreference(draw: Random) -> Story:
    people = draw.choices(PEOPLE, k=draw.randint(1, 5))
    return _pairs(draw, 11, [((person,), "she" if person in WOMEN else "he") for person in people])


def conjunction(draw: Random) -> Story:
    people = draw.sample(PEOPLE, 4)
    groups: list[tuple[tuple[str, ...], str]] = []
    for _ in range(draw.randint(2, 10)):
        first, second = draw.sample(people, 2)
        groups.append(((first, second), ""))
    return _pairs(draw, 12, groups)


def compound_coreference(draw: Random) -> Story:
    people = [draw.choice(WOMEN), draw.choice(MEN), *draw.sample(PEOPLE, 2)]
    groups: list[tuple[tuple[str, ...], str]] = []
    for _ in range(draw.randint(1, 5)):
        first, second = draw.sample(sorted(set(people)), 2)
        groups.append(((first, second), "they"))
    return _pairs(draw, 13, groups)


def time_order(draw: Random) -> Story:
    """Where somebody was before, told out of order."""
    told = []
    people = draw.sample(PEOPLE, 2)
    for person in people:
        times = sorted(draw.sample(range(len(TIMES)), draw.randint(2, 4)))
        told += [(person, time, place) for time, place in zip(times, draw.sample(PLACES, len(times)), strict=True)]
    draw.shuffle(told)
    sentences = [f"{TIMES[time]} {person} {draw.choice(MOVES)} the {place}." for person, time, place in told]
    person = draw.choice(people)
    own = sorted((time, place, number) for number, (who, time, place) in enumerate(told) if who == person)
    stage = draw.randrange(1, len(own))
    (_, before, first), (_, place, second) = own[stage - 1], own[stage]
    question = f"Where was {person} before the {place}?"
    return Story(14, tuple(sentences), question, before, tuple(sorted((first, second))))
