"""Stories of kinds, sizes, positions, ways and wishes, from which something follows: tasks 4 and 15 to 20."""

from __future__ import annotations

import itertools
from random import Random

from longspan.data.stories.story import DIRECTIONS, PEOPLE, PLACES, Story

STEPS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
SIDES = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, 1), "below": (0, -1)}
KINDS = {"mouse": "mice", "wolf": "wolves", "cat": "cats", "fox": "foxes", "hen": "hens", "eel": "eels"}
COLOURS = ("white", "grey", "green", "yellow", "brown")
SHAPES = ("red square", "blue square", "pink triangle", "yellow circle", "green star")
CONTAINERS = ("thimble", "mug", "box", "basket", "suitcase", "chest", "wardrobe")
WISHES = {  # how somebody feels -> where to go, what to take
    "hungry": ("kitchen", "apple"),
    "tired": ("bedroom", "pillow"),
    "bored": ("library", "novel"),
    "cold": ("hallway", "coat"),
}


def two_arguments(draw: Random) -> Story:
    """What is north of it, or what is it north of? Both facts name it and the same direction."""
    first, middle, last = draw.sample(PLACES, 3)
    direction = draw.choice(DIRECTIONS)
    facts = [(first, middle), (middle, last)]
    draw.shuffle(facts)
    sentences = tuple(f"The {a} is {direction} of the {b}." for a, b in facts)
    if draw.random() < 0.5:
        return Story(4, sentences, f"What is {direction} of the {middle}?", first, (facts.index((first, middle)),))
    return Story(4, sentences, f"What is the {middle} {direction} of?", last, (facts.index((middle, last)),))


def deduction(draw: Random) -> Story:
    """What somebody of a kind fears, from what the kind fears."""
    kinds = draw.sample(list(KINDS), 4)
    feared = {kind: draw.choice([other for other in KINDS if other != kind]) for kind in kinds}
    members = {person: draw.choice(kinds) for person in draw.sample(PEOPLE, 4)}
    facts = [f"{KINDS[kind].capitalize()} are afraid of {KINDS[other]}." for kind, other in feared.items()]
    facts += [f"{person} is a {kind}." for person, kind in members.items()]
    draw.shuffle(facts)
    person = draw.choice(list(members))
    kind = members[person]
    rule = f"{KINDS[kind].capitalize()} are afraid of {KINDS[feared[kind]]}."
    support = sorted((facts.index(rule), facts.index(f"{person} is a {kind}.")))
    return Story(15, tuple(facts), f"What is {person} afraid of?", feared[kind], tuple(support))


def induction(draw: Random) -> Story:
    """The colour of somebody, from that of another of the same kind: all of one kind are alike."""
    kinds = draw.sample(list(KINDS), 3)
    colours = dict(zip(kinds, draw.sample(COLOURS, 3), strict=True))
    people = draw.sample(PEOPLE, 5)
    asked, alike, *others = people
    member = {person: draw.choice(kinds) for person in others} | dict.fromkeys((asked, alike), draw.choice(kinds))
    kind = member[asked]
    if any(member[person] == kind for person in others):  # one example only, so that the facts needed are these three
        rest = [other for other in kinds if other != kind]
        member |= {person: draw.choice(rest) for person in others}
    facts = [f"{person} is a {member[person]}." for person in people]
    facts += [f"{person} is {colours[member[person]]}." for person in people if person != asked]
    draw.shuffle(facts)
    needed = (f"{asked} is a {kind}.", f"{alike} is a {kind}.", f"{alike} is {colours[kind]}.")
    support = tuple(sorted(facts.index(fact) for fact in needed))
    return Story(16, tuple(facts), f"What colour is {asked}?", colours[kind], support)


def positions(draw: Random) -> Story:
    """Is one shape left of, right of, above or below another? Relations are single steps on a grid."""
    while True:
        shapes = draw.sample(SHAPES, 3)
        facts, at = [], {shapes[1]: (0, 0)}
        for shape in (shapes[0], shapes[2]):
            side = draw.choice(list(SIDES))
            at[shape] = SIDES[side]
            if draw.random() < 0.5:
                side = next(other for other, step in SIDES.items() if step == tuple(-x for x in SIDES[side]))
                facts.append(f"The {shapes[1]} is {side} the {shape}.")
            else:
                facts.append(f"The {shape} is {side} the {shapes[1]}.")
        first, second = draw.sample((shapes[0], shapes[2]), 2)
        away = tuple(a - b for a, b in zip(at[first], at[second], strict=True))
        answer = draw.choice(("yes", "no"))
        sides = [
            side
            for side, step in SIDES.items()
            if (product := sum(a * b for a, b in zip(away, step, strict=True))) and (product > 0) == (answer == "yes")
        ]
        if sides:
            draw.shuffle(facts)
            return Story(17, tuple(facts), f"Is the {first} {draw.choice(sides)} the {second}?", answer, (0, 1))


def sizes(draw: Random) -> Story:
    """What fits into what, by a chain of one, two or three comparisons."""
    chain = sorted(draw.sample(CONTAINERS, draw.randint(2, 4)), key=CONTAINERS.index)
    own_order = chain if draw.random() < 0.5 else list(reversed(chain))  # sizes differ from story to story
    facts = []
    for small, big in itertools.pairwise(own_order):
        fits = draw.random() < 0.5
        facts.append(f"The {small} fits inside the {big}." if fits else f"The {big} is bigger than the {small}.")
    needed = list(facts)
    others = [item for item in CONTAINERS if item not in chain]
    for other in draw.sample(others, draw.randint(0, 2)):  # bigger than all: says nothing about the chain
        facts.append(f"The {other} is bigger than the {draw.choice(own_order)}.")
    draw.shuffle(facts)
    small, big = own_order[0], own_order[-1]
    answer = draw.choice(("yes", "no"))
    first, second = (small, big) if answer == "yes" else (big, small)
    question = f"Does the {first} fit inside the {second}?"
    if draw.random() < 0.5:
        question = f"Is the {second} bigger than the {first}?"
    return Story(18, tuple(facts), question, answer, tuple(sorted(facts.index(fact) for fact in needed)))


def way(draw: Random) -> Story:
    """The two steps from one place to another, among places on a grid."""
    while True:
        places = draw.sample(PLACES, 5)
        at, edges = {places[0]: (0, 0)}, []
        for place in places[1:]:
            other, direction = draw.choice(list(at)), draw.choice(DIRECTIONS)
            x, y = (a + b for a, b in zip(at[other], STEPS[direction], strict=True))
            if (x, y) in at.values():
                break
            at[place] = (x, y)
            edges.append((place, direction, other))
        if len(edges) < 4:
            continue
        draw.shuffle(edges)
        neighbours = {place: {b if a == place else a for a, _, b in edges if place in (a, b)} for place in places}
        ways = [(a, b, c) for b in places for a in neighbours[b] for c in neighbours[b] if a != c]
        start, middle, end = draw.choice(sorted(ways))
        directions = []
        for here, there in ((start, middle), (middle, end)):
            step = tuple(b - a for a, b in zip(at[here], at[there], strict=True))
            directions.append(next(name for name, known in STEPS.items() if known == step))
        facts, support = [], []
        for number, (a, direction, b) in enumerate(edges):
            if draw.random() < 0.5:
                a, b, direction = b, a, DIRECTIONS[(DIRECTIONS.index(direction) + 2) % 4]
            facts.append(f"The {a} is {direction} of the {b}.")
            if {a, b} in ({start, middle}, {middle, end}):
                support.append(number)
        question = f"How do you go from the {start} to the {end}?"
        return Story(19, tuple(facts), question, ",".join(directions), tuple(support))


def wishes(draw: Random) -> Story:
    """Where somebody will go, or why somebody went there or took something."""
    feelings = list(WISHES)
    told = [(person, draw.choice(feelings)) for person in draw.sample(PEOPLE, draw.randint(1, 4))]
    facts = [(person, f"{person} is {feeling}.") for person, feeling in told]
    for person, feeling in told:  # what somebody does comes after how the person feels
        place, thing = WISHES[feeling]
        for deed in (f"{person} went to the {place}.", f"{person} took the {thing}."):
            if draw.random() < 0.4:
                after = max(number for number, (who, _) in enumerate(facts) if who == person)
                facts.insert(draw.randint(after + 1, len(facts)), (person, deed))
    person, feeling = draw.choice(told)
    place, thing = WISHES[feeling]
    sentences = tuple(fact for _, fact in facts)
    support = [sentences.index(f"{person} is {feeling}.")]
    choices = [(f"Where will {person} go?", place)]
    if f"{person} went to the {place}." in sentences:
        choices = [(f"Why did {person} go to the {place}?", feeling)]
    if f"{person} took the {thing}." in sentences:
        choices.append((f"Why did {person} take the {thing}?", feeling))
    question, answer = draw.choice(choices)
    return Story(20, sentences, question, answer, tuple(support))
