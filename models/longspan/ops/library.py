"""The torch library ``longspan``: where every operator has its schema, whatever device its kernels are for."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("longspan", "FRAGMENT")  # a module global: collected, it takes its operators with it
REFERENCES: dict[str, Callable[..., Any]] = {}


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with autocast off on the device of its first tensor.

    For code that widens what it is given to the dtype of its sums: autocast would narrow its products again, and a
    product of two large float16 vectors is infinite.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        kind = next(arg.device.type for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor))
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return function(*args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return function(*args, **kwargs)

    return run


def define_reference(name: str, reference: Callable[..., Any]) -> None:
    """What ``longspan::<name>`` runs on every device that has no kernel of its own."""
    REFERENCES[name] = without_autocast(reference)
    LIBRARY.impl(name, REFERENCES[name], "CompositeExplicitAutograd")


def has_kernel(operator: str, key: str) -> bool:
    """Whether ``longspan::<operator>`` has a compiled kernel for a dispatch key, as "CPU" (private in torch)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"longspan::{operator}", key)
