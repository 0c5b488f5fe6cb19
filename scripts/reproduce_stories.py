"""bAbI-style stories: error on the twenty kinds of task, and how many steps adaptive computation takes for them.

    python scripts/reproduce_stories.py                        # minutes on two cores, scaled down
    python scripts/reproduce_stories.py --full                 # the published size, 10,000 stories a task: for a GPU
    python scripts/reproduce_stories.py --tasks 1 2 3 --picture docs/universal_transformer_halting.png

Dehghani et al. 2019, section 3.1: each sentence is one vector, facts and question go through an encoder, the answer is
one of a fixed list. One model learns all tasks together. The picture shows the steps of every sentence of three
stories, and the mean by number of supporting facts, which in the paper grows with them.

What differs from the paper: the stories are drawn here, in words of our own, so that figures on them and the paper's
do not compare. The ponder cost weighs 0.001, a tenth of the usual: with more, sentences soon take one step or two,
whatever they are about. Scaled down, the model is half as wide, and trains for minutes.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from longspan.data.epochs import ShuffledEpochs
from longspan.data.stories import TASKS, StoryCollator, StoryDataset
from longspan.training.comparison import (
    KINDS,
    Kind,
    Setting,
    add_setting_options,
    chosen_setting,
    comparison_config,
    train_on,
)
from longspan.training.halting_picture import draw_halting
from longspan.training.report import heading, table, write_json
from longspan.training.story_reader import Reading, StoryReader, mean_and_spread, read, reader_config

PAPER = {  # error in per cent of UT + ACT on bAbI, best of ten runs, all tasks together: of 1,000 and 10,000 stories
    1: (0.0, 0.0), 2: (0.5, 0.0), 3: (5.4, 1.2), 4: (0.0, 0.0), 5: (0.5, 0.0), 6: (0.5, 0.0), 7: (3.2, 0.0),
    8: (1.6, 0.0), 9: (0.2, 0.0), 10: (0.4, 0.0), 11: (0.1, 0.0), 12: (0.0, 0.0), 13: (0.6, 0.0), 14: (3.8, 0.0),
    15: (5.9, 0.0), 16: (15.4, 1.2), 17: (42.9, 0.2), 18: (4.1, 0.0), 19: (68.2, 3.1), 20: (2.4, 0.0),
}  # fmt: skip
PAPER_MEAN = {"Transformer": (26.8, 22.1), "UT": (8.50, 0.47), "UT + ACT": (7.78, 0.29)}
PAPER_STEPS = {1: (2.3, 0.8), 2: (3.1, 1.1), 3: (3.8, 2.2)}  # supporting facts -> mean and deviation of the steps


@dataclass(frozen=True)
class Stories(Setting):
    """Setting and how much there is to learn from.

    Args:
        stories: different ones of each task, which are gone through several times.
        loss_weight: of the ponder cost.
        halting_bias: of a new halting unit.
    """

    stories: int = 10_000
    loss_weight: float = 0.001
    halting_bias: float = 1.0


SCALED = Stories(updates=10_000, rate=1e-3)
PAPERS = Stories(hidden=128, updates=100_000, batch=128, rate=1e-3, warmup=4000, dropout=0.1)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    column = 1 if setting.stories >= PAPERS.stories else 0
    heading(f"{len(options.tasks)} tasks together, {setting.stories} stories each, {setting.updates} updates")
    print(f"  width {setting.hidden}, depth {setting.depth} (with ACT at most twice as many steps)")
    found: dict[str, dict[int, Reading]] = {}
    for kind in options.models:
        began = time.process_time()
        model = train(kind, setting, options)
        test = StoryDataset(options.tasks, options.cases * len(options.tasks), seed=0)
        found[kind] = read(model, test)
        print(f"  {kind:<12}{time.process_time() - began:.0f} s of processor time", flush=True)
        if kind == "UT + ACT":
            steps = steps_by_support(found[kind], options.tasks)
            picture(model, test, steps, options)
    heading("Error in per cent, this run; the paper's UT + ACT on bAbI")
    rows = [
        [
            f"{task:>2} {TASKS[task][0]}",
            *(f"{found[kind][task].error:.1f}" for kind in found),
            f"{PAPER[task][column]:.1f}",
        ]
        for task in options.tasks
    ]
    means = {kind: sum(reading.error for reading in found[kind].values()) / len(found[kind]) for kind in found}
    if len(options.tasks) == len(TASKS):
        rows.append(["   mean", *(f"{mean:.1f}" for mean in means.values()), f"{PAPER_MEAN['UT + ACT'][column]:.1f}"])
        rows.append(["   mean, the paper", *(f"{PAPER_MEAN[kind][column]:.1f}" for kind in found), ""])
    print(table(["", *found, "the paper"], rows))
    figures: dict[str, Any] = {"setting": vars(setting)}
    figures["error"] = {kind: {task: reading.error for task, reading in found[kind].items()} for kind in found}
    if "UT + ACT" in found:
        heading("Steps of a sentence, mean and deviation over stories")
        figures["steps"] = steps = steps_by_support(found["UT + ACT"], options.tasks)
        print(steps_table(steps))
        print(f"\nPicture: {options.picture or options.output / 'halting.png'}")
    write_json(options.output / "figures.json", figures)
    print(f"Figures: {options.output}/figures.json")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", type=int, default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--models", nargs="+", default=["UT + ACT"], choices=KINDS)
    parser.add_argument("--cases", type=int, default=200, help="stories of each task to test on")
    add_setting_options(parser, SCALED, PAPERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/stories"))
    parser.add_argument("--picture", type=Path, help="of halting (default: halting.png in --output)")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def train(kind: Kind, setting: Stories, options: argparse.Namespace) -> StoryReader:
    set_seed(options.seed)
    act = {"loss_weight": setting.loss_weight, "halting_bias": setting.halting_bias}
    config = comparison_config(kind, setting, act_options=act, **reader_config())
    model = StoryReader(config).to("cuda" if torch.cuda.is_available() else "cpu")
    drawn = StoryDataset(options.tasks, setting.stories * len(options.tasks), seed=options.seed + 1)
    stories = ShuffledEpochs([*drawn], setting.updates * setting.batch, seed=options.seed)
    folder = options.output / "checkpoints"
    return train_on(model, stories, setting, collate=StoryCollator(), folder=folder, label=kind, seed=options.seed)


def steps_by_support(found: dict[int, Reading], tasks: list[int]) -> dict[str, dict[int, tuple[float, float]]]:
    """Mean steps by number of supporting facts: of the tasks that differ in nothing else, and of all."""
    groups = {"tasks 1 to 3": [task for task in (1, 2, 3) if task in tasks], "all tasks": list(tasks)}
    means: dict[str, dict[int, tuple[float, float]]] = {}
    for name, members in groups.items():
        gathered: dict[int, list[float]] = {}
        for reading in (found[task] for task in members):
            for steps, supporting in zip(reading.steps, reading.supporting, strict=True):
                gathered.setdefault(supporting, []).append(steps)
        means[name] = {number: mean_and_spread(gathered[number]) for number in sorted(gathered)}
    return means


def steps_table(steps: dict[str, dict[int, tuple[float, float]]]) -> str:
    def row(name: str, values: dict[int, tuple[float, float]]) -> list[str]:
        return [name, *("{:.2f} ± {:.2f}".format(*values[number]) if number in values else "-" for number in (1, 2, 3))]

    rows = [row(name, values) for name, values in steps.items()]
    return table(["supporting facts", "1", "2", "3"], [*rows, row("the paper", PAPER_STEPS)])


def picture(model: StoryReader, test: StoryDataset, steps: Any, options: argparse.Namespace) -> None:
    """One story of each of the first three tasks, short enough to be read."""
    stories = []
    for task in options.tasks[:3]:
        of_task = (story for story in map(test.story, range(len(test))) if story.task == task)
        stories.append(min((next(of_task) for _ in range(20)), key=lambda story: abs(len(story.sentences) - 8)))
    by_support = steps["tasks 1 to 3"] or steps["all tasks"]
    draw_halting(options.picture or options.output / "halting.png", model, stories, by_support, PAPER_STEPS)


if __name__ == "__main__":
    main()
