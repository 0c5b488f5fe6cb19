"""The cache of attention whose heads have spans of their own: of each row the newest tokens, as many as a head reaches.

B batch, H heads, G heads of a group, T new tokens, N rows in use, C rows there is room for, D head size.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.cache import _Layer
from longspan.layers.span_decoding import align
from longspan.layers.span_projection import take_heads

SPARE_ROWS = 64  # for each head: what is held beyond what it sees, where that is not much in all


def group_heads(widths: Sequence[int]) -> list[list[int]]:
    """Put heads of similar width together: a step costs some overhead for each group, memory for its widest head.

    Args:
        widths: of each head, in tokens.

    Returns:
        Lists of heads. All groups together hold at most a quarter more than all heads see, or ``SPARE_ROWS`` a head.
    """
    groups = [[head] for head in sorted(range(len(widths)), key=lambda head: widths[head])]
    left = max(sum(widths) // 4, SPARE_ROWS * len(widths))
    while len(groups) > 1:
        costs = [len(narrow) * (widths[wide[-1]] - widths[narrow[-1]]) for narrow, wide in itertools.pairwise(groups)]
        cost, at = min((cost, at) for at, cost in enumerate(costs))
        if cost > left:
            break
        left -= cost
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return [sorted(group) for group in groups]


class HeadGroup:
    """Keys and values of some heads, oldest first. The rows in use move towards the end of a tensor with some room.

    Args:
        heads: which.
        width: how many rows are kept.
    """

    def __init__(self, heads: Sequence[int], width: int):
        self.heads, self.width = list(heads), width
        self._buffers: list[Tensor] = []  # keys and values [B, G, C, D]
        self._begin = self._end = 0

    @property
    def num_rows(self) -> int:
        """N."""
        return self._end - self._begin

    @property
    def rows(self) -> list[Tensor]:
        """Keys and values ``[B, G, N, D]``, views."""
        return [x[:, :, self._begin : self._end] for x in self._buffers]

    @property
    def num_bytes(self) -> int:
        """What the group takes in memory, room included."""
        return sum(x.numel() * x.element_size() for x in self._buffers)

    def push(self, new: Sequence[Tensor]) -> None:
        """Put keys and values ``[B, G, T, D]`` behind the newest row, and let the oldest go."""
        self.join([x[:, :, -self.width :] for x in new])

    def join(self, new: Sequence[Tensor]) -> list[Tensor]:
        """As ``push``, for few new rows: they are all held for a moment.

        Returns:
            Keys and values ``[B, G, N + T, D]``, the rows that were in use and the new ones. Views, where the next rows
            will not be written.
        """
        count, old = new[0].shape[2], self.num_rows
        if not self._buffers or self._end + count > self._buffers[0].shape[2]:
            room = old + count + max(SPARE_ROWS, old + count) // 4  # so that a step seldom copies
            moved = [x.new_empty(*x.shape[:2], room, x.shape[3]) for x in new]
            for to, x in zip(moved, self.rows, strict=False):  # nothing, where there are no rows yet
                to[:, :, :old] = x
            self._buffers, self._begin, self._end = moved, 0, old
        for to, x in zip(self._buffers, new, strict=True):
            to[:, :, self._end : self._end + count] = x
        self._end += count
        joined = self.rows
        self._begin = max(self._begin, self._end - self.width)
        return joined

    def replace(self, rows: Sequence[Tensor]) -> None:
        """Hold these keys and values ``[B, G, N, D]`` and no others."""
        self._buffers, self._begin, self._end = [], 0, 0
        self.push(rows)

    def select(self, indices: Tensor) -> None:
        """Rows of the batch: ``indices`` of those that are there."""
        self._buffers = [x[indices.to(x.device)] for x in self._buffers]


class SpanRings(_Layer):
    """The newest tokens of each row, for each head as many as its span reaches: memory follows the spans.

    Whatever padding they came with, tokens of a row stand side by side at the end, with zeros before its first one.

    Args:
        widths: how many tokens each head keeps.

    Attributes:
        groups: heads of similar width, see ``group_heads``.
    """

    is_sliding = True
    _per_row = ("lengths",)

    def __init__(self, widths: Sequence[int]):
        if not widths or min(widths) < 1:
            raise ValueError(f"widths must be at least 1 for every head, got {list(widths)}")
        self.widths = list(widths)
        super().__init__()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.groups = [HeadGroup(heads, max(self.widths[h] for h in heads)) for heads in group_heads(self.widths)]

    @property
    def num_bytes(self) -> int:
        """What keys and values take in memory."""
        return sum(group.num_bytes for group in self.groups)

    def filled(self, group: HeadGroup) -> Tensor:
        """Which of the group's rows hold a token, bool ``[B, N]``."""
        return self._filled(group.num_rows)

    def _filled(self, count: int) -> Tensor:
        return torch.arange(count, device=self.lengths.device) >= count - self.lengths[:, None]

    def _of_heads(self, group: HeadGroup, *states: Tensor) -> list[Tensor]:
        return [take_heads(x, None if len(self.groups) == 1 else group.heads) for x in states]

    def extend(self, key: Tensor, value: Tensor) -> list[tuple[HeadGroup, Tensor, Tensor, Tensor]]:
        """Take in new tokens of all rows, and show what they can see.

        Args:
            key: ``[B, H, T, D]``.
            value: ``[B, H, T, D]``.

        Returns:
            For each group: itself, keys and values ``[B, G, N + T, D]``, the new ones last, and bool ``[B, N + T]``,
            which of them are tokens.
        """
        self.lengths = self.lengths + key.shape[2]
        self.columns += key.shape[2]
        parts = []
        for group in self.groups:
            new = self._of_heads(group, key.detach(), value.detach())
            if key.shape[2] <= group.width:
                keys, values = group.join(new)
            else:
                keys, values = (torch.cat(pair, 2) for pair in zip(group.rows, new, strict=True))
                group.push(new)
            parts.append((group, keys, values, self._filled(keys.shape[2])))
        return parts

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Not for these: there is no one tensor of keys. Use ``append`` and ``groups``."""
        raise NotImplementedError("SpanRings keep for each head what its span reaches: use append() and groups")

    def _store(self, key: Tensor, value: Tensor, mask: Tensor) -> None:
        complete = bool(mask.all())
        for group in self.groups:
            new = self._of_heads(group, key, value)
            if complete:
                group.push(new)
            elif group.num_rows == 0:
                group.replace(align(new, mask))
            else:
                both = [torch.cat(parts, 2) for parts in zip(group.rows, new, strict=True)]
                group.replace(align(both, torch.cat([self.filled(group), mask], 1)))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.is_initialized:
            for group in self.groups:
                group.select(indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets nothing: going back would need tokens that have been let go."""
        if tokens_to_remove:
            raise ValueError(
                f"a cache of what spans reach, here {max(self.widths)} tokens, cannot go back by "
                f"{abs(tokens_to_remove)}: what stood before is gone. Decode without an assistant, or start from the "
                "prompt again"
            )
