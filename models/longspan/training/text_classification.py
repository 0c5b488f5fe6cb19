"""Small text classifiers trained from scratch with `transformers.Trainer`: some epochs, the best of them kept.

N texts, L labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from longspan.training.parameters import parameter_groups
from longspan.training.progress import ProgressCallback


@dataclass(frozen=True)
class TextRecipe:
    """How to train: the numbers that differ from run to run.

    Args:
        epochs: passes through the training texts.
        batch_size: texts in a step.
        rate: highest learning rate; it rises for a tenth of the steps, then falls linearly to 0.
        weight_decay: of matrices; biases and word vectors have none.
        schedule: how texts are drawn: "random", or "group_by_length", which pads less.
        seed: of everything random.
    """

    epochs: int
    batch_size: int = 32
    rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["random", "group_by_length"] = "random"
    seed: int = 0


@dataclass
class Trained:
    """What a training gave.

    Args:
        seconds: processor time of each epoch, all threads together, without evaluation.
        accuracy: of each epoch on the validation part; empty without one.
    """

    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Number of the epoch that was kept, from 1: the last one, where nothing was chosen by."""
        return int(np.argmax(self.accuracy)) + 1 if self.accuracy else len(self.seconds)

    @property
    def seconds_per_epoch(self) -> float:
        return float(np.median(self.seconds))


class _BestEpoch(TrainerCallback):
    """Remembers the weights of the epoch with the highest accuracy, and how long epochs took."""

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self.weights: dict[str, Tensor] = {}
        self._began = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.process_time()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trained.seconds.append(time.process_time() - self._began)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        accuracy = kwargs["metrics"]["eval_accuracy"]
        if not self.trained.accuracy or accuracy > max(self.trained.accuracy):
            self.weights = {name: value.detach().clone() for name, value in kwargs["model"].state_dict().items()}
        self.trained.accuracy.append(accuracy)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.weights:
            kwargs["model"].load_state_dict(self.weights)


def train_classifier(
    model: Any,
    train: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]] | None,
    collate: Callable[[Any], Any],
    recipe: TextRecipe,
    *,
    folder: Path | str,
    label: str = "training",
) -> Trained:
    """Train ``model`` in place and leave it with the weights of the epoch that was best on ``validation``, if given.

    Args:
        model: with a loss.
        train: examples with ``input_ids``, ``labels`` and whatever else the model takes.
        validation: the same, to choose the epoch by; None: the last is kept.
        collate: makes a batch.
        recipe: see `TextRecipe`.
        folder: where Trainer may write; nothing is written.
        label: stands before the progress bar.
    """
    on_gpu = torch.cuda.is_available()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.rate, fused=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=recipe.rate,
        warmup_steps=0.1,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        train_sampling_strategy=recipe.schedule,
        use_cpu=not on_gpu,
        seed=recipe.seed,
        logging_steps=20,
        eval_strategy="no" if validation is None else "epoch",
        save_strategy="no",
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
    )
    trained = Trained()
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,  # type: ignore[arg-type]
        eval_dataset=validation,  # type: ignore[arg-type]
        data_collator=collate,
        optimizers=(optimizer, None),
        compute_metrics=lambda seen: {"accuracy": accuracy(np.asarray(seen.predictions), np.asarray(seen.label_ids))},
        callbacks=[ProgressCallback(label), _BestEpoch(trained)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trained


@torch.no_grad()
def logits_of(model: Any, examples: Sequence[dict[str, Any]], collate: Callable[[Any], Any], batch_size: int) -> Tensor:
    """``[N, L]`` in the order of the examples; texts of like length are read together."""
    model.eval()
    order = sorted(range(len(examples)), key=lambda number: len(examples[number]["input_ids"]))
    out = [torch.empty(0)] * len(examples)
    for begin in range(0, len(order), batch_size):
        numbers = order[begin : begin + batch_size]
        batch = collate([examples[number] for number in numbers])
        batch = {name: value.to(model.device) for name, value in batch.items() if name != "labels"}
        for number, row in zip(numbers, model(**batch).logits.float().cpu(), strict=True):
            out[number] = row
    return torch.stack(out)


def accuracy(logits: np.ndarray | Tensor, labels: Sequence[int] | np.ndarray) -> float:
    """Share of examples whose highest score is that of the right label."""
    return float((np.asarray(logits).argmax(-1) == np.asarray(labels)).mean())
