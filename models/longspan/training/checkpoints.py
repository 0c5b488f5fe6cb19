"""Checkpoints of an interrupted run."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from longspan.training.report import write_json

_OPTIONS = "options.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a Trainer; one that a kill left half-written is passed over.

    Trainer writes its own state last, so a checkpoint that holds a readable one is complete.
    """
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf8"))
        except (OSError, ValueError):
            continue
        complete.append((int(state["global_step"]), checkpoint))
    return max(complete)[1] if complete else None


def load_finished(trainer: Trainer, checkpoint: str | Path | None, steps: int) -> TrainOutput | None:
    """Where a run had come to its end, its model and history; Trainer would resume it with one step too many.

    Args:
        trainer: takes them.
        checkpoint: that the run is to be resumed from.
        steps: the length of the run.

    Returns:
        What ``trainer.train()`` returns, or None where steps are left to be done.
    """
    if checkpoint is None:
        return None
    state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
    if state.global_step < steps:
        return None
    trainer._load_from_checkpoint(str(checkpoint))
    state.init_training_references(trainer, steps, 1, None)
    trainer.state = state
    return TrainOutput(state.global_step, 0.0, {})


def claim_folder(folder: Path, options: dict[str, object], *, resume: bool) -> Path | None:
    """Make a run's folder, or come back to it.

    Args:
        folder: of the run.
        options: everything that decides what the run computes; a resumed run must have the same.
        resume: go on with what is there.

    Returns:
        The checkpoint to go on from, or None at the beginning.

    Raises:
        ValueError: when a run is there already and ``resume`` is not set, or the options differ.
    """
    kept = folder / _OPTIONS
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None and not resume:
        raise ValueError(
            f"{folder} holds a run that reached {checkpoint.name}: --resume goes on with it, --output starts another"
        )
    if resume and kept.exists():
        before = json.loads(kept.read_text(encoding="utf8"))
        changed = [name for name in options if before.get(name) != options[name]]
        if changed and checkpoint is not None:
            told = ", ".join(f"{name} = {before.get(name)} (now {options[name]})" for name in changed)
            raise ValueError(
                f"the run in {folder} began with {told}: resume it with the same, or name another --output"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(kept, options)
    return checkpoint
