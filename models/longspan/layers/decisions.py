"""What a layer decides once and must repeat when it is computed again: dropout seeds, rotations, hash buckets.

A reversible stack computes every sublayer twice, in the forward pass and, from its output, in the backward pass. Both
must be the same function, so what is drawn, or may come out differently after rounding, is kept here the first time.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from longspan.ops import seeded_dropout


class Seeds:
    """Seeds for many sublayers: one draw from torch's default generator, which the others follow by counting.

    Kept seeds are numbers, not tensors: small tensors that outlive large ones break the heap into pieces, and a stack
    of many layers then takes memory for holes that nothing fits into.
    """

    def __init__(self):
        self._first: Tensor | None = None
        self._count = 0

    def count(self, device: torch.device) -> int:
        """The number of a new seed."""
        if self._first is None:
            self._first = torch.randint(2**62, (), dtype=torch.int64, device=device)
        self._count += 1
        return self._count

    def __getitem__(self, number: int) -> Tensor:
        """0-dim int64."""
        assert self._first is not None
        return self._first + number


class Decisions:
    """The decisions of one call of one sublayer.

    ```python
    def attention(self, hidden, decisions, mask):
        buckets = decisions.once("buckets", lambda: self.hash(hidden, mask).int())
        seed = decisions.seed("attention dropout", hidden.device)
    ```

    The keys are the sublayer's own: every sublayer, and every piece of a chunked one, has its own ``Decisions``.

    Modules that know nothing of this class may draw as well, as ``nn.Dropout`` in an adapter does. ``recording``
    notices it; ``replaying`` then leads torch's default generators through the same states and puts them back.

    Args:
        seeds: where seeds come from, shared by the sublayers of one forward pass; None: a draw of its own.
    """

    def __init__(self, seeds: Seeds | None = None):
        self._seeds = Seeds() if seeds is None else seeds
        self._values: dict[Hashable, Any] = {}
        self._draws: _Draws | None = None  # while recording; afterwards only if somebody else drew
        self._replaying = False

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """``make()`` the first time, what it returned ever after."""
        if key in self._values:
            if self._replaying and self._draws is not None:
                self._draws.repeat(key)
            return self._values[key]
        if self._replaying:
            raise RuntimeError(f"a sublayer decides {key!r} when it is computed again, but did not the first time")
        if self._draws is not None:
            self._draws.look()
        self._values[key] = value = make()
        if self._draws is not None:
            self._draws.note(key)
        return value

    def seed(self, key: Hashable, device: torch.device) -> Tensor:
        """A seed for the operators, always the same: 0-dim int64 tensor."""
        return self._seeds[self.once(("seed", key), lambda: self._seeds.count(device))]

    @contextmanager
    def recording(self, device: torch.device) -> Iterator[None]:
        """Around the first computation, if there will be another one."""
        self._draws = draws = _Draws(device)
        yield
        draws.look()
        if not draws.by_others:
            self._draws = None

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Around every other computation: the default generators are the same before and after."""
        self._replaying = True
        try:
            if self._draws is None:
                yield
            else:
                with self._draws.repeated():
                    yield
        finally:
            self._replaying = False


class _Draws:
    """States of the default generators in the course of a computation, and whether they moved between decisions."""

    def __init__(self, device: torch.device):
        self.device = device
        self.by_others = False
        self._start = self._last = self._read()
        self._after: dict[Hashable, tuple[Tensor, ...]] = {}  # a decision
        self._coming: dict[Hashable, tuple[Tensor, ...]] = {}

    def look(self) -> None:
        """Before a decision and at the end: has anything been drawn since the last one?"""
        self.by_others |= not all(map(torch.equal, self._read(), self._last))

    def note(self, key: Hashable) -> None:
        """A decision was taken."""
        self._last = self._after[key] = self._read()

    def repeat(self, key: Hashable) -> None:
        """A decision is looked up; the first time, the generators pass over what it drew."""
        if key in self._coming:
            self._write(self._coming.pop(key))

    @contextmanager
    def repeated(self) -> Iterator[None]:
        outside = self._read()
        self._coming = dict(self._after)
        self._write(self._start)
        try:
            yield
        finally:
            self._write(outside)

    def _read(self) -> tuple[Tensor, ...]:
        states = (torch.get_rng_state(),)
        if self.device.type != "cpu":
            states += (torch.get_device_module(self.device).get_rng_state(self.device),)
        return states

    def _write(self, states: tuple[Tensor, ...]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(states[1], self.device)


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of a seed: nothing of the size of its input is kept, nothing is drawn twice.

    Called twice with the same ``decisions`` it drops the same elements; two modules drop independently.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be a probability in [0, 1), got {p}")
        self.p = p

    def forward(self, hidden: Tensor, decisions: Decisions) -> Tensor:
        """Any shape -> the same shape."""
        if not self.training or self.p == 0.0:
            return hidden
        return seeded_dropout(hidden, decisions.seed(self, hidden.device), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
