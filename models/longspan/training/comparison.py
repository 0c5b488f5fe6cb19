"""The models that the Universal Transformer's experiments compare, at one width and depth, and their training.

"UT" applies one block a fixed number of times, "UT + ACT" until each token halts, "Transformer" applies as many blocks,
each with weights of its own: the plain model, which at the same width and depth has more parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from torch.utils.data import Dataset
from transformers import TrainerCallback

from longspan.training.finished_rows import FinishedRows
from longspan.training.language_modeling import LanguageModelRecipe, build_trainer
from longspan.training.report import table
from longspan.training.sequence_accuracy import Accuracy
from longspan.universal_transformer import UniversalTransformerConfig

Kind = Literal["UT", "UT + ACT", "Transformer"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ACT_OPTIONS = {"mix": "sum", "force_halt_at_max": True, "halting_bias": -1.0}
"""Graves' weighted sum with a forced last step: no token is cut off, and each has a gradient of its ponder cost.

A new model halts after about four steps; with tensor2tensor's bias of 1 it does after two, and often stays there.
"""


@dataclass(frozen=True)
class Setting:
    """Size of the models and of the training. A script's own adds the sizes of its task.

    Args:
        hidden: width of the models; four times as wide inside.
        heads: of attention.
        depth: steps, or layers; with ACT at most twice as many, as in tensor2tensor's sets.
        updates: of the optimizer.
        batch: examples in an update.
        rate: highest learning rate; it falls to 0 along a cosine.
        warmup: updates in which it rises.
        dropout: everywhere but in adaptive computation's bookkeeping.
    """

    hidden: int = 64
    heads: int = 4
    depth: int = 4
    updates: int = 2000
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 100
    dropout: float = 0.0

    def recipe(self, seed: int) -> LanguageModelRecipe:
        return LanguageModelRecipe(
            steps=self.updates, batch_size=self.batch, rate=self.rate, warmup=self.warmup, weight_decay=0.0, seed=seed
        )


AnySetting = TypeVar("AnySetting", bound=Setting)


def add_setting_options(parser: argparse.ArgumentParser, scaled: Setting, full: Setting) -> None:
    """An option for each field; not given, it is None: `chosen_setting` fills it in."""
    parser.add_argument("--full", action="store_true", help="the paper's size: for a GPU")
    for field in fields(scaled):
        small, large = getattr(scaled, field.name), getattr(full, field.name)
        name = field.name.replace("_", "-")
        parser.add_argument(f"--{name}", type=type(small), help=f"default: {small}; --full: {large}")


def recipe_parser(
    description: str | None,
    scaled: Setting,
    full: Setting,
    *,
    output: str,
    cases: int,
    unit: str,
    tasks: Sequence[str] = (),
    chosen: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """Options that the recipes share: what is compared, its size, and where figures go.

    Args:
        description: of the script; its first paragraph is shown.
        scaled: see `add_setting_options`.
        full: see there.
        output: folder for figures.
        cases: how much is tested.
        unit: what that counts.
        tasks: that there are; none: no such option.
        chosen: those done by default; none: all.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    if tasks:
        parser.add_argument("--tasks", nargs="+", default=list(chosen or tasks), choices=tasks)
    parser.add_argument("--models", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--cases", type=int, default=cases, help=f"{unit} (default: {cases})")
    add_setting_options(parser, scaled, full)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(output), help=f"default: {output}")
    parser.add_argument("--resume", action="store_true", help="keep the rows that a killed run finished")
    return parser


def begin_rows(options: argparse.Namespace, setting: Setting) -> FinishedRows:
    """Rows of a recipe with the options of `recipe_parser`; leaves with a message where they cannot go on."""
    decisive = {**vars(setting), "cases": options.cases, "seed": options.seed}
    try:
        return FinishedRows(options.output, decisive, resume=options.resume)
    except ValueError as error:
        raise SystemExit(str(error)) from None


def chosen_setting(options: argparse.Namespace, scaled: AnySetting, full: AnySetting) -> AnySetting:
    """``scaled``, or with --full ``full``, with what was given in place of their fields."""
    given = {field.name: getattr(options, field.name) for field in fields(scaled)}
    return replace(full if options.full else scaled, **{name: x for name, x in given.items() if x is not None})


def comparison_config(
    kind: Kind, setting: Setting, *, act_options: Mapping[str, Any] | None = None, **more: Any
) -> UniversalTransformerConfig:
    """Configuration of one of the models.

    Args:
        kind: see above.
        setting: see there.
        act_options: added to `ACT_OPTIONS`.
        more: fields of the configuration.

    Raises:
        ValueError: for an unknown kind.
    """
    values: dict[str, Any] = {
        "hidden_size": setting.hidden,
        "intermediate_size": 4 * setting.hidden,
        "num_attention_heads": setting.heads,
        "hidden_dropout_prob": setting.dropout,
        "attention_probs_dropout_prob": setting.dropout,
        "activation_dropout_prob": setting.dropout,
    }
    if kind == "Transformer":
        values |= {"num_inner_layers": setting.depth, "num_recurrent_steps": 1, "step_signal": "none"}
    elif kind == "UT":
        values |= {"num_recurrent_steps": setting.depth}
    elif kind == "UT + ACT":
        values |= {"num_recurrent_steps": 2 * setting.depth, "recurrence": "act"}
        values |= {"recurrence_options": ACT_OPTIONS | dict(act_options or {})}
    else:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return UniversalTransformerConfig(**values | more)


def train_on(
    model: Any,
    items: Dataset[Any],
    setting: Setting,
    *,
    collate: Callable[[Any], Any],
    folder: Path,
    label: str,
    seed: int,
    save_every: int | None = None,
    checkpoint: Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Any:
    """Train with `transformers.Trainer` on ``items`` in their order, in float32; returns the model in evaluation mode.

    Small models gain nothing from bf16, and adaptive computation halts by sums that it would round.

    Args:
        model: with a loss.
        items: as many as the setting's updates take.
        setting: see there.
        collate: makes a batch.
        folder: for checkpoints.
        label: stands before the progress bar.
        seed: of everything random.
        save_every: updates between checkpoints, see `build_trainer`; None: none are written.
        checkpoint: to go on from; None: at the beginning.
        callbacks: called beside the Trainer's own.
    """
    trainer = build_trainer(
        model,
        items,
        setting.recipe(seed),
        folder=folder,
        label=label,
        collate=collate,
        measure=lambda _: 0.0,
        save_every=save_every,
        bf16=False,
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return model.eval()


def accuracy_table(
    found: Mapping[str, Mapping[str, Accuracy]],
    tasks: Sequence[str],
    paper: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> str:
    """Characters / sequences right, by model and task; with ``paper``, its figures behind a bar."""

    def cell(kind: str, task: str) -> str:
        own = "{:.2f} / {:.2f}".format(*found[kind][task])
        if paper is None:
            return own
        published = paper.get(kind, {}).get(task)
        return f"{own} | " + ("{:.2f} / {:.2f}".format(*published) if published else "-")

    return table(["", *tasks], [[kind, *(cell(kind, task) for task in tasks)] for kind in found])
