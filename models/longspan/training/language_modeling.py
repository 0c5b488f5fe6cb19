"""Training a causal language model with `transformers.Trainer`, on windows of a text or over it as a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from longspan.data.streams import Ids
from longspan.training.adagrad import ClippedAdagrad, linear_warmup
from longspan.training.checkpoints import load_finished
from longspan.training.fine_tuning import has_fast_bf16
from longspan.training.parameters import parameter_groups
from longspan.training.progress import ProgressCallback
from longspan.training.spans import SpanCallback
from longspan.training.streams import StreamTrainer

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
        schedule: how it falls afterwards: "cosine" to 0 at the end, "inverse_sqrt" with the root of the steps done,
            "constant" not at all.
        optimizer: "adamw", or "adagrad", which clips tensor by tensor (`ClippedAdagrad`).
        clip: norm of gradients: of all together, with Adagrad of each tensor.
        beta2: of Adam; 0.98 is the original Reformer's.
        weight_decay: of matrices; biases, norms, embeddings and spans have none.
        span_rate: highest learning rate of learnt spans, which are fractions of the maximum; ``None``: ``rate``.
        seed: of everything random.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    rate: float = 1e-3
    warmup: int = 100
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    optimizer: Literal["adamw", "adagrad"] = "adamw"
    clip: float = 1.0
    beta2: float = 0.98
    weight_decay: float = 0.01
    span_rate: float | None = None
    seed: int = 0

    @property
    def windows(self) -> int:
        """How many windows the run reads."""
        return self.steps * self.batch_size * self.accumulate


def build_optimizer(model: Any, recipe: LanguageModelRecipe) -> tuple[torch.optim.Optimizer, LambdaLR | None]:
    """The optimizer, and its schedule where Trainer has none of that kind."""
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adagrad":
        groups = parameter_groups(model, 0.0, recipe.span_rate)  # its steps do not grow with the gradient, nor shrink
        optimizer = ClippedAdagrad(groups, lr=recipe.rate, clip=recipe.clip)
    else:
        groups = parameter_groups(model, recipe.weight_decay, recipe.span_rate)
        optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, recipe.beta2), fused=True)
    return optimizer, linear_warmup(optimizer, recipe.warmup) if recipe.schedule == "constant" else None


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

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or take the weights of a run that had come to its end."""
        checkpoint = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        finished = load_finished(self, checkpoint, self.args.max_steps)
        return finished or super().train(resume_from_checkpoint, *args, **kwargs)

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
    trainer = LanguageModelTrainer(
        model=model,
        args=training_arguments(recipe, folder, measure_every, save_every, bf16),
        train_dataset=windows,
        data_collator=collate,
        optimizers=build_optimizer(model, recipe),  # pyright: ignore
        callbacks=[ProgressCallback(label)],
        measure=measure,
        figure=figure,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def build_stream_trainer(
    model: Any,
    ids: Ids,
    held_out: Ids,
    recipe: LanguageModelRecipe,
    *,
    block_size: int,
    folder: Path | str,
    unit: str = "byte",
    measure_every: int | None = None,
    save_every: int | None = None,
    picture: Path | str | None = None,
    label: str = "training",
) -> StreamTrainer:
    """A `StreamTrainer` for a model that carries state: the recipe's windows are the next blocks of its rows.

    Args:
        model: see `StreamTrainer`.
        ids: the stream.
        held_out: what is measured during training.
        recipe: see there.
        block_size: tokens of a row in a step.
        folder: for checkpoints.
        unit: what a token is.
        measure_every: see `build_trainer`.
        save_every: see `build_trainer`.
        picture: of learnt spans at the end, where the model has such; ``None``: none.
        label: stands before the progress bar.
    """
    callbacks: list[TrainerCallback] = [ProgressCallback(label)]
    if hasattr(model, "clamp_spans"):
        callbacks.append(SpanCallback(picture))
    optimizer, schedule = build_optimizer(model, recipe)
    trainer = StreamTrainer(
        model,
        training_arguments(recipe, folder, measure_every, save_every),
        train_dataset=ids,
        eval_dataset=held_out,
        block_size=block_size,
        unit=unit,
        optimizers=(optimizer, schedule),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def training_arguments(
    recipe: LanguageModelRecipe,
    folder: Path | str,
    measure_every: int | None,
    save_every: int | None,
    bf16: bool | None = None,
) -> TrainingArguments:
    """The recipe as Trainer takes it; the others as in `build_trainer`."""
    if save_every is not None and save_every % LOG_EVERY:
        raise ValueError(f"save_every must be a multiple of {LOG_EVERY} steps, got {save_every}")
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        train_sampling_strategy="sequential",  # the windows are drawn already
        learning_rate=recipe.rate,
        warmup_steps=recipe.warmup,
        lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
        max_grad_norm=0.0 if recipe.optimizer == "adagrad" else recipe.clip,
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
