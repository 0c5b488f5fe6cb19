"""Learning to execute: remembering up to 55 digits, to say them again, once where they were shown twice, or backwards.

    python scripts/reproduce_memorisation.py                   # minutes on two cores, scaled down
    python scripts/reproduce_memorisation.py --full            # the paper's 55 digits: for a GPU
    python scripts/reproduce_memorisation.py --tasks control program --digits 3

Zaremba and Sutskever 2014; Dehghani et al. 2019, section 3.4. Lengths are mixed, without a curriculum. "program",
"control" and "addition" are small Python programs to be run (nesting 2; digits are then those of a number).

What differs from the paper, which does not tell size and steps: scaled down, up to 20 digits.
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

from longspan.data import programs
from longspan.data.programs import ExecutionDataset
from longspan.data.sequence_pairs import SequencePairCollator
from longspan.training.comparison import (
    KINDS,
    Kind,
    Setting,
    accuracy_table,
    add_setting_options,
    chosen_setting,
    comparison_config,
    train_on,
)
from longspan.training.report import heading, write_json
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

    digits: int = 20
    nesting: int = 2


SCALED = Digits()
PAPERS = Digits(digits=55, hidden=512, heads=8, depth=6, updates=100_000, batch=128, rate=5e-4, warmup=4000)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    heading(f"{', '.join(options.tasks)}: up to {setting.digits} digits")
    print(f"  width {setting.hidden}, depth {setting.depth}, {setting.updates} updates of {setting.batch} pairs")
    found: dict[str, dict[str, Accuracy]] = {kind: {} for kind in options.models}
    for task in options.tasks:
        for kind in options.models:
            began = time.process_time()
            model = train(task, kind, setting, options)
            test = ExecutionDataset(task, options.cases, length=setting.digits, nesting=setting.nesting, seed=0)
            found[kind][task] = sequence_accuracy(model, test, SequencePairCollator())
            took = time.process_time() - began
            print(f"  {task:<9}{kind:<12}{took:.0f} s of processor time", flush=True)
    heading("Characters / sequences right, this run | the paper")
    print(accuracy_table(found, options.tasks, PAPER))
    figures = {"setting": vars(setting), "accuracy": found}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "figures.json", figures)
    print(f"\nFigures: {options.output}/figures.json")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["copy", "double", "reverse"], choices=programs.KINDS)
    parser.add_argument("--models", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--cases", type=int, default=300, help="texts of each test")
    add_setting_options(parser, SCALED, PAPERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/memorisation"))
    return parser.parse_args(argv)


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
