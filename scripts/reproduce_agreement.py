"""Subject-verb agreement with attractors: a language model, asked at the verb for its number.

    python scripts/reproduce_agreement.py                      # 2 minutes of one core
    python scripts/reproduce_agreement.py --resume             # after a kill: keeps the rows that were finished

After Linzen et al. 2016 and Dehghani et al. 2019, section 3.2: trained as a language model, a model is right where the
verb's right form is likelier than the wrong one. An attractor is a noun between subject and verb whose number is not
the subject's. Training sentences have any number of them up to 5, each further one a quarter as often, so that few have
three or more.

What differs from the paper: its sentences come from Wikipedia, ours from a small grammar (14 nouns, 6 verbs, phrases
and clauses), so that figures do not compare: what does is how they fall with the number of attractors, and which model
is ahead.
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

from longspan.data.epochs import ShuffledEpochs
from longspan.data.subject_verb import VOCAB_SIZE, AgreementDataset
from longspan.training.agreement import agreement_accuracy, collate_sentences
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
from longspan.universal_transformer import UniversalTransformerForCausalLM

ATTRACTORS = range(6)
PAPER = {  # accuracy by number of attractors
    "Transformer": (0.973, 0.941, 0.932, 0.917, 0.901, 0.883),
    "UT": (0.993, 0.971, 0.969, 0.940, 0.921, 0.892),
    "UT + ACT": (0.994, 0.969, 0.967, 0.944, 0.932, 0.907),
}


@dataclass(frozen=True)
class Agreements(Setting):
    """Setting and how much there is to learn from.

    Args:
        sentences: different ones, which are gone through several times.
    """

    sentences: int = 10_000


SCALED = Agreements(updates=1000)
PAPERS = Agreements(
    sentences=1_000_000, hidden=512, heads=8, depth=6, updates=100_000, batch=128, rate=5e-4, warmup=4000
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = chosen_setting(options, SCALED, PAPERS)
    rows = begin_rows(options, setting)
    heading(f"{setting.sentences} sentences, {setting.updates} updates of {setting.batch}")
    print(f"  width {setting.hidden}, depth {setting.depth}; guessing is right half of the time")

    def measure(model: Kind) -> Row:
        trained = train(model, setting, options)
        parameters = sum(parameter.numel() for parameter in trained.parameters())
        tests = [AgreementDataset(options.cases, attractors=[number], seed=0) for number in ATTRACTORS]
        return {"parameters": parameters, "accuracy": [agreement_accuracy(trained, test) for test in tests]}

    finished = rows.complete([{"model": kind} for kind in options.models], measure, describe)
    heading("Accuracy by number of attractors, this run | the paper (on Wikipedia's sentences)")
    cells = [
        [
            row["model"],
            *(f"{own:.3f} | {paper:.3f}" for own, paper in zip(row["accuracy"], PAPER[row["model"]], strict=True)),
        ]
        for row in finished
    ]
    print(table(["", *map(str, ATTRACTORS)], cells))
    print(f"\nFigures: {rows.path}")
    return rows.figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = recipe_parser(
        __doc__, SCALED, PAPERS, output="runs/agreement", cases=1000, unit="sentences for each number of attractors"
    )
    return parser.parse_args(argv)


def describe(row: Row) -> str:
    return f"{row['parameters'] / 1e6:.2f} M parameters, " + " ".join(f"{value:.3f}" for value in row["accuracy"])


def train(kind: Kind, setting: Agreements, options: argparse.Namespace) -> Any:
    set_seed(options.seed)
    config = comparison_config(kind, setting, vocab_size=VOCAB_SIZE, is_encoder_decoder=False, is_decoder=True)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = UniversalTransformerForCausalLM(config)
    drawn = AgreementDataset(setting.sentences, seed=options.seed + 1)
    sentences = ShuffledEpochs([*drawn], setting.updates * setting.batch, seed=options.seed)
    folder = options.output / "checkpoints"
    return train_on(model, sentences, setting, collate=collate_sentences, folder=folder, label=kind, seed=options.seed)


if __name__ == "__main__":
    main()
