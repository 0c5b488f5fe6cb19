"""Training a causal language model on windows of a text with `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments, default_data_collator

from longspan.training.fine_tuning import has_fast_bf16
from longspan.training.progress import ProgressCallback

LOG_EVERY = 10  # steps whose mean loss is one point of the curve


@dataclass(frozen=True)
class LanguageModelRecipe:
    """How to train: the numbers that differ from run to run.

    Args:
        steps: optimizer steps.
        batch_size: windows in a forward pass.
        accumulate: passes whose gradients make one step.
        rate: highest learning rate.
        warmup: steps in which it rises.
        schedule: how it falls afterwards: "cosine" to 0 at the end, "inverse_sqrt" with the root of the steps done.
        beta2: of Adam; 0.98 is the original Reformer's.
        weight_decay: of matrices; biases, norms and embeddings have none.
        seed: of everything random.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    rate: float = 1e-3
    warmup: int = 100
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"
    beta2: float = 0.98
    weight_decay: float = 0.01
    seed: int = 0

    @property
    def windows(self) -> int:
        """How many windows the run reads."""
        return self.steps * self.batch_size * self.accumulate


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trained parameters: matrices of linear maps, which decay, and the others, which do not."""
    decaying = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in decaying - embeddings].append(parameter)
    return [
        {"params": groups[True], "weight_decay": weight_decay},
        {"params": groups[False], "weight_decay": 0.0},
    ]


class LanguageModelTrainer(Trainer):
    """A Trainer whose evaluation is a figure of one's own, such as bits per byte of a held-out text.

    Args:
        measure: takes the model, returns the figure.
        figure: its name in the log, where it stands as ``eval_<figure>``.
    """

    def __init__(self, *args: Any, measure: Callable[[Any], float], figure: str, **kwargs: Any) -> None:
        kwargs.setdefault("eval_dataset", kwargs["train_dataset"])  # never read, but wanted where there is evaluation
        super().__init__(*args, **kwargs)
        self._measure, self._figure = measure, figure

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log."""
        metrics = {f"eval_{self._figure}": self._measure(self.model)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_trainer(
    model: Any,
    windows: Dataset[Any],
    recipe: LanguageModelRecipe,
    *,
    folder: Path | str,
    measure: Callable[[Any], float],
    figure: str = "bits_per_byte",
    measure_every: int | None = None,
    save_every: int | None = None,
    label: str = "training",
    collate: Callable[[Any], Any] = default_data_collator,
    bf16: bool | None = None,
) -> LanguageModelTrainer:
    """A Trainer that goes through ``windows`` in their order, once.

    A run that is killed and resumed from a checkpoint ends with the same weights and the same curve: the windows are
    drawn by their number, and a checkpoint holds optimizer, schedule and the state of the random generators.

    Args:
        model: with a loss.
        windows: `LanguageModelRecipe.windows` items, see `RandomWindows`.
        recipe: see there.
        folder: for checkpoints.
        measure: see `LanguageModelTrainer`.
        figure: name of what is measured.
        measure_every: steps between measurements; ``None``: none during training.
        save_every: steps between checkpoints, of which the last two are kept; a multiple of `LOG_EVERY`, since what a
            point of the curve has gathered is not kept. ``None``: none are written.
        label: stands before the progress bar.
        collate: makes a batch of windows.
        bf16: whether products are computed in bf16; None: where that is fast.
    """
    if save_every is not None and save_every % LOG_EVERY:
        raise ValueError(f"save_every must be a multiple of {LOG_EVERY} steps, got {save_every}")
    on_gpu = torch.cuda.is_available()
    groups = parameter_groups(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, recipe.beta2), fused=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        train_sampling_strategy="sequential",  # the windows are drawn already
        learning_rate=recipe.rate,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=recipe.schedule,
        max_grad_norm=1.0,
        use_cpu=not on_gpu,
        bf16=has_fast_bf16("cuda" if on_gpu else "cpu") if bf16 is None else bf16,
        seed=recipe.seed,
        logging_steps=LOG_EVERY,
        eval_strategy="no" if measure_every is None else "steps",
        eval_steps=measure_every,
        save_strategy="no" if save_every is None else "steps",
        save_steps=save_every or 500,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=on_gpu,
    )
    trainer = LanguageModelTrainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[ProgressCallback(label)],
        measure=measure,
        figure=figure,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
