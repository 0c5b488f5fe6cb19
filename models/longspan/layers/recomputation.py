"""What a layer needs that throws activations away and computes them again in the backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """At least float32: of streams that are subtracted again, of sums over many terms."""
    return torch.promote_types(dtype, torch.float32)


class AutocastState:
    """Autocast as it is now, on a device and on the CPU."""

    def __init__(self, device_type: str):
        self._settings = [
            {
                "device_type": kind,
                "enabled": torch.is_autocast_enabled(kind),
                "dtype": torch.get_autocast_dtype(kind),
                "cache_enabled": torch.is_autocast_cache_enabled(),
            }
            for kind in sorted({device_type, "cpu"})
            if torch.amp.is_autocast_available(kind)
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """As it was: backward usually runs outside the block that forward ran in."""
        with ExitStack() as stack:
            for settings in self._settings:
                stack.enter_context(torch.autocast(**settings))
            yield


class GradientSums:
    """Gradients of what many sublayers or pieces use, summed in at least float32.

    Room for all is made at once, before the large tensors of the sublayers: see ``Seeds`` for why.
    """

    def __init__(self, variables: Sequence[Tensor]):
        self._sums = {id(x): torch.zeros_like(x, dtype=wide(x.dtype)) for x in variables if x.requires_grad}
        self._used: set[int] = set()

    def add(self, variable: Tensor, grad: Tensor | None) -> None:
        """None adds nothing."""
        if grad is not None:
            self._sums[id(variable)] += grad
            self._used.add(id(variable))

    def take(self, variable: Tensor) -> Tensor | None:
        """The sum, which is not kept; None where nothing was added."""
        total = self._sums.pop(id(variable), None)
        return total.to(variable.dtype) if total is not None and id(variable) in self._used else None


@contextmanager
def without_hooks(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Hooks that a user registered on parameters are for whole gradients, which autograd shows them afterwards."""
    hooked = [(p._backward_hooks, dict(p._backward_hooks)) for p in parameters if p._backward_hooks]
    for hooks, _ in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, kept in hooked:
            hooks.update(kept)


def graph_is_retained() -> bool:
    """Whether this backward pass was asked to leave the graph as it is (private in torch; unknown means yes)."""
    ask = getattr(getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()
