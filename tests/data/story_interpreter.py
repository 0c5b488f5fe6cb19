"""Answers questions about stories from their text alone, by rules of its own: the check of the generators."""

import itertools
import re

MOVE = r"(?:went|walked|ran|moved) to the (\w+)"
STEP = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
SIDE = {"to the left of": (-1, 0), "to the right of": (1, 0), "above": (0, 1), "below": (0, -1)}
SINGULAR = {"mice": "mouse", "wolves": "wolf", "cats": "cat", "foxes": "fox", "hens": "hen", "eels": "eel"}
MEANT_FOR = {
    "hungry": ("kitchen", "apple"),
    "tired": ("bedroom", "pillow"),
    "bored": ("library", "novel"),
    "cold": ("hallway", "coat"),
}
WHEN = ("Yesterday", "This morning", "This afternoon", "This evening")


def answer(sentences, question):
    """The answer, or None where it does not follow from the sentences."""
    for pattern, solve in SOLVERS:
        match = re.fullmatch(pattern, question)
        if match:
            try:
                return solve(list(sentences), *match.groups())
            except (KeyError, IndexError, StopIteration):
                return None
    raise AssertionError(f"a question of no known form: {question}")


def parts(pattern, sentence):
    """What the groups of a pattern find in a sentence that must have its form."""
    found = re.fullmatch(pattern, sentence)
    assert found, sentence
    return found.groups()


class State:
    """What holds after some sentences about people and things.

    ``impossible`` are sentences that cannot be true after the others, if nothing else has happened.
    """

    def __init__(self, sentences):
        self.at, self.sure, self.holder, self.lies, self.trail = {}, {}, {}, {}, {}
        self.gifts, self.impossible, named = [], [], []
        for sentence in sentences:
            if found := re.fullmatch(rf"(?:Then|Afterwards|Later) (?:she|he|they) {MOVE}\.", sentence):
                for person in named:
                    self.go(person, found[1])
            elif found := re.fullmatch(rf"(\w+)(?: and (\w+))? {MOVE}\.", sentence):
                named = [person for person in found.groups()[:2] if person]
                for person in named:
                    self.go(person, found[3])
            elif found := re.fullmatch(r"(\w+) (?:took|grabbed|picked up) the (\w+)\.", sentence):
                person, thing = found.groups()
                elsewhere = thing in self.holder or self.lies.pop(thing, self.at.get(person)) != self.at.get(person)
                self.impossible += [sentence] if elsewhere else []
                self.holder[thing] = person
                if person in self.at:
                    self.seen(thing, self.at[person])
            elif found := re.fullmatch(r"(\w+) (?:dropped|put down|left) the (\w+)\.", sentence):
                person, thing = found.groups()
                self.impossible += [sentence] if self.holder.pop(thing, None) != person else []
                self.lies[thing] = self.at.get(person)
            elif found := re.fullmatch(r"(\w+) (?:gave|handed|passed) the (\w+) to (\w+)\.", sentence):
                person, thing, other = found.groups()
                apart = self.at.get(person) != self.at.get(other)
                self.impossible += [sentence] if apart or self.holder.get(thing) != person else []
                self.holder[thing] = other
                self.gifts.append(found.groups())
            elif found := re.fullmatch(r"(\w+) is (not )?in the (\w+)\.", sentence):
                self.sure[found[1]] = {found[3]: "no" if found[2] else "yes"}
            elif found := re.fullmatch(r"(\w+) is either in the (\w+) or in the (\w+)\.", sentence):
                self.sure[found[1]] = {found[2]: "maybe", found[3]: "maybe"}
            else:
                raise AssertionError(f"a fact of no known form: {sentence}")

    def go(self, person, place):
        self.at[person] = place
        self.sure[person] = {place: "yes"}
        for thing, holder in self.holder.items():
            if holder == person:
                self.seen(thing, place)

    def seen(self, thing, place):
        trail = self.trail.setdefault(thing, [])
        if trail[-1:] != [place]:
            trail.append(place)


def where_person(sentences, person):
    return State(sentences).at[person]


def where_thing(sentences, thing):
    state = State(sentences)
    return state.at[state.holder[thing]] if thing in state.holder else state.lies[thing]


def where_before(sentences, subject, place):
    if subject.startswith("the "):
        trail = State(sentences).trail[subject[4:]]
        assert trail.count(place) <= 1
    else:
        told = [re.fullmatch(rf"({'|'.join(WHEN)}) (\w+) {MOVE}\.", sentence) for sentence in sentences]
        own = sorted((WHEN.index(found[1]), found[3]) for found in told if found and found[2] == subject)
        assert all(told) and len({time for time, _ in own}) == len(own)
        trail = [where for _, where in own]
    stage = trail.index(place) if place in trail else 0
    return trail[stage - 1] if stage else None


def carried(sentences, person):
    return sorted(thing for thing, holder in State(sentences).holder.items() if holder == person)


def is_in(sentences, person, place):
    return State(sentences).sure[person].get(place, "no")


def gift(sentences, given):
    """The one gift that agrees with what the question says."""
    state = State(sentences)
    (found,) = {event for event in state.gifts if all(event[place] == what for place, what in given.items())} or {None}
    return found


def neighbours(sentences):
    """Pairs (a, direction, b): a lies in that direction from b; both ways round."""
    opposite = dict(zip(STEP, ("south", "west", "north", "east"), strict=True))
    found = [parts(r"The (\w+) is (\w+) of the (\w+)\.", sentence) for sentence in sentences]
    return found + [(b, opposite[direction], a) for a, direction, b in found]


def way(sentences, start, end):
    steps = neighbours(sentences)
    ways = {(one, two) for a, one, b in steps for c, two, d in steps if (b, a, c) == (start, d, end)}
    assert len(ways) <= 1
    return ",".join(ways.pop()) if ways else None


def only(found):
    assert len(set(found)) <= 1, found
    return found[0] if found else None


def related(sentences, left, direction, right):
    """What stands in the open place of "a is <direction> of b"; facts are taken as they stand."""
    found = [parts(r"The (\w+) is (\w+) of the (\w+)\.", sentence) for sentence in sentences]
    return only([a if left is None else b for a, known, b in found if known == direction and (a == left or b == right)])


def fears(sentences, person):
    kind = only([found[1] for text in sentences if (found := re.fullmatch(rf"{person} is a (\w+)\.", text))])
    rules = [re.fullmatch(r"(\w+) are afraid of (\w+)\.", text) for text in sentences]
    return only([SINGULAR[rule[2]] for rule in rules if rule and SINGULAR[rule[1].lower()] == kind])


def colour(sentences, person):
    kind_of = {f[1]: f[2] for text in sentences if (f := re.fullmatch(r"(\w+) is a (\w+)\.", text))}
    colour_of = {f[1]: f[2] for text in sentences if (f := re.fullmatch(r"(\w+) is (\w+)\.", text))}
    assert person not in colour_of
    return only([colour_of[other] for other, kind in kind_of.items() if kind == kind_of[person] and other in colour_of])


def beside(sentences, first, side, second):
    """Positions by following facts from shape to shape."""
    shape = r"(\w+ \w+)"
    facts = [parts(rf"The {shape} is ({'|'.join(SIDE)}) the {shape}\.", text) for text in sentences]
    at = {second: (0, 0)}
    for _ in facts:
        for a, known, b in facts:
            x, y = SIDE[known]
            if b in at:
                at[a] = (at[b][0] + x, at[b][1] + y)
            elif a in at:
                at[b] = (at[a][0] - x, at[a][1] - y)
    along = sum(place * step for place, step in zip(at[first], SIDE[side], strict=True))
    assert along, "neither this side nor the other"
    return "yes" if along > 0 else "no"


def bigger(sentences, big, small):
    """By the transitive closure of what was said."""
    facts = set()
    for text in sentences:
        if found := re.fullmatch(r"The (\w+) is bigger than the (\w+)\.", text):
            facts.add(found.groups())
        else:
            facts.add(parts(r"The (\w+) fits inside the (\w+)\.", text)[::-1])
    for _ in range(6):
        facts |= {(a, d) for (a, b), (c, d) in itertools.product(facts, facts) if b == c}
    assert not any(a == b for a, b in facts), "a circle"
    return "yes" if (big, small) in facts else "no" if (small, big) in facts else None


def feeling(sentences, person):
    for text in sentences:
        deed = re.fullmatch(r"(\w+) (?:went to|took) the (\w+)\.", text)
        assert deed or re.fullmatch(r"\w+ is \w+\.", text), text
    return only([f[1] for text in sentences if (f := re.fullmatch(rf"{person} is (\w+)\.", text))])


def reason(sentences, person, what):
    felt = feeling(sentences, person)
    return felt if what in MEANT_FOR[felt] else None


NUMBERS = ("none", "one", "two", "three")
SOLVERS = [
    (r"Where is the (\w+)\?", where_thing),
    (r"Where is (\w+)\?", where_person),
    (r"Where was ((?:the )?\w+) before the (\w+)\?", where_before),
    (r"What is the (\w+) (\w+) of\?", lambda s, left, direction: related(s, left, direction, None)),
    (r"What is (north|east|south|west) of the (\w+)\?", lambda s, direction, right: related(s, None, direction, right)),
    (r"Who gave the (\w+) to (\w+)\?", lambda s, what, receiver: gift(s, {1: what, 2: receiver})[0]),
    (r"What did (\w+) give to (\w+)\?", lambda s, giver, receiver: gift(s, {0: giver, 2: receiver})[1]),
    (r"Who received the (\w+) from (\w+)\?", lambda s, what, giver: gift(s, {1: what, 0: giver})[2]),
    (r"Is (\w+) in the (\w+)\?", is_in),
    (r"How many things is (\w+) carrying\?", lambda s, person: NUMBERS[len(carried(s, person))]),
    (r"What is (\w+) carrying\?", lambda s, person: ",".join(carried(s, person)) or "nothing"),
    (r"What is (\w+) afraid of\?", fears),
    (r"What colour is (\w+)\?", colour),
    (rf"Is the (\w+ \w+) ({'|'.join(SIDE)}) the (\w+ \w+)\?", beside),
    (r"Is the (\w+) bigger than the (\w+)\?", bigger),
    (r"Does the (\w+) fit inside the (\w+)\?", lambda s, small, big: bigger(s, big, small)),
    (r"How do you go from the (\w+) to the (\w+)\?", way),
    (r"Where will (\w+) go\?", lambda s, person: MEANT_FOR[feeling(s, person)][0]),
    (r"Why did (\w+) (?:go to|take) the (\w+)\?", reason),
]
