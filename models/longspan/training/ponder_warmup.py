"""The ponder cost of adaptive computation time, kept back until a model has learned what its steps are good for."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from longspan.layers.recurrence import ActRecurrence


class PonderWarmup(TrainerCallback):
    """Raises the weight of the ponder cost from 0 to the model's own in the course of training.

    A new model gains little by its later steps, so that a cost from the beginning can outweigh what they would be good
    for later. Without cost at first a model learns with all of them, and then gives up those that it can spare.

    Args:
        begin: share of all updates that go by without cost.
        end: share after which the cost weighs as much as the model says; from ``begin`` it rises in a line.

    Raises:
        ValueError: unless ``0 <= begin <= end <= 1``.
    """

    def __init__(self, begin: float, end: float) -> None:
        if not 0 <= begin <= end <= 1:
            raise ValueError(f"begin and end must be shares with 0 <= begin <= end <= 1, got {begin} and {end}")
        self.begin, self.end = begin, end
        self._own: dict[ActRecurrence, float] = {}

    def factor(self, done: float) -> float:
        """What the weight is multiplied by when the share ``done`` of all updates is."""
        if done >= self.end:
            return 1.0
        return max(0.0, (done - self.begin) / (self.end - self.begin)) if done > self.begin else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._own = {part: part.loss_weight for part in kwargs["model"].modules() if isinstance(part, ActRecurrence)}

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part, weight in self._own.items():
            part.loss_weight = weight * self.factor(state.global_step / state.max_steps)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part, weight in self._own.items():
            part.loss_weight = weight
