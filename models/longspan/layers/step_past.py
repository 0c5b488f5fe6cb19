"""What the tokens so far leave for those to come, in a causal stack that is recurrent in depth.

By step, as a stack of different layers would by layer: what each token shows at that step. Tokens may stop at different
depths; how one that stopped is seen by one that goes deeper is ``frozen``, see ``step_tokens.py``:

* "reuse": by what it showed last. A deeper step's slot begins as a copy of the deepest.
* "recompute", "continue": by what the deeper step makes of its state. So states are kept, all tokens so far are taken
  one step deeper, once, when the first of them goes there, and new ones are taken as deep as any before.

B batch, T new tokens, P tokens so far, E hidden size, C any width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from longspan.layers.step_tokens import StepTokens


class StepPast:
    """The tokens so far.

    Attributes:
        columns: P, padding included.
        mask: bool ``[B, P]``, False at padding; None: no padding.
        positions: int64 ``[B, P]``.
        lengths: int64 ``[B]``, tokens of each row that are no padding.
        slots: by step and name, what the tokens show: ``[B, P, C]``, or the newest columns, if more are never wanted.
        reaches: how many columns these are, by name.
        frontier: ``[B, P, E]``, the state after the deepest step; None with "reuse", and where all do equally many.
        provided: what every step of every call sees, by name, ``[B, ...]``: an encoder's keys and values.
    """

    def __init__(self):
        self.columns = 0
        self.mask: Tensor | None = None
        self.positions: Tensor | None = None
        self.lengths: Tensor | None = None
        self.slots: list[dict[str, Tensor]] = []
        self.reaches: dict[str, int] = {}
        self.frontier: Tensor | None = None
        self.provided: dict[str, Tensor] = {}
        self._plain: StepPast | None = None

    def of_plain_layers(self) -> StepPast:
        """The past of layers before and behind the recurrence."""
        if self._plain is None:
            self._plain = StepPast()
        return self._plain

    @property
    def depth(self) -> int:
        """Steps that the deepest of the tokens has done."""
        return len(self.slots)

    @property
    def batch(self) -> int | None:
        """Rows; None as long as nothing is held."""
        held = self.lengths if self.lengths is not None else next(iter(self.provided.values()), None)
        return None if held is None else held.shape[0]

    def next_positions(self, mask: Tensor | None, batch: int, num_tokens: int, device: torch.device) -> Tensor:
        """int64 ``[B, T]``: places of new tokens in their texts; padding has that of the token before, or 0.

        Args:
            mask: bool ``[B, T]``, False at padding among the new tokens; None: no padding.
            batch: B.
            num_tokens: T.
            device: of the result.
        """
        lengths = torch.zeros(batch, dtype=torch.int64, device=device) if self.lengths is None else self.lengths
        if mask is None:
            return lengths[:, None] + torch.arange(num_tokens, device=device)
        return (lengths[:, None] + mask.cumsum(1) - 1).clamp(min=0)

    def joined_mask(self, mask: Tensor | None, positions: Tensor) -> Tensor | None:
        """Bool ``[B, P + T]``, the tokens so far and new ones of ``mask [B, T]``; None: no padding."""
        if self.columns == 0 or (self.mask is None and mask is None):
            return mask
        assert self.lengths is not None
        batch, device = len(self.lengths), self.lengths.device
        earlier = torch.ones(batch, self.columns, dtype=torch.bool, device=device) if self.mask is None else self.mask
        new = torch.ones(batch, positions.shape[1], dtype=torch.bool, device=device) if mask is None else mask
        return torch.cat([earlier, new], 1)

    def shown(self, step: int, name: str, like: Tensor) -> Tensor | None:
        """What the tokens so far show at a step, ``[B, P, C]``, at the dtype of ``like``; None where there are none."""
        if not self.slots:
            return None
        return self.slots[min(step, self.depth - 1)][name].to(like.dtype)

    def take_in(self, tokens: StepTokens) -> None:
        """Add the tokens of a call that is through with its steps."""
        steps = tokens.steps
        if len(steps) < self.depth and tokens.frozen != "reuse":
            raise ValueError(
                f"cached tokens did {self.depth} steps, these only {len(steps)}: "
                "the number of steps must not change while a cache is used"
            )
        slots = [{name: shown.detach() for name, shown in step.shown.items()} for step in steps]
        last = steps[-1].after
        for slot in self.slots[len(steps) :]:
            slots.append({name: self.newest(name, torch.cat([slot[name], last[name].detach()], 1)) for name in slot})
        self.slots = slots
        if tokens.frozen != "reuse" and tokens.is_adaptive:
            assert tokens.state is not None
            states = [tokens.state] if tokens.frontier is None else [tokens.frontier, tokens.state]
            self.frontier = torch.cat(states, 1).detach()
        self._count(tokens)

    def _count(self, tokens: StepTokens) -> None:
        mask, positions = tokens.mask, tokens.positions
        num_tokens = positions.shape[1]
        batch = next(iter(tokens.steps[-1].after.values())).shape[0]
        positions = positions.expand(batch, -1)
        self.mask = tokens.key_mask
        self.positions = positions if self.positions is None else torch.cat([self.positions, positions], 1)
        more = torch.full((batch,), num_tokens, device=positions.device) if mask is None else mask.sum(1)
        self.lengths = more if self.lengths is None else self.lengths + more
        self.columns += num_tokens

    def newest(self, name: str, shown: Tensor) -> Tensor:
        """What is to be kept of ``shown [B, P, C]``."""
        reach = self.reaches.get(name)
        return shown if reach is None else shown[:, max(0, shown.shape[1] - reach) :]

    def select(self, rows: Tensor) -> None:
        """Row ``i`` becomes what row ``rows[i]`` was; rows may come any number of times."""

        def chosen(held: Tensor | None) -> Tensor | None:
            return None if held is None else held.index_select(0, rows.to(held.device))

        self.mask, self.positions, self.lengths = map(chosen, (self.mask, self.positions, self.lengths))
        self.frontier = chosen(self.frontier)
        self.slots = [{name: chosen(shown) for name, shown in slot.items()} for slot in self.slots]  # type: ignore
        # In place: a stack holds on to this table.
        self.provided.update({name: chosen(held) for name, held in self.provided.items()})  # type: ignore[misc]
        if self._plain is not None:
            self._plain.select(rows)

    def crop(self, columns: int) -> None:
        """Forget all but the first ``columns`` columns.

        Raises:
            ValueError: where a causal convolution has dropped what it would want then.
        """
        if columns >= self.columns:
            return
        if self.reaches:
            raise ValueError(
                "a cache of causal convolutions or of windows cannot forget its newest tokens: it holds no others"
            )
        assert self.positions is not None and self.lengths is not None
        dropped = self.columns - columns
        gone = dropped if self.mask is None else self.mask[:, columns:].sum(1)
        self.lengths = self.lengths - gone
        self.mask = None if self.mask is None else self.mask[:, :columns]
        self.positions = self.positions[:, :columns]
        self.frontier = None if self.frontier is None else self.frontier[:, :columns]
        self.slots = [{name: shown[:, :columns] for name, shown in slot.items()} for slot in self.slots]
        self.columns = columns
        if columns == 0:
            self.slots, self.frontier = [], None
        if self._plain is not None:
            self._plain.crop(columns)
