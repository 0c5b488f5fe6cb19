"""Copying, reversing and adding digits: trained on short inputs, tested on inputs up to ten times as long.

    python scripts/reproduce_algorithmic.py                    # 15 minutes of one core, scaled down
    python scripts/reproduce_algorithmic.py --resume           # after a kill: keeps the rows that were finished
    python scripts/reproduce_algorithmic.py --full             # the paper's lengths, 40 and 400: for a GPU
    python scripts/reproduce_algorithmic.py --tasks copy --models UT Transformer --updates 500

Dehghani et al. 2019, section 3.3. Numbers are written units first. In training a text's places begin at a random one,
the same for input and output, so that no place of a long text is unknown. The plain Transformer has the same width and
depth, but weights of its own in every layer.

What differs from the paper, which does not tell size and steps: scaled down, inputs have up to 10 symbols in place of
40, and are tested up to 100 in place of 400. Characters are asked for after the right ones before them; a whole
sequence is right exactly when greedy generation would write it.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from longspan.data.algorithmic import VOCAB_SIZE, AlgorithmicDataset, Task
from longspan.data.sequence_pairs import SequencePairCollator
from longspan.training.comparison import (
    Kind,
    Setting,
    begin_rows,
    chosen_setting,
    comparison_config,
    recipe_parser,
    train_on,
)
from longspan.training.finished_rows import Row
from longspan.training.report import heading, table
from longspan.training.sequence_accuracy import Accuracy, sequence_accuracy
from longspan.universal_transformer import UniversalTransformerForConditionalGeneration

TASKS: tuple[Task, ...] = ("copy", "reverse", "addition")
PAPER = {  # characters, sequences; at lengths up to 400 after training on up to 40. None was published for ACT
    "Transformer": {"copy": (0.53, 0.03), "reverse": (0.13, 0.06), "addition": (0.07, 0.0)},
    "UT": {"copy": (0.91, 0.35), "reverse": (0.96, 0.46), "addition": (0.34, 0.02)},
}


@dataclass(frozen=True)
class Lengths(Setting):
    """Setting and the lengths of inputs.

    Args:
        longest: symbols of the longest input in training.
        test: symbols of the longest input in the test.
    """

    longest: int = 10
    test: int = 100


SCALED = Lengths(updates=4000, batch=16)
PAPERS = Lengths(longest=40, test=400, hidden=512, heads=8, depth=6, updates=100_000, batch=128, rate=5e-4, warmup=4000)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    lengths = sorted({setting.longest, min(2 * setting.longest, setting.test), setting.test})
    rows = begin_rows(options, setting)
    heading(f"Trained on inputs of up to {setting.longest} symbols, tested on up to {setting.test}")
    print(f"  width {setting.hidden}, depth {setting.depth}, {setting.updates} updates of {setting.batch} pairs")

    def measure(task: Task, model: Kind) -> Row:
        trained = train(task, model, setting, options)
        parameters = sum(parameter.numel() for parameter in trained.parameters())
        found = {f"to {longest}": evaluate(trained, task, longest, options.cases) for longest in lengths}
        return {"parameters": parameters, **found}

    wanted = [{"task": task, "model": kind} for task in options.tasks for kind in options.models]
    finished = rows.complete(wanted, measure, lambda row: describe(row, lengths))
    heading("Characters / sequences right, inputs of up to so many symbols; the paper: trained to 40, tested to 400")
    header = ["", *(f"to {longest}" for longest in lengths), "the paper"]
    print(table(header, [[f"{row['task']}, {row['model']}", *cells(row, lengths)] for row in finished]))
    print(f"\nFigures: {rows.path}")
    return rows.figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = recipe_parser(
        __doc__, SCALED, PAPERS, output="runs/algorithmic", cases=200, unit="inputs of each test", tasks=TASKS
    )
    return parser.parse_args(argv)


def describe(row: Row, lengths: Sequence[int]) -> str:
    right = ", ".join(f"to {longest}: {show(row[f'to {longest}'])}" for longest in lengths)
    return f"{row['parameters'] / 1e6:.2f} M parameters, {right}"


def cells(row: Row, lengths: Sequence[int]) -> list[str]:
    published = PAPER.get(row["model"], {}).get(row["task"])
    return [*(show(row[f"to {longest}"]) for longest in lengths), show(published) if published else "-"]


def show(accuracy: Sequence[float]) -> str:
    return "{:.2f} / {:.2f}".format(*accuracy)


def train(task: Task, kind: Kind, setting: Lengths, options: argparse.Namespace) -> Any:
    set_seed(options.seed)
    config = comparison_config(
        kind,
        setting,
        vocab_size=VOCAB_SIZE,
        position_offset="random",
        max_position_offset=setting.test - setting.longest + 2,  # so that the end of the longest output is known too
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = UniversalTransformerForConditionalGeneration(config)
    pairs = AlgorithmicDataset(task, setting.updates * setting.batch, longest=setting.longest, seed=options.seed + 1)
    folder, label = options.output / "checkpoints", f"{task}, {kind}"
    return train_on(
        model, pairs, setting, collate=SequencePairCollator(), folder=folder, label=label, seed=options.seed
    )


def evaluate(model: Any, task: Task, longest: int, cases: int) -> Accuracy:
    """On inputs of every length up to ``longest``, drawn anew: only of the shortest some were seen in training."""
    return sequence_accuracy(model, AlgorithmicDataset(task, cases, longest=longest, seed=0), SequencePairCollator())


if __name__ == "__main__":
    main()
