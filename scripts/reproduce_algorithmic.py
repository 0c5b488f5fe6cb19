"""Copying, reversing and adding digits: trained on short inputs, tested on inputs up to ten times as long.

    python scripts/reproduce_algorithmic.py                    # minutes on two cores, scaled down
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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from longspan.data.algorithmic import VOCAB_SIZE, AlgorithmicDataset, Task
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


SCALED = Lengths()
PAPERS = Lengths(longest=40, test=400, hidden=512, heads=8, depth=6, updates=100_000, batch=128, rate=5e-4, warmup=4000)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    heading(f"Trained on inputs of up to {setting.longest} symbols, tested on up to {setting.test}")
    print(f"  width {setting.hidden}, depth {setting.depth}, {setting.updates} updates of {setting.batch} pairs")
    short: dict[str, dict[str, Accuracy]] = {kind: {} for kind in options.models}
    long: dict[str, dict[str, Accuracy]] = {kind: {} for kind in options.models}
    for task in options.tasks:
        for kind in options.models:
            began = time.process_time()
            model = train(task, kind, setting, options)
            for found, longest in ((short, setting.longest), (long, setting.test)):
                found[kind][task] = evaluate(model, task, longest, options.cases)
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            took = time.process_time() - began
            print(f"  {task:<9}{kind:<12}{millions:.2f} M parameters, {took:.0f} s of processor time", flush=True)
    heading(f"Characters / sequences right, inputs of up to {setting.longest} symbols")
    print(accuracy_table(short, options.tasks))
    heading(f"... of up to {setting.test} symbols, this run | the paper (40 and 400)")
    print(accuracy_table(long, options.tasks, PAPER))
    figures = {"setting": vars(setting), f"to {setting.longest}": short, f"to {setting.test}": long}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "figures.json", figures)
    print(f"\nFigures: {options.output}/figures.json")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--models", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--cases", type=int, default=200, help="inputs of each test")
    add_setting_options(parser, SCALED, PAPERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/algorithmic"))
    return parser.parse_args(argv)


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
    """On inputs of every length up to ``longest``, none of which was drawn for training."""
    return sequence_accuracy(model, AlgorithmicDataset(task, cases, longest=longest, seed=0), SequencePairCollator())


if __name__ == "__main__":
    main()
