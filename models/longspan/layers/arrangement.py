"""Tokens before padding: rows of a batch rearranged so that padding stands behind the text, wherever it stood.

What depends on where a token stands, chunks of the text above all, then sees every row as if it were alone.

B batch, T tokens.
"""

import torch
from torch import Tensor


class Arrangement:
    """Moves the tokens of each row to its beginning, in their order, and back.

    Args:
        mask: bool ``[B, T]``, True where there is a token.
    """

    def __init__(self, mask: Tensor):
        self._from = (~mask).byte().argsort(dim=1, stable=True)  # [B, T]: where each place's token comes from
        self._to = self._from.argsort(dim=1)

    @staticmethod
    def needed(mask: Tensor | None) -> bool:
        """Whether any padding stands before a token. Where values cannot be looked at, it may."""
        if mask is None:
            return False
        if torch.compiler.is_compiling() or mask.device.type == "meta":
            return True
        return bool((mask[:, 1:] & ~mask[:, :-1]).any())

    def inward(self, x: Tensor, dim: int = 1) -> Tensor:
        """``[B, ..., T, ...]`` with the tokens of each row first; they stand along ``dim``."""
        return _gather(x, self._from, dim)

    def outward(self, x: Tensor, dim: int = 1) -> Tensor:
        """Undo ``inward``; the tokens stand along ``dim``."""
        return _gather(x, self._to, dim)


def _gather(x: Tensor, index: Tensor, dim: int) -> Tensor:
    dim %= x.dim()
    shape = [1] * x.dim()
    shape[0], shape[dim] = index.shape
    size = list(x.shape)
    return x.gather(dim, index.view(shape).expand(size))
