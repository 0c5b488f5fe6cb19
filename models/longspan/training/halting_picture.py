"""How long each sentence of a story was pondered, drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longspan.data.stories import Story, StoryCollator, encode_story
from longspan.training.story_reader import StoryReader

SUPPORTING, OTHER, QUESTION = "#3b6ea5", "#c9d3dd", "#e08a3c"


@torch.no_grad()
def steps_of_sentences(model: StoryReader, story: Story) -> list[float]:
    """Number of steps of every fact, and of the question, which is the last."""
    model.eval()
    batch = StoryCollator()([encode_story(story)])
    device = next(model.parameters()).device
    outputs = model(batch["input_ids"].to(device), batch["attention_mask"].to(device))
    if outputs.n_updates is None:
        raise ValueError("model has no adaptive computation time: recurrence must be 'act'")
    return outputs.n_updates[0].tolist()


def draw_halting(
    path: Path,
    model: StoryReader,
    stories: Sequence[Story],
    by_support: dict[int, tuple[float, float]],
    published: dict[int, tuple[float, float]],
) -> None:
    """Draw steps by sentence for some stories, and the mean over many by number of supporting facts.

    Args:
        path: of the picture.
        model: with adaptive computation time.
        stories: one panel each.
        by_support: number of supporting facts -> mean and standard deviation of the steps.
        published: the same, of the paper.
    """
    import matplotlib  # a big import for one picture

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    figure, axes = pyplot.subplots(1, len(stories) + 1, figsize=(4.6 * len(stories) + 3.2, 3.9), layout="constrained")
    most = model.config.num_recurrent_steps
    for axis, story in zip(axes, stories, strict=False):
        _draw_story(axis, story, steps_of_sentences(model, story), most)
    _draw_means(axes[-1], {"this run": by_support, "the paper": published})
    colours = {"supporting fact": SUPPORTING, "other fact": OTHER, "question": QUESTION}
    handles = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(scratch, dpi=110)
    pyplot.close(figure)
    os.replace(scratch, path)


def _draw_story(axis: Any, story: Story, steps: Sequence[float], most: int) -> None:
    texts = [*story.sentences, story.question]
    colours = [SUPPORTING if number in story.supporting else OTHER for number in range(len(story.sentences))]
    axis.barh(range(len(texts)), steps, color=[*colours, QUESTION])
    axis.set_yticks(range(len(texts)), texts, fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, most + 0.4)
    axis.set_xticks(range(most + 1))
    axis.set_xlabel("steps", fontsize=8)
    axis.set_title(f"task {story.task}: {story.answer}", fontsize=9)
    axis.tick_params(length=0, labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_means(axis: Any, series: dict[str, dict[int, tuple[float, float]]]) -> None:
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [facts + (number - (len(series) - 1) / 2) * width for facts in values]
        means, spreads = zip(*values.values(), strict=True)
        axis.bar(places, means, width, yerr=spreads, label=name, color=[SUPPORTING, OTHER][number], capsize=2)
    axis.set_xticks(sorted({facts for values in series.values() for facts in values}))
    axis.set_xlabel("supporting facts", fontsize=8)
    axis.set_ylabel("mean steps of a sentence", fontsize=8)
    axis.set_title("steps and difficulty", fontsize=9)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
