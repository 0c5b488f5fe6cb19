"""Adagrad with clipping tensor by tensor, and linear warm-up: what adaptive spans were first trained with.

The derivative by a span as a fraction is the maximum span times that by its tokens, so that spans need a step whose
size does not follow the gradient's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


class ClippedAdagrad(torch.optim.Optimizer):
    """Adagrad that takes smaller steps where a tensor's gradient is long.

    With gradient g of a tensor, and the sum G of its squares so far, g * g included (Duchi et al. 2011)::

        weight -= lr * min(1, clip / |g|) * g / (sqrt(G) + eps)

    The sum takes g as it came. That is not Adagrad on clipped gradients: there G would shrink with g, and clipping
    would hardly show (Sukhbaatar et al. 2019, released code).

    Clipping once more before the step would undo that: with transformers' Trainer set ``max_grad_norm=0``.

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        clip: L2 norm of one tensor's gradient beyond which steps shrink; ``None``: never.
        eps: added to the root.
        weight_decay: times the weight, added to the gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.07,
        *,
        clip: float | None = 0.03,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be above 0, or None for no clipping, got {clip}")
        super().__init__(params, dict(lr=lr, clip=clip, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """One step on the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise ValueError("gradients must be dense, got a sparse one: make the embedding with sparse=False")
        state = self.state[parameter]
        if not state:
            state["sum"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state["sum"].addcmul_(gradient, gradient)
        root = state["sum"].sqrt().add_(group["eps"])
        if group["clip"] is not None:
            norm = torch.linalg.vector_norm(gradient, dtype=torch.promote_types(gradient.dtype, torch.float32))
            gradient = gradient * (group["clip"] / norm).clamp(max=1.0).to(gradient.dtype)  # norm 0: inf, so 1
        parameter.addcdiv_(gradient, root, value=-group["lr"])


def linear_warmup(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The learning rate rises linearly over ``steps`` updates and stays: k-th update, lr * min(1, k / steps), k from 1.

    transformers' ``constant_with_warmup`` counts from 0, so that its first update does nothing.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    return LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / max(1, steps)))
