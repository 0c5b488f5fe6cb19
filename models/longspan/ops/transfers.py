"""Small numbers between the host and a device that works behind it.

What the host reads from a GPU it waits for, until all work given before is done. What it writes makes it wait as well
where nothing says otherwise: ``torch.tensor(numbers, device="cuda")`` and ``x[[3, 1]]`` stop the host.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def put_integers(numbers: Sequence[Any], device: torch.device) -> Tensor:
    """``torch.tensor(numbers, dtype=torch.int64, device=device)``, without waiting: the source is read at once."""
    return torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True)


def take(x: Tensor, dim: int, numbers: Sequence[int]) -> Tensor:
    """``x[.., numbers, ..]`` along ``dim``, without waiting."""
    return x.index_select(dim, put_integers(numbers, x.device))


def bounds(x: Tensor) -> tuple[int, int]:
    """The smallest and the largest of integers, with one wait for both."""
    low, high = torch.stack(x.aminmax()).tolist()
    return low, high
