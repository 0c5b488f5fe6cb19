"""Caches of generation: what layers keep of the tokens so far, as one object that ``generate`` understands.

``RingLayer`` keeps the newest tokens alone, for layers with a window; ``RowsLayer`` keeps all, and what they hash to,
for LSH attention. Both take padding on either side and count real tokens row by row, so that after the prompt nothing
depends on how rows were padded, and rows of a batch do not know of each other.

B batch, H heads, T new tokens, S cached columns, W slots of a ring, D head size, R hash rounds.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from longspan.ops import lsh_buckets

Hashing = tuple[Tensor, int | Sequence[int]]  # rotations [H, D, R, S / 2] and the number of buckets, see lsh_buckets
EMPTY = -1


class _Layer(CacheLayerMixin):
    """What both kinds share: counting, and moving rows of the batch about.

    Attributes:
        lengths: int64 ``[B]``, real tokens of each row so far.
        columns: tokens taken in so far, padding included; what ``get_seq_length`` tells ``generate``.
    """

    supports_early_init = False
    keys: Any  # tensors, None as long as the layer is empty
    values: Any
    lengths: Any
    _per_row: tuple[str, ...]

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = self.lengths = None
        self.columns = 0
        self.is_initialized = False

    @property
    def is_empty(self) -> bool:
        return not self.is_initialized

    @property
    def batch_size(self) -> int:
        return 0 if self.lengths is None else self.lengths.shape[0]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Called by the first ``append``; shapes and dtype are those of the states."""
        self.lengths = torch.zeros(key_states.shape[0], dtype=torch.int64, device=key_states.device)
        self.is_initialized = True

    def append(self, key: Tensor, value: Tensor, mask: Tensor | None = None, length: int | None = None) -> None:
        """Take in new tokens.

        Args:
            key: ``[B, H, T, D]``.
            value: ``[B, H, T, D]``.
            mask: bool ``[B, T]``, False at padding; None: all are tokens.
            length: how many of the T columns to keep, where the model padded more behind them. None: all.
        """
        if self.is_initialized and key.shape[0] != self.batch_size:
            raise ValueError(f"the cache holds {self.batch_size} rows, got {key.shape[0]} to go on with")
        if not self.is_initialized:
            self.lazy_initialization(key, value)
        if mask is None:
            mask = torch.ones(key.shape[0], key.shape[2], dtype=torch.bool, device=key.device)
        key, value, mask = key[:, :, :length], value[:, :, :length], mask[:, :length]
        self._store(key.detach(), value.detach(), mask)
        self.lengths = self.lengths + mask.sum(1)
        self.columns += key.shape[2]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Append, under transformers' name, and return what is held."""
        self.append(key_states, value_states, *args, **kwargs)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.columns

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.columns + query_length, 0

    def _store(self, key: Tensor, value: Tensor, mask: Tensor) -> None:
        raise NotImplementedError

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row ``i`` becomes what row ``beam_idx[i]`` was."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            rows = torch.arange(self.batch_size, device=self.lengths.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        for name in self._per_row if self.is_initialized else ():
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held[indices.to(held.device)])

    def offload(self) -> None:
        raise ValueError(f"{type(self).__name__} cannot be offloaded: give generate() no cache_implementation")


class RingLayer(_Layer):
    """The newest ``window`` tokens of each row; older ones are overwritten, so memory does not grow.

    Args:
        window: how many tokens are kept.

    Attributes:
        keys, values: ``[B, H, W, D]``; slots in no particular order.
        positions: int64 ``[B, W]``: the row's how-manieth real token a slot holds, from 0; ``EMPTY`` where none.
    """

    is_sliding = True
    _per_row = ("keys", "values", "positions", "lengths")

    def __init__(self, window: int):
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.window = window
        super().__init__()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.positions: Any = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        B, H, _, D = key_states.shape
        self.keys, self.values = (x.new_zeros(B, H, self.window, D) for x in (key_states, value_states))
        self.positions = self.lengths.new_full((B, self.window), EMPTY)

    def _store(self, key: Tensor, value: Tensor, mask: Tensor) -> None:
        position = new_positions(self.lengths, mask)
        kept = mask & (position >= (self.lengths + mask.sum(1, keepdim=False))[:, None] - self.window)
        slot = torch.where(kept, position % self.window, self.window)  # one slot more, for what is not kept
        index = slot[:, None, :, None].expand_as(key)
        self.keys, self.values = (
            F.pad(old, (0, 0, 0, 1)).scatter(2, index, new.to(old.dtype))[:, :, :-1]
            for old, new in ((self.keys, key), (self.values, value))
        )
        self.positions = F.pad(self.positions, (0, 1)).scatter(1, slot, position)[:, :-1]

    def join(self, parts: Iterable[tuple[Tensor, "RingLayer"]], batch: int) -> None:
        """Become a batch put together of others: pairs of row numbers and the layer that holds these rows."""
        for rows, part in parts:
            if not self.is_initialized:
                self.lazy_initialization(part.keys[:1].expand(batch, -1, -1, -1), part.values)
            for name in self._per_row:
                getattr(self, name)[rows] = getattr(part, name)
            self.columns = max(self.columns, part.columns)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets nothing: going back would need tokens that the ring has overwritten."""
        if tokens_to_remove:
            raise ValueError(
                f"a cache of the newest {self.window} tokens cannot go back by {abs(tokens_to_remove)}: what stood "
                "before has been overwritten. Decode without an assistant, or start from the prompt again"
            )


class RowsLayer(_Layer):
    """All tokens, and for LSH attention their buckets with the rotations that made them.

    Attributes:
        keys, values: ``[B, H, S, D]``, columns as they came.
        mask: bool ``[B, S]``, True where there is a token.
        buckets: int32 ``[B, H, R, S]`` of the rows that are ``hashed``, None before the first.
        prompt: int64 ``[B]``: length of what the first pass computed, the model's own padding included.
        hashing_of: int64 ``[B]``: which of ``hashings`` a row uses, ``EMPTY`` where it is not hashed yet.
        hashings: rotations and numbers of buckets in use. What a row was hashed with once it keeps.
    """

    is_croppable = True
    _per_row = ("_keys", "_values", "_mask", "_buckets", "lengths", "prompt", "hashing_of")

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._keys: Any = None  # as keys, with room for more columns; so the next three
        self._values: Any = None
        self._mask: Any = None
        self._buckets: Any = None
        self.mask: Any = None
        self.buckets: Any = None
        self.prompt: Any = None
        self.hashing_of: Any = None
        self.hashings: list[Hashing] = []

    def _view(self) -> None:
        """Show the columns that are in use."""
        self.keys, self.values = self._keys[:, :, : self.columns], self._values[:, :, : self.columns]
        self.mask = self._mask[:, : self.columns]
        self.buckets = None if self._buckets is None else self._buckets[..., : self.columns]

    @property
    def hashed(self) -> Tensor:
        """Which rows have buckets, bool ``[B]``."""
        return self.hashing_of != EMPTY

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        B, H, _, D = key_states.shape
        self._keys, self._values = (x.new_empty(B, H, 0, D) for x in (key_states, value_states))
        self._mask = torch.zeros(B, 0, dtype=torch.bool, device=key_states.device)
        self.prompt = torch.full_like(self.lengths, key_states.shape[2])
        self.hashing_of = torch.full_like(self.lengths, EMPTY)

    def _grow(self, columns: int) -> None:
        """Room for that many columns: a quarter more than needed, so that a step seldom copies."""
        more = columns - self._keys.shape[2]
        if more > 0:
            room = more if self.columns == 0 else max(more, self.columns // 4, 64)
            self._keys, self._values = (F.pad(x, (0, 0, 0, room)) for x in (self._keys, self._values))
            self._mask = F.pad(self._mask, (0, room))
            if self._buckets is not None:
                self._buckets = F.pad(self._buckets, (0, room))

    def _store(self, key: Tensor, value: Tensor, mask: Tensor) -> None:
        begin, end = self.columns, self.columns + key.shape[2]
        self._grow(end)
        self._keys[:, :, begin:end] = key
        self._values[:, :, begin:end] = value
        self._mask[:, begin:end] = mask
        for index, rows in self._rows_by_hashing(self.hashed):
            self._buckets[rows, ..., begin:end] = self._hash(key[rows], index)

    def append(self, key: Tensor, value: Tensor, mask: Tensor | None = None, length: int | None = None) -> None:
        super().append(key, value, mask, length)
        self._view()

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.is_initialized:
            self._view()

    def hash_rows(self, due: Tensor, choose: Callable[[int], Hashing], lengths: Tensor) -> None:
        """Hash all tokens of some rows, each with what its length calls for.

        Args:
            due: bool ``[B]``, which rows.
            choose: length -> rotations and number of buckets.
            lengths: int64 ``[B]``.
        """
        for length in lengths[due].unique().tolist():
            rows = (due & (lengths == length)).nonzero()[:, 0]
            rotations, num_buckets = choose(length)
            index = self._index_of(rotations, num_buckets)
            if self._buckets is None:
                shape = (self.batch_size, self._keys.shape[1], rotations.shape[2], self._keys.shape[2])
                self._buckets = torch.zeros(shape, dtype=torch.int32, device=self._keys.device)
            if rotations.shape[2] != self._buckets.shape[2]:
                raise ValueError(
                    f"num_hashes must stay what it was when decoding began, {self._buckets.shape[2]}, "
                    f"got {rotations.shape[2]}"
                )
            self.hashing_of[rows] = index
            self._buckets[rows, ..., : self.columns] = self._hash(self.keys[rows], index)
        self._view()

    def _index_of(self, rotations: Tensor, num_buckets: int | Sequence[int]) -> int:
        for index, (known, known_buckets) in enumerate(self.hashings):
            if known_buckets == num_buckets and known.shape == rotations.shape and torch.equal(known, rotations):
                return index
        self.hashings.append((rotations, num_buckets))
        return len(self.hashings) - 1

    def _rows_by_hashing(self, among: Tensor) -> list[tuple[int, Any]]:
        """Pairs of a hashing and the rows that use it; one hashing for the whole batch comes without a copy."""
        if len(self.hashings) == 1 and bool(among.all()):
            return [(0, slice(None))]
        rows = [(index, (self.hashing_of == index).nonzero()[:, 0]) for index in range(len(self.hashings))]
        return [(index, chosen) for index, chosen in rows if len(chosen)]

    def _hash(self, query_key: Tensor, index: int) -> Tensor:
        rotations, num_buckets = self.hashings[index]
        return lsh_buckets(query_key, rotations, num_buckets).to(torch.int32)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest ``-tokens_to_remove`` columns."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"tokens_to_remove must be 0 or the negative of how many to forget, got {tokens_to_remove}"
            )
        if self.is_initialized and tokens_to_remove:
            self.columns = max(0, self.columns + tokens_to_remove)
            self._view()
            self.lengths = self.mask.sum(1)

    def join(self, parts: Iterable[tuple[Tensor, "RowsLayer"]], batch: int) -> None:
        """Become a batch put together of others that are not hashed yet; shorter rows are padded on the left."""
        parts = list(parts)
        columns = max(part.columns for _, part in parts)
        for rows, part in parts:
            if not self.is_initialized:
                self.lazy_initialization(
                    part.keys[:1].expand(batch, -1, -1, -1), part.values[:1].expand(batch, -1, -1, -1)
                )
                self._grow(columns)
                self.columns = columns
                self._view()
            begin = columns - part.columns
            self.keys[rows, :, begin:] = part.keys
            self.values[rows, :, begin:] = part.values
            self.mask[rows, begin:] = part.mask
            self.lengths[rows], self.prompt[rows] = part.lengths, part.prompt


class LongspanCache(Cache):
    """The cache of a model: one layer each, and where its rows stand.

    Args:
        layers: one ``RingLayer`` or ``RowsLayer`` for each layer of the model.
    """

    def __init__(self, layers: Sequence[_Layer]):
        super().__init__(layers=list(layers))
        self.layers: list[Any]

    @property
    def is_empty(self) -> bool:
        return not self.layers or self.layers[0].is_empty

    @property
    def lengths(self) -> Tensor:
        """int64 ``[B]``, real tokens of each row so far."""
        return self.layers[0].lengths

    def next_positions(self, mask: Tensor | None, num_tokens: int) -> Tensor:
        """Position of each of the next tokens in its row, ``[B, T]``; padding gets the position of the token before.

        Args:
            mask: bool ``[B, T]``, True where there is a token; None: everywhere.
            num_tokens: T.
        """
        if mask is None:
            return self.lengths[:, None] + torch.arange(num_tokens, device=self.lengths.device)
        return new_positions(self.lengths, mask).clamp(min=0)

    def join(self, parts: Sequence[tuple[Tensor, "LongspanCache"]], batch: int) -> None:
        """Become a batch put together of others: pairs of row numbers ``[b]`` and the cache that holds these rows."""
        for index, layer in enumerate(self.layers):
            layer.join([(rows, part.layers[index]) for rows, part in parts], batch)


def new_positions(lengths: Tensor, mask: Tensor) -> Tensor:
    """Rows of ``lengths [B]`` tokens get those of ``mask [B, T]``: the position of each in its row, ``[B, T]``."""
    return lengths[:, None] + mask.cumsum(1) - 1
