"""The tokens of a stack that is recurrent in depth: which of them a step computes, and what all show each other.

A block does the same to every token; only attention and convolutions look at others. So a block works on *rows*, the
tokens that a step computes, and asks the step's ``StepRows`` for everything between tokens. One block and one loop then
serve dense steps (this file), steps over active tokens alone (``packed_rows.py``) and tokens that continue a cache
(``step_past.py``).

B batch, T tokens of the call, P cached tokens before them, S = P + T, E hidden size, C any width.
Rows are ``[B, T, C]``; ``[B, S, C]`` where cached tokens go deeper, too; ``[A, C]`` for A active tokens.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from longspan.layers.packed_rows import Packing
from longspan.layers.step_past import StepPast

# What becomes of tokens that have halted: "continue": nothing, they are computed on (tensor2tensor). "recompute": their
# state stays, and each step shows the others what it makes of that state. "reuse": they show what they showed last.
Frozen = Literal["continue", "recompute", "reuse"]
# core(query [b, T', E], key [b, S, E], value [b, S, E], key_mask bool [b, S] or None, query_column int64 [b, T'] or
# None) -> [b, T', E]. Without columns the queries are the last T' of the S tokens.
Core = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


class StepTokens:
    """The tokens of one call of a recurrent stack.

    Args:
        mask: bool ``[B, T]``, False at padding; None: no padding.
        positions: int64 ``[1 or B, T]``, place of each token in its text.
        frozen: what becomes of halted tokens.
        packed: with "reuse", compute active tokens alone. Steps of a compiled graph are dense: shapes are fixed there.
        past: what earlier calls left, which takes in these tokens; for causal stacks.
    """

    def __init__(
        self,
        mask: Tensor | None,
        positions: Tensor,
        *,
        frozen: Frozen = "continue",
        packed: bool = False,
        past: StepPast | None = None,
    ):
        self.mask, self.positions, self.frozen, self.past = mask, positions, frozen, past
        self.packed = packed and frozen == "reuse" and not torch.compiler.is_compiling()
        self.num_past = 0 if past is None else past.columns
        self.key_mask = mask if past is None else past.joined_mask(mask, positions)
        self.state: Tensor | None = None  # after the newest step, what a cache keeps
        self.frontier = None if past is None else past.frontier  # the same of cached tokens
        self.steps: list[StepRows] = []
        self._provided: dict[str, Tensor] = {} if past is None else past.provided
        self._packing: Packing | None = None
        self._plain: StepTokens | None = None
        self.is_adaptive = False  # whether the number of steps depends on the tokens

    def more(self, step: int, running: Tensor) -> bool:
        """Whether step number ``step`` is to be done, with ``running [B, T]`` the tokens that have not halted.

        Cached tokens may have gone deeper: unless halted tokens reuse what they showed, these go as deep. A compiled
        loop always goes on.
        """
        self.is_adaptive = True
        if step == 0 or torch.compiler.is_compiling():
            return True
        if self.past is not None and self.frozen != "reuse" and step < self.past.depth:
            return True
        return bool(running.any())

    def begin(self, step: int, running: Tensor | None = None) -> "StepRows":
        """The rows of a step.

        Args:
            step: its number, counted from 0.
            running: bool ``[B, T]``, False at tokens that have halted; None: none has.
        """
        if self.num_past and not self.is_adaptive and step >= self.past.depth:  # type: ignore[union-attr]
            raise ValueError(
                f"cached tokens did {self.past.depth} steps, these go on: "  # type: ignore[union-attr]
                "the number of steps must not change while a cache is used"
            )
        before = self.steps[-1].after if self.steps else {}
        packing = None
        if self.packed and running is not None:
            packing = self._packing = Packing.of(running, self._packing)
            if packing.is_everything:
                running = None
            if packing.is_everything or packing.is_empty:
                packing = None
        rows = StepRows(self, step, running, before) if packing is None else PackedRows(self, step, packing, before)
        if self.past is None:
            self.steps = [rows]  # of earlier ones nothing is wanted
        else:
            self.steps.append(rows)
        return rows

    def plain(self) -> "StepRows":
        """All tokens of the call, once: for layers before and behind the recurrence. They share names with it."""
        if self._plain is None:
            past = None if self.past is None else self.past.of_plain_layers()
            self._plain = StepTokens(self.mask, self.positions, past=past)
            self._plain._provided = self._provided
            self._plain.begin(0)
        return self._plain.steps[0]

    def provide(self, name: str, make: Callable[[], Tensor]) -> None:
        """Have ``make()`` ready for all steps, and for all calls that share a cache: keys of an encoder's output."""
        if name not in self._provided:
            self._provided[name] = make()

    def provided(self, name: str) -> Tensor:
        return self._provided[name]

    def finish(self) -> None:
        """Called after the last step: the cache takes in the tokens, and what the steps held is let go."""
        if self.past is not None:
            self.past.take_in(self)
        if self._plain is not None:
            self._plain.finish()
        # Steps know of their tokens: a circle, which would hold on to the last keys and values for a while.
        self.steps, self.state, self.frontier, self._packing, self._plain = [], None, None, None, None


class StepRows:
    """The rows of one step: all tokens of the call, and cached ones where those must go deeper, too.

    Holds nothing that later steps change, so that a checkpointed step finds in the backward pass what it found before.

    Attributes:
        after: what tokens of the call have shown by name, up to and with this step.
        shown: what all tokens show by name at this step, the cached ones included.
    """

    def __init__(self, tokens: StepTokens, step: int, running: Tensor | None, before: dict[str, Tensor]):
        self.tokens, self.step, self.running = tokens, step, running
        self.after, self.shown = dict(before), {}
        self._before = before
        past = tokens.past
        deeper = past is not None and past.columns > 0 and tokens.frozen != "reuse" and step >= past.depth
        self.num_joined = tokens.num_past if deeper else 0
        self._frontier = tokens.frontier

    @property
    def positions(self) -> Tensor:
        """int64 places of the rows in their texts, shaped as rows are, or ``[1, T]`` where all texts agree."""
        if not self.num_joined:
            return self.tokens.positions
        past = self.tokens.past
        assert past is not None and past.positions is not None
        return torch.cat([past.positions, self.tokens.positions.expand(past.positions.shape[0], -1)], 1)

    @property
    def row_mask(self) -> Tensor | None:
        """bool, False at rows that are padding; None: none is."""
        return self.tokens.key_mask if self.num_joined else self.tokens.mask

    def enter(self, state: Tensor) -> Tensor:
        """State of the call's tokens ``[B, T, E]`` -> of the rows."""
        return torch.cat([self._frontier, state], 1) if self.num_joined else state  # type: ignore[list-item]

    def leave(self, state: Tensor, rows: Tensor) -> Tensor:
        """The state after a step ``[B, T, E]``, given that before it and what the step made of the rows."""
        if self.num_joined:
            if self.tokens.frozen == "continue":
                self.tokens.frontier = rows[:, : self.num_joined]
            rows = rows[:, self.num_joined :]
        if self.tokens.frozen != "continue":
            rows = self._where_running(rows, state)
        self.tokens.state = rows
        return rows

    def take(self, full: Tensor) -> Tensor:
        """Anything ``[B or 1, T, ...]`` of the call's tokens -> of the rows; 0 for cached ones."""
        if not self.num_joined:
            return full
        return torch.cat([full.new_zeros(full.shape[0], self.num_joined, *full.shape[2:]), full], 1)

    def put(self, full: Tensor, rows: Tensor) -> Tensor:
        """``full [B, T, ...]`` with the values of ``rows`` at running tokens."""
        return self._where_running(rows[:, self.num_joined :], full)

    def spread(self, rows: Tensor) -> Tensor:
        """One value per row -> ``[B, T]``, 0 at tokens that are not computed."""
        return rows[:, self.num_joined :]

    def seen(self, name: str, rows: Tensor, *, reach: int | None = None, keep: int | None = None) -> Tensor:
        """What all tokens show at this step: keys, values, what convolutions read.

        Args:
            name: unique in the block.
            rows: what the rows show.
            reach: as many earlier tokens are wanted in front of the rows, by a causal convolution; 0 where there are
                none. None: all, and nothing where there are none.
            keep: of how many earlier tokens a cache keeps this, where a window sees no more of them. None: all.

        Returns:
            ``[B, S, C]``; with ``reach``, ``[B, reach + T', C]``, T' being the tokens among the rows; with ``keep``,
            S is no more than ``keep + T'``.
        """
        if self.tokens.frozen == "reuse" and name in self._before:
            rows = self._where_running(rows, self._before[name])
        return self._show(name, rows, reach, keep)

    def rows_of(self, full: Tensor) -> Tensor:
        """What was computed for all tokens of dense rows ``[B, T', C]`` -> for the rows."""
        return full

    def provided(self, name: str) -> Tensor:
        return self.tokens.provided(name)

    def attend(self, core: Core, query: Tensor, key: Tensor, value: Tensor, everywhere: bool = False) -> Tensor:
        """Self-attention of the rows.

        Args:
            core: computes attention of padded batches.
            query: of the rows.
            key: ``[B, S, E]``, from ``seen``.
            value: as ``key``.
            everywhere: the core wants queries of all tokens in their places, as a sliding window does.

        Returns:
            As ``query``.
        """
        return core(query, key, value, self._mask_of(key), None)

    def attend_source(self, core: Core, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """Attention of the rows to another sequence: ``key``, ``value [B, S', E]``, ``key_mask bool [B, S']``."""
        return core(query, key, value, key_mask, None)

    def _mask_of(self, key: Tensor) -> Tensor | None:
        """Bool ``[B, S]`` of keys of all tokens, or of as many of the newest as a cache has kept."""
        mask = self.tokens.key_mask
        return None if mask is None else mask[:, mask.shape[1] - key.shape[1] :]

    def _where_running(self, rows: Tensor, full: Tensor) -> Tensor:
        if self.running is None:
            return rows
        running = self.running.view(*self.running.shape, *[1] * (rows.dim() - 2))
        return torch.where(running, rows, full)

    def _show(self, name: str, new: Tensor, reach: int | None, keep: int | None) -> Tensor:
        """``new [B, T', C]`` of dense rows, behind what cached tokens show."""
        past, shown = self.tokens.past, new
        if past is not None or self.tokens.frozen == "reuse":
            self.after[name] = new
        if past is not None:
            earlier = None if self.num_joined else past.shown(self.step, name, new)
            shown = new if earlier is None else torch.cat([earlier, new], 1)
            newest = reach if reach is not None else keep
            if newest is not None:
                past.reaches[name] = newest
            self.shown[name] = past.newest(name, shown)
        if reach is None:
            return shown
        return F.pad(shown, (0, 0, new.shape[1] + reach - shown.shape[1], 0))


class PackedRows(StepRows):
    """Active tokens alone, ``[A, C]``; halted ones are seen as they were at their last active step."""

    def __init__(self, tokens: StepTokens, step: int, packing: Packing, before: dict[str, Tensor]):
        super().__init__(tokens, step, None, before)
        self.packing = packing

    @property
    def positions(self) -> Tensor:
        return self.take(self.tokens.positions)

    @property
    def row_mask(self) -> Tensor | None:
        return None if self.tokens.mask is None else self.take(self.tokens.mask)

    def enter(self, state: Tensor) -> Tensor:
        return self.packing.pack(state)

    def leave(self, state: Tensor, rows: Tensor) -> Tensor:
        self.tokens.state = self.packing.unpack(rows, state)
        return self.tokens.state

    def take(self, full: Tensor) -> Tensor:
        return self.packing.pack(full)

    def put(self, full: Tensor, rows: Tensor) -> Tensor:
        return self.packing.unpack(rows, full)

    def spread(self, rows: Tensor) -> Tensor:
        return self.packing.unpack(rows)

    def seen(self, name: str, rows: Tensor, *, reach: int | None = None, keep: int | None = None) -> Tensor:
        return self._show(name, self.packing.unpack(rows, self._before.get(name)), reach, keep)

    def rows_of(self, full: Tensor) -> Tensor:
        return self.packing.pack(full)

    def attend(self, core: Core, query: Tensor, key: Tensor, value: Tensor, everywhere: bool = False) -> Tensor:
        if everywhere:
            return self.packing.pack(core(self.packing.unpack(query), key, value, self._mask_of(key), None))
        first = key.shape[1] - self.packing.length
        return self.packing.attend(core, query, key, value, self._mask_of(key), first)

    def attend_source(self, core: Core, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        return self.packing.attend(core, query, key, value, key_mask, None)
