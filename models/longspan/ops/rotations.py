"""Random rotations for hashing, from a seed of their own: no generator that others draw from is touched.

H heads, D head size, R hash rounds, S sum of the factors of the number of buckets.
"""

import torch
from torch import Tensor

from longspan.ops.library import LIBRARY, define_reference

LIBRARY.define("seeded_rotations(Tensor like, int seed, int[] size) -> Tensor")


def _seeded_rotations(like: Tensor, seed: int, size: list[int]) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(size, generator=generator).to(like.device, non_blocking=True)


define_reference("seeded_rotations", _seeded_rotations)


@torch.library.register_fake("longspan::seeded_rotations", lib=LIBRARY)
def _(like, seed, size):
    return like.new_empty(size, dtype=torch.float32)


def seeded_rotations(like: Tensor, seed: int, size: tuple[int, int, int, int]) -> Tensor:
    """Rotations ``[H, D, R, S / 2]`` from N(0, 1), float32: ``torch.randn(size)`` of a CPU generator seeded afresh.

    The same numbers on every device and, for the same seed, those of transformers.

    Args:
        like: any tensor of the device wanted.
        seed: 64-bit seed.
        size: ``(H, D, R, S / 2)``.
    """
    return torch.ops.longspan.seeded_rotations.default(like.detach(), seed, list(size))
