"""Learning to execute: remembering digits, to say them again, once where they were shown twice, or backwards.

    python scripts/reproduce_memorisation.py                   # 7 minutes of one core, scaled down
    python scripts/reproduce_memorisation.py --resume          # after a kill: keeps the rows that were finished
    python scripts/reproduce_memorisation.py --full            # the paper's 55 digits: for a GPU
    python scripts/reproduce_memorisation.py --tasks control program --digits 3

Zaremba and Sutskever 2014; Dehghani et al. 2019, section 3.4. Lengths are mixed, without a curriculum. "program",
"control" and "addition" are small Python programs to be run (nesting 2; digits are then those of a number).

What differs from the paper, which does not tell size and steps: scaled down, up to 12 digits in
place of 55.
"""

import argparse
import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from longspan.data import programs
from longspan.data.programs import ExecutionDataset
from longspan.data.sequence_pairs import SequencePairCollator
from longspan.training.comparison import (
    Kind,
    Setting,
    accuracy_table,
    begin_rows,
    chosen_setting,
    comparison_config,
    recipe_parser,
    train_on,
)
from longspan.training.finished_rows import Row
from longspan.training.report import heading
from longspan.training.sequence_accuracy import Accuracy, sequence_accuracy
from longspan.universal_transformer import UniversalTransformerForConditionalGeneration

PAPER = {  # characters, sequences. None was published for ACT
    "Transformer": {
        "copy": (0.98, 0.63),
        "double": (0.94, 0.55),
        "reverse": (0.81, 0.26),
        "program": (0.71, 0.29),
        "control": (0.93, 0.66),
        "addition": (1.0, 1.0),
    },
    "UT": {
        "copy": (1.0, 1.0),
        "double": (1.0, 1.0),
        "reverse": (1.0, 1.0),
        "program": (0.89, 0.63),
        "control": (1.0, 1.0),
        "addition": (1.0, 1.0),
    },
}


@dataclass(frozen=True)
class Digits(Setting):
    """Setting and the size of the task.

    Args:
        digits: most digits to remember, or of a number in a program.
        nesting: most operations of a program.
    """

    digits: int = 12
    nesting: int = 2


SCALED = Digits(updates=1500, batch=16)
PAPERS = Digits(digits=55, hidden=512, heads=8, depth=6, updates=100_000, batch=128, rate=5e-4, warmup=4000)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    rows = begin_rows(options, setting)
    heading(f"{', '.join(options.tasks)}: up to {setting.digits} digits")
    print(f"  width {setting.hidden}, depth {setting.depth}, {setting.updates} updates of {setting.batch} pairs")

    def measure(task: programs.Kind, model: Kind) -> Row:
        trained = train(task, model, setting, options)
        test = ExecutionDataset(task, options.cases, length=setting.digits, nesting=setting.nesting, seed=0)
        parameters = sum(parameter.numel() for parameter in trained.parameters())
        return {"parameters": parameters, "accuracy": sequence_accuracy(trained, test, SequencePairCollator())}

    wanted = [{"task": task, "model": kind} for task in options.tasks for kind in options.models]
    finished = rows.complete(wanted, measure, describe)
    found: dict[str, dict[str, Accuracy]] = {kind: {} for kind in options.models}
    for row in finished:
        found[row["model"]][row["task"]] = Accuracy(*row["accuracy"])
    heading("Characters / sequences right, this run | the paper (55 digits)")
    print(accuracy_table(found, options.tasks, PAPER))
    print(f"\nFigures: {rows.path}")
    return rows.figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    chosen = ("copy", "double", "reverse")
    parser = recipe_parser(
        __doc__,
        SCALED,
        PAPERS,
        output="runs/memorisation",
        cases=300,
        unit="texts of each test",
        tasks=programs.KINDS,
        chosen=chosen,
    )
    return parser.parse_args(argv)


def describe(row: Row) -> str:
    return "{:.2f} M parameters, {:.2f} / {:.2f}".format(row["parameters"] / 1e6, *row["accuracy"])


def train(task: programs.Kind, kind: Kind, setting: Digits, options: argparse.Namespace) -> Any:
    set_seed(options.seed)
    config = comparison_config(kind, setting, vocab_size=programs.VOCAB_SIZE)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = UniversalTransformerForConditionalGeneration(config)
    count = setting.updates * setting.batch
    texts = ExecutionDataset(task, count, length=setting.digits, nesting=setting.nesting, seed=options.seed + 1)
    folder, label = options.output / "checkpoints", f"{task}, {kind}"
    return train_on(
        model, texts, setting, collate=SequencePairCollator(), folder=folder, label=label, seed=options.seed
    )


if __name__ == "__main__":
    main()
