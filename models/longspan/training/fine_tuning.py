"""Fine-tuning on a fixed number of short windows with `transformers.Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from longspan.training.progress import ProgressCallback


@dataclass(frozen=True)
class Recipe:
    """How to train: the few numbers that differ from run to run.

    Args:
        batches: optimizer steps.
        batch_size: windows in a forward pass.
        body_rate: learning rate of the pretrained parameters.
        head_rate: learning rate of the new ones.
        warmup: share of the steps in which the rates rise; they fall linearly to 0 afterwards.
        seed: of everything random.
    """

    batches: int
    batch_size: int
    body_rate: float = 2e-4
    head_rate: float = 2e-3
    warmup: float = 0.1
    seed: int = 0


def has_fast_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def freeze_embeddings(backbone: Any) -> None:
    """Keep word and position embeddings as pretrained.

    They are most of a small model's parameters, yet a short fine-tuning touches few rows: their dense gradient and
    optimizer step would cost as much as several windows.
    """
    for name in ("word_embeddings", "position_embeddings"):
        getattr(backbone.embeddings, name).requires_grad_(False)


def parameter_groups(model: nn.Module, backbone: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Trained parameters: the backbone's with weight decay, the head's, which begin at random, at their own rate."""
    body = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    known = {id(parameter) for parameter in backbone.parameters()}
    head = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return [
        {"params": body, "lr": recipe.body_rate, "weight_decay": 0.01},
        {"params": head, "lr": recipe.head_rate, "weight_decay": 0.0},
    ]


def build_trainer(
    model: Any,
    backbone: nn.Module,
    windows: Dataset[Any],
    collate: Callable[[Any], Any],
    recipe: Recipe,
    *,
    folder: Path | str,
    label: str = "training",
    accumulate: int = 1,
    save_every: int | None = None,
) -> Trainer:
    """A Trainer that goes through ``windows`` in their order, once.

    Args:
        model: with a loss; its trained parameters are those that require gradients.
        backbone: the pretrained part of it.
        windows: as many items as the recipe's batches need.
        collate: makes a batch.
        recipe: see `Recipe`.
        folder: for checkpoints.
        label: stands before the progress bar.
        accumulate: batches whose gradients make one optimizer step.
        save_every: steps between checkpoints, of which the last two are kept; ``None``: none are written.
    """
    on_gpu = torch.cuda.is_available()
    optimizer = torch.optim.AdamW(parameter_groups(model, backbone, recipe), betas=(0.9, 0.98), fused=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.batches,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=accumulate,
        train_sampling_strategy="sequential",  # the windows are drawn already
        warmup_steps=recipe.warmup,
        lr_scheduler_type="linear",
        max_grad_norm=1.0,
        use_cpu=not on_gpu,
        bf16=has_fast_bf16("cuda" if on_gpu else "cpu"),
        seed=recipe.seed,
        logging_steps=5,
        save_strategy="no" if save_every is None else "steps",
        save_steps=save_every or 500,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=on_gpu,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        data_collator=collate,
        optimizers=(optimizer, None),
        callbacks=[ProgressCallback(label)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
