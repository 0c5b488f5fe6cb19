"""Which parameters decay, and which learn at a rate of their own."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: Any, weight_decay: float, span_rate: float | None = None) -> list[dict[str, Any]]:
    """Trained parameters: matrices of linear maps, which decay, and the others, which do not.

    Args:
        model: the model.
        weight_decay: of matrices.
        span_rate: makes learnt spans a third group, with this learning rate.
    """
    decaying = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    spans = {id(parameter) for parameter in model.span_parameters()} if hasattr(model, "span_parameters") else set()
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "others": [], "spans": []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            apart = span_rate is not None and id(parameter) in spans
            decays = id(parameter) in decaying - embeddings - spans
            groups["spans" if apart else "matrices" if decays else "others"].append(parameter)
    made = [
        {"params": groups["matrices"], "weight_decay": weight_decay},
        {"params": groups["others"], "weight_decay": 0.0},
    ]
    if groups["spans"]:
        made.append({"params": groups["spans"], "weight_decay": 0.0, "lr": span_rate})
    return made
