"""How long each sentence of a story was pondered, drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from longspan.data.stories import ANSWERS, TASKS, Story, StoryCollator, encode_story
from longspan.training.story_reader import StoryReader, steps_of_sentences

SUPPORTING, OTHER, QUESTION, UNUSED = "#2f6690", "#a8b9c8", "#e07b39", "#f1f3f5"
INK, QUIET = "#22303c", "#7b8894"
LINES = (("#2f6690", "-", "o"), ("#e07b39", "-", "s"), ("#5b8e55", "-", "^"), ("#7b8894", "--", "D"))
PANEL, TEXT, ROW, CELL = 6.2, 3.75, 0.3, 0.3  # inches: width of a panel, of its sentences; height and width of a step


@torch.no_grad()
def ponder_story(model: StoryReader, story: Story) -> tuple[list[int], str]:
    """Number of steps of every fact and of the question, which is the last, and the answer that the model gives.

    Raises:
        ValueError: for a model without adaptive computation.
    """
    model.eval()
    device = next(model.parameters()).device
    batch = {name: x.to(device) for name, x in StoryCollator()([encode_story(story)]).items()}
    outputs = model(batch["input_ids"], batch["attention_mask"])
    steps = steps_of_sentences(outputs, batch["attention_mask"])
    if not steps:
        raise ValueError("model has no adaptive computation time: recurrence must be 'act'")
    return steps[0], ANSWERS[int(outputs.logits.argmax())]


def draw_halting(
    path: Path,
    model: StoryReader,
    stories: Sequence[Story],
    series: Mapping[str, Mapping[int, tuple[float, float]]],
) -> None:
    """Draw the steps of every sentence of some stories, and means over many by the number of supporting facts.

    Args:
        path: of the picture.
        model: with adaptive computation time.
        stories: a panel each, two beside each other.
        series: name -> number of supporting facts -> mean and standard deviation of the steps; at most four.
    """
    import matplotlib  # a big import for one picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = model.config.num_recurrent_steps
    pages = [(story, *ponder_story(model, story)) for story in stories]
    rows = [max(len(steps) for _, steps, _ in pages[begin : begin + 2]) for begin in range(0, len(pages), 2)]
    heights = [(count + 2.6) * ROW for count in rows] + ([12 * ROW] if len(pages) % 2 == 0 else [])
    size = (2 * PANEL, sum(heights) + 0.75)
    figure = pyplot.figure(figsize=size)
    figure.text(
        0.25 / size[0],
        1 - 0.3 / size[1],
        "Steps that each sentence takes before it halts",
        size=15,
        weight="bold",
        color=INK,
    )
    _draw_key(figure, size)
    top = size[1] - 0.6
    places = []
    for height in heights:
        for column in range(2):
            place = (0.25 + column * PANEL, top - height, PANEL - 0.35, height - 0.1)
            places.append((place[0] / size[0], place[1] / size[1], place[2] / size[0], place[3] / size[1]))
        top -= height
    for place, (story, steps, answer) in zip(places, pages, strict=False):
        _draw_story(figure.add_axes(place), place[3] * size[1], story, steps, answer, most)
    left, bottom, width, height = places[len(pages)]
    inner = (left + 0.04 * width, bottom + 0.13 * height, 0.9 * width, 0.62 * height)
    _draw_means(figure.add_axes(inner), series, most)
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(scratch, dpi=110, facecolor="white")
    pyplot.close(figure)
    os.replace(scratch, path)


def _draw_key(figure: Any, size: tuple[float, float]) -> None:
    from matplotlib.patches import Patch

    names = {SUPPORTING: "fact that the answer follows from", OTHER: "other fact", QUESTION: "question"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items()]
    place = (1 - 0.1 / size[0], 1 - 0.02 / size[1])
    figure.legend(handles=handles, frameon=False, fontsize=10, ncols=3, loc="upper right", bbox_to_anchor=place)


def _draw_story(axis: Any, height: float, story: Story, steps: Sequence[int], answer: str, most: int) -> None:
    """Sentences one below the other, a filled cell for each step; coordinates are inches from the upper left."""
    from matplotlib.patches import Rectangle

    axis.set_xlim(0, PANEL - 0.35)
    axis.set_ylim(height, 0)
    axis.axis("off")
    axis.text(0, ROW * 0.7, TASKS[story.task][0].capitalize(), size=12, weight="bold", color=INK, va="center")
    cell = min(CELL, (PANEL - 0.45 - TEXT) / most)
    for step in range(most):
        axis.text(TEXT + (step + 0.5) * cell, ROW * 0.75, str(step + 1), size=8, color=QUIET, ha="center", va="center")
    for number, (text, count) in enumerate(zip((*story.sentences, story.question), steps, strict=True)):
        asked = number == len(story.sentences)
        colour = QUESTION if asked else SUPPORTING if number in story.supporting else OTHER
        middle = (number + 1.7 + 0.3 * asked) * ROW
        ink, weight = INK if colour != OTHER else QUIET, "bold" if asked else "normal"
        axis.text(0, middle, text, size=10.5, color=ink, weight=weight, va="center")
        for step in range(most):
            corner = (TEXT + step * cell + 0.02, middle - 0.42 * ROW)
            filled = colour if step < count else UNUSED
            axis.add_patch(Rectangle(corner, cell - 0.04, 0.84 * ROW, facecolor=filled, linewidth=0))
    said = f"{answer}, which is right" if answer == story.answer else f"{answer}, but it is {story.answer}"
    axis.text(0, (len(steps) + 1.85) * ROW, f"Model: {said}", size=10, style="italic", color=QUESTION, va="center")


def _draw_means(axis: Any, series: Mapping[str, Mapping[int, tuple[float, float]]], most: int) -> None:
    numbers = sorted({number for values in series.values() for number in values})
    for place, (name, values) in enumerate(series.items()):
        colour, line, marker = LINES[place]
        shifted = [number + 0.05 * (place - (len(series) - 1) / 2) for number in values]  # so that no bars coincide
        means, spreads = zip(*values.values(), strict=True)
        look = {"color": colour, "ls": line, "marker": marker, "ms": 6, "lw": 2, "elinewidth": 1, "capsize": 3}
        axis.errorbar(shifted, means, spreads, label=name, **look)
    axis.set_xticks(numbers, [f"{number} fact{'s' * (number > 1)}" for number in numbers], fontsize=10)
    axis.set_xlim(numbers[0] - 0.25, numbers[-1] + 0.25)
    axis.set_ylim(0, most + 0.5)
    axis.set_yticks(range(most + 1))
    axis.set_title("Mean steps by supporting facts", fontsize=12, weight="bold", color=INK, loc="left", x=-0.05, pad=44)
    axis.legend(frameon=False, fontsize=9.5, ncols=2, loc="lower left", bbox_to_anchor=(-0.07, 1.0), borderpad=0.2)
    axis.tick_params(length=0, labelsize=10, colors=INK)
    axis.grid(axis="y", color=UNUSED)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
