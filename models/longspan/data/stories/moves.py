"""Stories of people who walk about and take, drop and give things: tasks 1 to 3 and 5 to 8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from longspan.data.stories.story import PEOPLE, PLACES, THINGS, Story

MOVES = ("went to", "walked to", "ran to", "moved to")
TAKES = ("took", "grabbed", "picked up")
DROPS = ("dropped", "put down", "left")
GIVES = ("gave", "handed", "passed")
COUNTS = ("none", "one", "two", "three", "four")


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Args:
        kind: "move", "take", "drop" or "give".
        person: who did it.
        what: the place that was gone to, or the thing.
        receiver: who was given it.
    """

    kind: str
    person: str
    what: str
    receiver: str | None = None


def tell(draw: Random, event: Event) -> str:
    if event.kind == "move":
        return f"{event.person} {draw.choice(MOVES)} the {event.what}."
    if event.kind == "give":
        return f"{event.person} {draw.choice(GIVES)} the {event.what} to {event.receiver}."
    return f"{event.person} {draw.choice(TAKES if event.kind == 'take' else DROPS)} the {event.what}."


class World:
    """Where everybody is and who has what; only what is possible happens.

    A thing that nobody has touched yet lies wherever it is taken first.

    Args:
        draw: of all choices.
        people: number of them.
        things: number of them.
    """

    def __init__(self, draw: Random, people: int, things: int = 0) -> None:
        self.draw = draw
        self.people = draw.sample(PEOPLE, people)
        self.things = draw.sample(THINGS, things)
        self.events: list[Event] = []
        self.place: dict[str, str] = {}  # of people
        self.holder: dict[str, str] = {}
        self.lies: dict[str, str] = {}  # place of things that were put down
        self.visited: dict[str, list[tuple[str, int]]] = {thing: [] for thing in self.things}  # (place, its event)

    def happen(self, length: int, kinds: Sequence[str] = ("move",)) -> None:
        """Let ``length`` events of these ``kinds`` happen; a kind named twice is twice as likely."""
        while len(self.events) < length:
            event = self._possible(self.draw.choice(kinds), self.draw.choice(self.people))
            if event is not None:
                self._apply(event)

    def _possible(self, kind: str, person: str) -> Event | None:
        here = self.place.get(person)
        if kind == "move":
            return Event(kind, person, self.draw.choice([place for place in PLACES if place != here]))
        held = [thing for thing in self.things if self.holder.get(thing) == person]
        if here is None:
            return None
        if kind == "take":
            within = [thing for thing in self.things if thing not in self.holder and self.lies.get(thing, here) == here]
            return Event(kind, person, self.draw.choice(within)) if within else None
        if not held:
            return None
        if kind == "drop":
            return Event(kind, person, self.draw.choice(held))
        others = [other for other, place in self.place.items() if place == here and other != person]
        return Event(kind, person, self.draw.choice(held), self.draw.choice(others)) if others else None

    def _apply(self, event: Event) -> None:
        number, thing = len(self.events), event.what
        self.events.append(event)
        if event.kind == "move":
            self.place[event.person] = event.what
            for held in (thing for thing, holder in self.holder.items() if holder == event.person):
                self.visited[held].append((event.what, number))
        elif event.kind == "take":
            self.holder[thing] = event.person
            self.lies.pop(thing, None)
            if not self.visited[thing]:
                self.visited[thing].append((self.place[event.person], number))
        elif event.kind == "drop":
            self.lies[thing] = self.place[event.person]
            del self.holder[thing]
        else:
            assert event.receiver is not None
            self.holder[thing] = event.receiver

    def last(self, kinds: str, person: str | None = None, what: str | None = None, before: int | None = None) -> int:
        """Number of the last such event; ``person`` did it or was given something."""
        for number in reversed(range(len(self.events) if before is None else before)):
            event = self.events[number]
            mine = person is None or event.person == person or (event.receiver == person and event.kind == "give")
            if event.kind in kinds.split() and mine and what in (None, event.what):
                return number
        raise LookupError(f"no {kinds} of {person} {what}")

    def story(self, task: int, question: str, answer: str, supporting: Sequence[int]) -> Story:
        sentences = tuple(tell(self.draw, event) for event in self.events)
        return Story(task, sentences, question, answer, tuple(sorted(set(supporting))))


def one_fact(draw: Random) -> Story:
    world = World(draw, 4)
    world.happen(draw.randint(2, 10))
    person = draw.choice(list(world.place))
    return world.story(1, f"Where is {person}?", world.place[person], [world.last("move", person)])


def two_facts(draw: Random) -> Story:
    """Where a thing is: who has it, or who put it down, and where that person was."""
    while True:
        world = World(draw, 3, 3)
        world.happen(draw.randint(4, 14), ("move", "move", "take", "drop"))
        touched = [thing for thing in world.things if thing in world.holder or thing in world.lies]
        if not touched:
            continue
        thing = draw.choice(touched)
        number = world.last("take drop", what=thing)
        person = world.events[number].person
        if thing in world.holder:
            move, place = world.last("move", person), world.place[person]
        else:
            move, place = world.last("move", person, before=number), world.lies[thing]
        return world.story(2, f"Where is the {thing}?", place, [number, move])


def three_facts(draw: Random) -> Story:
    """Where a thing was before: who took it, where that person went with it, and where from."""
    while True:
        world = World(draw, 3, 2)
        world.happen(draw.randint(6, 18), ("move", "move", "take", "drop"))
        choices = []
        for thing, visited in world.visited.items():
            places = [place for place, _ in visited]
            choices += [(thing, stage) for stage in range(1, len(places)) if places.count(places[stage]) == 1]
        if not choices:
            continue
        thing, stage = draw.choice(choices)
        place, arrival = world.visited[thing][stage]
        person = world.events[arrival].person
        facts = [arrival, world.last("move", person, before=arrival), world.last("take", what=thing, before=arrival)]
        before = world.visited[thing][stage - 1][0]
        return world.story(3, f"Where was the {thing} before the {place}?", before, facts)


def giving(draw: Random) -> Story:
    """Who gave what to whom; asked so that one event alone can be meant."""
    while True:
        world = World(draw, 3, 3)
        world.happen(draw.randint(8, 16), ("move", "take", "give", "give"))
        gifts = [(number, event) for number, event in enumerate(world.events) if event.kind == "give"]
        if not gifts:
            continue
        number, event = draw.choice(gifts)
        known = draw.choice(("person", "what", "receiver"))  # what the question asks for
        alike = [
            other
            for _, other in gifts
            if all(
                getattr(other, name) == getattr(event, name) for name in ("person", "what", "receiver") if name != known
            )
        ]
        if len(alike) > 1:
            continue
        question = {
            "person": f"Who gave the {event.what} to {event.receiver}?",
            "what": f"What did {event.person} give to {event.receiver}?",
            "receiver": f"Who received the {event.what} from {event.person}?",
        }[known]
        return world.story(5, question, getattr(event, known), [number])


def yes_or_no(draw: Random) -> Story:
    world = World(draw, 4)
    world.happen(draw.randint(2, 10))
    person, answer = draw.choice(list(world.place)), draw.choice(("yes", "no"))
    here = world.place[person]
    place = here if answer == "yes" else draw.choice([place for place in PLACES if place != here])
    return world.story(6, f"Is {person} in the {place}?", answer, [world.last("move", person)])


def _carrying(draw: Random) -> tuple[World, str, list[str], list[int]]:
    """A world, a person, what that person carries, and every event in which the person got or lost something."""
    wanted = draw.randint(0, 3)
    while True:
        world = World(draw, 3, 4)
        world.happen(draw.randint(5, 14), ("move", "take", "take", "drop", "give"))
        for person in draw.sample(world.people, 3):
            events = [
                number
                for number, event in enumerate(world.events)
                if event.kind != "move" and person in (event.person, event.receiver)
            ]
            held = sorted(thing for thing, holder in world.holder.items() if holder == person)
            if events and len(held) == wanted:
                return world, person, held, events


def counting(draw: Random) -> Story:
    world, person, held, events = _carrying(draw)
    return world.story(7, f"How many things is {person} carrying?", COUNTS[len(held)], events)


def listing(draw: Random) -> Story:
    """What somebody carries, in the order of the alphabet."""
    world, person, held, events = _carrying(draw)
    return world.story(8, f"What is {person} carrying?", ",".join(held) or "nothing", events)
