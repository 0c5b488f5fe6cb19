"""How many steps stories took, by the number of facts that their answers follow from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

from longspan.training.report import table
from longspan.training.story_reader import Reading

Measure = Callable[[Sequence[int], Sequence[int]], float | None]
"""Takes the steps of a story's sentences, the question last, and its supporting facts' numbers; None: not counted."""


class Ponder(NamedTuple):
    """Steps of some stories.

    Args:
        mean: over them.
        deviation: the standard deviation.
        stories: how many.
    """

    mean: float
    deviation: float
    stories: int


def all_sentences(steps: Sequence[int], supporting: Sequence[int]) -> float:
    """Mean over facts and question: what the paper gives."""
    return fmean(steps)


def supporting_facts(steps: Sequence[int], supporting: Sequence[int]) -> float:
    return fmean(steps[number] for number in supporting)


def other_facts(steps: Sequence[int], supporting: Sequence[int]) -> float | None:
    others = [count for number, count in enumerate(steps[:-1]) if number not in supporting]
    return fmean(others) if others else None


def the_question(steps: Sequence[int], supporting: Sequence[int]) -> float:
    return float(steps[-1])


def the_longest(steps: Sequence[int], supporting: Sequence[int]) -> float:
    """Most steps that one sentence took: how often the block was applied to the story."""
    return float(max(steps))


MIDDLING = range(6, 11)  # facts that stories of tasks 1 to 3 all may have
MEASURES: dict[str, tuple[Measure, Container[int] | None]] = {
    "all sentences": (all_sentences, None),
    f"  of {MIDDLING[0]} to {MIDDLING[-1]} facts": (all_sentences, MIDDLING),
    "supporting facts": (supporting_facts, None),
    "other facts": (other_facts, None),
    "the question": (the_question, None),
    "longest sentence": (the_longest, None),
}
"""Lines of the table: what is counted, and the numbers of facts of the stories in which it is."""
Steps = Mapping[str, Mapping[str, Sequence[float]]]
"""Line of the table -> number of supporting facts, as in a JSON file -> mean, deviation, stories."""


def ponder_times(
    readings: Iterable[Reading], measure: Measure = all_sentences, facts: Container[int] | None = None
) -> dict[int, Ponder]:
    """Number of supporting facts -> steps.

    Args:
        readings: of tasks, with adaptive computation.
        measure: what is counted in a story.
        facts: numbers of facts that a story may have to be counted, so that stories of about one length are
            compared; None: any.
    """
    gathered: dict[int, list[float]] = {}
    for reading in readings:
        for steps, supporting in zip(reading.steps, reading.supporting, strict=True):
            value = measure(steps, supporting) if facts is None or len(steps) - 1 in facts else None
            if value is not None:
                gathered.setdefault(len(supporting), []).append(value)
    return {number: Ponder(fmean(own), pstdev(own), len(own)) for number, own in sorted(gathered.items())}


def steps_by_support(readings: Collection[Reading]) -> dict[str, dict[str, Ponder]]:
    """All of `MEASURES`."""
    return {
        name: {str(number): found for number, found in ponder_times(readings, measure, facts).items()}
        for name, (measure, facts) in MEASURES.items()
    }


def steps_table(steps: Steps, published: Mapping[int, tuple[float, float]]) -> str:
    """Mean ± deviation by number of supporting facts.

    Args:
        steps: from `steps_by_support`.
        published: number of supporting facts -> mean and deviation over all sentences; they have a column each.
    """

    def line(name: str, values: Mapping[str, Sequence[float]]) -> list[str]:
        cells = (f"{values[key][0]:.2f} ± {values[key][1]:.2f}" if key in values else "-" for key in columns)
        return [name, *cells]

    columns = [str(number) for number in published]
    first, *others = (line(name, values) for name, values in steps.items())
    paper = line("  the paper", {str(number): values for number, values in published.items()})
    return table(["supporting facts", *columns], [first, paper, *others])
