"""bAbI-style stories: error on the twenty kinds of task, and how many steps adaptive computation takes for them.

    python scripts/reproduce_stories.py                        # minutes on one core, scaled down
    python scripts/reproduce_stories.py --tasks 1 2 3 --picture docs/universal_transformer_halting.png
    python scripts/reproduce_stories.py --full                 # the published size: for a GPU

Dehghani et al. 2019, section 3.1: each sentence is one vector, facts and question go through an encoder, the answer is
one of a fixed list. One model learns all tasks together. The picture shows the steps of every sentence of three
stories, and the mean by number of supporting facts, which in the paper grows with them. A run that is killed goes on
with --resume.

What differs from the paper: the stories are drawn here, in words of our own, so that figures on them and the paper's
do not compare. Pondering costs nothing in the first half of the training, then five times the usual, and halting
begins with another bias: with tensor2tensor's values steps did not grow with the supporting facts. Which of these
changes matters was not separated. Scaled down, the model is half as wide, takes at most six steps, and trains for
minutes.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_model
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from longspan.data.epochs import LengthGroupedEpochs
from longspan.data.stories import TASKS, Story, StoryCollator, StoryDataset
from longspan.training.checkpoints import claim_folder, last_checkpoint
from longspan.training.comparison import (
    Kind,
    Setting,
    chosen_setting,
    comparison_config,
    recipe_parser,
    train_on,
)
from longspan.training.finished_rows import FinishedRows, Row
from longspan.training.halting_picture import draw_halting, ponder_story
from longspan.training.ponder_times import steps_by_support, steps_table
from longspan.training.ponder_warmup import PonderWarmup
from longspan.training.report import heading, table
from longspan.training.story_reader import StoryReader, read, reader_config

PAPER = {  # error in per cent of UT + ACT on bAbI, best of ten runs, all tasks together: of 1,000 and 10,000 stories
    1: (0.0, 0.0), 2: (0.5, 0.0), 3: (5.4, 1.2), 4: (0.0, 0.0), 5: (0.5, 0.0), 6: (0.5, 0.0), 7: (3.2, 0.0),
    8: (1.6, 0.0), 9: (0.2, 0.0), 10: (0.4, 0.0), 11: (0.1, 0.0), 12: (0.0, 0.0), 13: (0.6, 0.0), 14: (3.8, 0.0),
    15: (5.9, 0.0), 16: (15.4, 1.2), 17: (42.9, 0.2), 18: (4.1, 0.0), 19: (68.2, 3.1), 20: (2.4, 0.0),
}  # fmt: skip
PAPER_MEAN = {"Transformer": (26.8, 22.1), "UT": (8.50, 0.47), "UT + ACT": (7.78, 0.29)}
PAPER_STEPS = {1: (2.3, 0.8), 2: (3.1, 1.1), 3: (3.8, 2.2)}  # supporting facts -> mean and deviation of the steps

Claim = TypeVar("Claim")


@dataclass(frozen=True)
class Stories(Setting):
    """Setting, how much there is to learn from, and the cost of pondering.

    Args:
        stories: different ones of each task, which are gone through several times.
        loss_weight: of the ponder cost, once it weighs in full.
        ponder_begin: share of the training that goes by without it.
        ponder_end: share after which it weighs in full.
        halting_bias: of a new halting unit.
        save_every: updates between checkpoints.
    """

    stories: int = 10_000
    loss_weight: float = 0.05
    ponder_begin: float = 0.5
    ponder_end: float = 0.7
    halting_bias: float = -1.0
    save_every: int = 1000


SCALED = Stories(depth=3, updates=30_000, rate=2e-3, warmup=200)
PAPERS = Stories(hidden=128, updates=100_000, batch=128, rate=1e-3, warmup=4000, dropout=0.1)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    decisive = {**vars(setting), "tasks": options.tasks, "cases": options.cases, "seed": options.seed}
    rows = claimed(lambda: FinishedRows(options.output, decisive, resume=options.resume))
    heading(f"{len(options.tasks)} tasks together, {setting.stories} stories each, {setting.updates} updates")
    print(f"  width {setting.hidden}, depth {setting.depth} (with ACT at most twice as many steps)")

    test = StoryDataset(options.tasks, options.cases * len(options.tasks), seed=0)

    def measure(model: Kind) -> Row:
        found = read(train(model, setting, options, decisive), test)
        row: Row = {"error": {str(task): found[task].error for task in options.tasks}}
        if model == "UT + ACT":
            row["steps"] = steps_by_support(list(found.values()))
            row["steps of three tasks"] = steps_by_support([found[task] for task in (1, 2, 3) if task in found])
        return row

    finished = rows.complete([{"model": kind} for kind in options.models], measure, describe)
    heading("Error in per cent, this run; the paper's UT + ACT on bAbI")
    print(error_table(finished, options.tasks, test, column=1 if setting.stories >= PAPERS.stories else 0))
    adaptive = rows.find({"model": "UT + ACT"})
    if adaptive in finished:
        show_steps(adaptive, setting, test, options)
    print(f"\nFigures: {rows.path}")
    return rows.figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    output, unit = "runs/stories", "stories of each task to test on"
    parser = recipe_parser(__doc__, SCALED, PAPERS, output=output, cases=200, unit=unit)
    parser.set_defaults(models=["UT + ACT"])
    parser.add_argument("--tasks", nargs="+", type=int, default=list(TASKS), choices=TASKS, metavar="TASK")
    parser.add_argument("--picture", type=Path, help="of halting (default: halting.png in --output)")
    return parser.parse_args(argv)


def claimed(claim: Callable[[], Claim]) -> Claim:
    """What ``claim`` gives; leaves with its message where a run cannot go on."""
    try:
        return claim()
    except ValueError as error:
        raise SystemExit(str(error)) from None


def train(kind: Kind, setting: Stories, options: argparse.Namespace, decisive: dict[str, Any]) -> StoryReader:
    folder = checkpoints(kind, options)
    checkpoint = claimed(lambda: claim_folder(folder, decisive, resume=options.resume))
    drawn = [*StoryDataset(options.tasks, setting.stories * len(options.tasks), seed=options.seed + 1)]
    lengths = [len(item["input_ids"]) for item in drawn]
    count = setting.updates * setting.batch
    return train_on(
        new_model(kind, setting, options),
        LengthGroupedEpochs(drawn, count, lengths=lengths, batch_size=setting.batch, seed=options.seed),
        setting,
        collate=StoryCollator(),
        folder=folder,
        label=kind,
        seed=options.seed,
        save_every=setting.save_every,
        checkpoint=checkpoint,
        callbacks=[PonderWarmup(setting.ponder_begin, setting.ponder_end)],
    )


def checkpoints(kind: Kind, options: argparse.Namespace) -> Path:
    return options.output / "checkpoints" / kind


def new_model(kind: Kind, setting: Stories, options: argparse.Namespace) -> StoryReader:
    set_seed(options.seed)
    act = {"loss_weight": setting.loss_weight, "halting_bias": setting.halting_bias}
    config = comparison_config(kind, setting, act_options=act, **reader_config())
    return StoryReader(config).to("cuda" if torch.cuda.is_available() else "cpu")


def describe(row: Row) -> str:
    return f"mean error {fmean(row['error'].values()):.1f} %"


def error_table(rows: list[Row], tasks: list[int], test: StoryDataset, column: int) -> str:
    """By task: guessing the commonest answer, the models, the paper."""
    told: dict[int, Counter[str]] = {task: Counter() for task in tasks}
    for story in map(test.story, range(len(test))):
        told[story.task][story.answer] += 1
    guessing = {task: 100 - 100 * max(counts.values()) / counts.total() for task, counts in told.items()}

    def line(name: str, *errors: float) -> list[str]:
        return [name, *(f"{error:.1f}" for error in errors)]

    lines = [
        line(
            f"{task:>2} {TASKS[task][0]}",
            guessing[task],
            *(row["error"][str(task)] for row in rows),
            PAPER[task][column],
        )
        for task in tasks
    ]
    if len(tasks) == len(TASKS):
        means = [fmean(row["error"].values()) for row in rows]
        lines.append(line("   mean", fmean(guessing.values()), *means, PAPER_MEAN["UT + ACT"][column]))
        published = line("", *(PAPER_MEAN[row["model"]][column] for row in rows))[1:]
        lines.append(["   mean, the paper", "", *published, ""])
    return table(["", "guessing", *(row["model"] for row in rows), "the paper"], lines)


def show_steps(row: Row, setting: Stories, test: StoryDataset, options: argparse.Namespace) -> None:
    """Tables of steps, and the picture, of the last checkpoint."""
    three, steps = row["steps of three tasks"], row["steps"]
    if three["all sentences"]:
        heading("Steps by number of supporting facts, tasks 1 to 3, mean and deviation over stories")
        print(steps_table(three, PAPER_STEPS))
    if steps != three:
        heading("The same over all tasks")
        print(steps_table(steps, PAPER_STEPS))
    folder = last_checkpoint(checkpoints("UT + ACT", options))
    if folder is None:
        print(f"\nNo picture: there is no checkpoint in {checkpoints('UT + ACT', options)}")
        return
    model = new_model("UT + ACT", setting, options)
    load_model(model, folder / "model.safetensors")
    stories = [readable(task, test, model) for task in options.tasks[:3]]
    path = options.picture or options.output / "halting.png"
    shown = three if three["all sentences"] else steps
    series = {
        name: {int(number): (found[0], found[1]) for number, found in shown[name].items() if int(number) in PAPER_STEPS}
        for name in ("all sentences", "the question", "longest sentence")
    }
    draw_halting(path, model, stories, series | {"the paper, all sentences": PAPER_STEPS})
    print(f"\nPicture: {path}")


def readable(task: int, test: StoryDataset, model: StoryReader) -> Story:
    """A story that is short enough for a picture, and that the model answers rightly if there is one."""
    of_task = (story for story in map(test.story, range(len(test))) if story.task == task)
    nearest = sorted(of_task, key=lambda story: abs(len(story.sentences) - 8))[:20]
    return next((story for story in nearest if ponder_story(model, story)[1] == story.answer), nearest[0])


if __name__ == "__main__":
    main()
