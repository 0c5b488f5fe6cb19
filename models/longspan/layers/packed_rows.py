"""Active tokens of a batch, packed one behind the other, and attention of their queries.

B batch, T tokens, A active tokens, S keys, E hidden size, C any width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longspan.ops.transfers import put_integers

_SHORTEST = 0.8  # of the longest: texts with so many active tokens are padded to one batch of queries


class Packing:
    """Where the active tokens stand.

    Args:
        running: bool ``[B, T]``, True where a token is active.
        index: int64 ``[A]``, their places in the flattened batch, ascending.
    """

    def __init__(self, running: Tensor, index: Tensor):
        self.batch, self.length = running.shape
        self.index = index
        self._running = running
        self._groups: _Groups | None = None

    @classmethod
    def of(cls, running: Tensor, previous: "Packing | None" = None) -> "Packing":
        """The packing of ``running [B, T]``; ``previous``, one of the same tokens, is used again if none has halted."""
        index = running.flatten().nonzero()[:, 0]
        if previous is not None and len(previous.index) == len(index):
            return previous
        return cls(running, index)

    @property
    def is_everything(self) -> bool:
        return len(self.index) == self.batch * self.length

    @property
    def is_empty(self) -> bool:
        return len(self.index) == 0

    def pack(self, full: Tensor) -> Tensor:
        """``[B, T, ...]``, or ``[1, T, ...]`` that all texts share -> ``[A, ...]``."""
        if full.shape[0] == 1 < self.batch:
            return full[0].index_select(0, self.index % self.length)
        return full.flatten(0, 1).index_select(0, self.index)

    def unpack(self, rows: Tensor, full: Tensor | None = None) -> Tensor:
        """``[A, ...]`` -> ``[B, T, ...]``, over ``full`` or zeros."""
        if full is None:
            full = rows.new_zeros(self.batch, self.length, *rows.shape[1:])
        return full.flatten(0, 1).index_copy(0, self.index, rows.to(full.dtype)).view(full.shape)

    def attend(
        self,
        core: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        first_column: int | None,
    ) -> Tensor:
        """Attention of active tokens; texts without one take no part.

        Args:
            core: attention of padded batches, see ``step_tokens.Core``.
            query: ``[A, E]``.
            key: ``[B, S, E]``.
            value: as ``key``.
            key_mask: bool ``[B, S]`` or None.
            first_column: the column of the first token among the keys; None where these are another sequence.

        Returns:
            ``[A, E]``.
        """
        groups = self._groups = self._groups or _Groups(self._running, self.index)
        queries = query.index_select(0, groups.pick).split(groups.sizes)
        keys, values, masks = (groups.split(x) for x in (key, value, key_mask))
        outs = []
        for number, (rows, width) in enumerate(groups.shapes):
            column = None
            if first_column is not None:
                column = groups.columns[number] + first_column
            rows_query = queries[number].view(rows, width, -1)
            outs.append(core(rows_query, keys[number], values[number], masks[number], column).flatten(0, 1))
        return torch.cat(outs).index_select(0, groups.back)


class _Groups:
    """Texts with similar numbers of active tokens go through attention together, padded to the longest of them.

    Attributes:
        shapes: (texts, queries of each) by group.
        sizes: their products.
        pick: int64, by group, text and query, a row of the packed queries; padding repeats a text's last.
        columns: by group, int64 ``[texts, queries]``, the column of each query.
        back: int64 ``[A]``, where the outcomes of all groups hold that of each active token.
    """

    def __init__(self, running: Tensor, index: Tensor):
        counts = running.sum(1).tolist()
        order = sorted((row for row, count in enumerate(counts) if count), key=lambda row: -counts[row])
        groups: list[list[int]] = []
        for row in order:
            if not groups or counts[row] < _SHORTEST * counts[groups[-1][0]]:
                groups.append([])
            groups[-1].append(row)
        groups = [sorted(group) for group in groups]
        widths = [max(counts[row] for row in group) for group in groups]
        self.shapes = [(len(group), width) for group, width in zip(groups, widths, strict=True)]
        self.sizes = [rows * width for rows, width in self.shapes]
        rows = [row for group in groups for row in group]
        self._texts = [len(group) for group in groups]
        self._rows = None if rows == list(range(len(counts))) else put_integers(rows, index.device)

        starts, begin = [0] * len(counts), 0  # of each text among the packed
        for row, count in enumerate(counts):
            starts[row], begin = begin, begin + count
        padded, begin = [0] * len(counts), 0  # of each text among the groups' queries
        picks = []
        for group, width in zip(groups, widths, strict=True):
            start, last = put_integers([[starts[row], counts[row] - 1] for row in group], index.device).split(1, 1)
            picks.append(start + torch.arange(width, device=index.device).minimum(last))
            for row in group:
                padded[row], begin = begin, begin + width
        self.pick = torch.cat([pick.flatten() for pick in picks])
        self.columns = [index[pick] % running.shape[1] for pick in picks]
        shift = put_integers([p - s for p, s in zip(padded, starts, strict=True)], index.device)
        self.back = torch.arange(len(index), device=index.device) + shift[index // running.shape[1]]

    def split(self, full: Tensor | None) -> Sequence[Tensor | None]:
        """``[B, ...]`` by group."""
        if full is None:
            return [None] * len(self._texts)
        return (full if self._rows is None else full.index_select(0, self._rows)).split(self._texts)
