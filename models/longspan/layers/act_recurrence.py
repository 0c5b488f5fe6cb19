"""Applying one block until each token halts: adaptive computation time in depth (Dehghani et al. 2019).

B batch, T tokens, E hidden size; rows are those of a step, see ``step_tokens.py``.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from longspan.layers.fixed_recurrence import Apply, HaltingStep, Outcome, Recurrence
from longspan.layers.halting import HaltingState, HaltingUnit, Mixing, Variant, mix
from longspan.layers.step_tokens import Frozen, StepRows, StepTokens


class ActRecurrence(Recurrence):
    """Adaptive computation time: each token is computed until it halts; the output mixes the states of its steps.

    Args:
        hidden_size: E.
        num_steps: M, at most done.
        variant: how halting is decided, see ``halting.Variant``.
        mix: "interpolate" or "sum", see ``halting.mix``; None: "sum" for "accumulated", else "interpolate".
        epsilon: halting needs a summed probability above ``1 - epsilon``.
        halting_bias: of a new halting unit.
        loss_weight: of the ponder cost.
        force_halt_at_max: the last step halts all, with the weight that is left. Else a token that never halted has
            weights that sum to less than 1, and no gradient from the ponder cost.
        halted_state: "continue": halted tokens are computed and seen on, and only their output stays (tensor2tensor).
            "copy": their state stays what it was, as the paper's text says.
        halted_kv: with "copy", what others see of a halted token: "recompute": what each step makes of its state and
            the step's signals. "reuse": what they saw last, so that it costs nothing.
        skip_padding: padding counts as halted from the start, and not in the ponder cost. Else a result depends on
            the padding beside a text, as in tensor2tensor.
        packed: with "copy" and "reuse", compute active tokens alone.
    """

    def __init__(
        self,
        hidden_size: int,
        num_steps: int,
        *,
        variant: Variant = "basic",
        mix: Mixing | None = None,
        epsilon: float = 0.01,
        halting_bias: float = 1.0,
        loss_weight: float = 0.01,
        force_halt_at_max: bool = False,
        halted_state: Literal["continue", "copy"] = "continue",
        halted_kv: Literal["recompute", "reuse"] = "recompute",
        skip_padding: bool = True,
        packed: bool = False,
        **basics: Any,
    ):
        super().__init__(hidden_size, num_steps, **basics)
        check_one_of("variant", variant, ("basic", "accumulated", "global", "random"))
        check_one_of("mix", mix, (None, "interpolate", "sum"))
        check_one_of("halted_state", halted_state, ("continue", "copy"))
        check_one_of("halted_kv", halted_kv, ("recompute", "reuse"))
        if not 0 <= epsilon < 1:
            raise ValueError(f"epsilon must lie in [0, 1), got {epsilon}")
        if loss_weight < 0:
            raise ValueError(f"loss_weight must not be negative, got {loss_weight}")
        if variant == "accumulated" and mix == "interpolate":
            raise ValueError("variant = 'accumulated' sums: mix must be 'sum' or None, got 'interpolate'")
        if halted_kv == "reuse" and halted_state != "copy":
            raise ValueError(
                "halted_kv = 'reuse' needs halted_state = 'copy': a state that goes on has new keys and values"
            )
        if packed and halted_kv != "reuse":
            raise ValueError(
                "packed = True needs halted_state = 'copy' and halted_kv = 'reuse': otherwise there is work to do for "
                "halted tokens"
            )
        self.variant, self.epsilon, self.loss_weight = variant, float(epsilon), float(loss_weight)
        self.mix: Mixing = mix or ("sum" if variant == "accumulated" else "interpolate")
        self.force_halt_at_max, self.skip_padding, self._packed = force_halt_at_max, skip_padding, packed
        self.halted_state, self.halted_kv = halted_state, halted_kv
        self._frozen: Frozen = "continue" if halted_state == "continue" else halted_kv
        self.halting = None if variant == "random" else HaltingUnit(hidden_size, float(halting_bias))

    @property
    def frozen(self) -> Frozen:
        return self._frozen

    @property
    def packs(self) -> bool:
        return self._packed

    def forward(self, hidden: Tensor, tokens: StepTokens, timed: Apply, block: Apply, num_steps: int) -> Outcome:
        mask = tokens.mask if self.skip_padding else None
        state, outcome = hidden, Outcome(hidden)
        output = torch.zeros_like(hidden, dtype=torch.promote_types(hidden.dtype, torch.float32))
        running = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask
        if self.variant == "global":
            running = running.any(1) if running.shape[1] else running.new_zeros(running.shape[0])
        held = HaltingState.begin(running, hidden.dtype)
        for step in range(num_steps):
            undecided = held.undecided(self.epsilon)
            if not tokens.more(step, undecided):
                break
            held = held._replace(running=held.running & undecided.any())  # where the loop goes on for other reasons
            active = held.running
            at = tokens.begin(step, None if self.halted_state == "continue" else self._each(active, mask, hidden))
            rows = timed(at.enter(state), at)
            p = self._probability(rows, at, mask, hidden)
            held, weight = held.advance(p, self.epsilon, self.force_halt_at_max and step == num_steps - 1)
            rows = block(rows, at)
            state = at.leave(state, rows)
            each = at.take(self._each(weight, mask, hidden))
            output = at.put(output, mix(at.take(output), rows, each, self.mix))
            outcome.states.append(state)
            outcome.halting_steps.append(HaltingStep(torch.where(active, p, 0.0), weight, active))
        outcome.output, outcome.halting = output.to(hidden.dtype), held
        return outcome

    def _probability(self, rows: Tensor, at: StepRows, mask: Tensor | None, hidden: Tensor) -> Tensor:
        if self.halting is None:
            return torch.rand(hidden.shape[:2], device=hidden.device)
        p = at.spread(self.halting(rows))
        if self.variant != "global":
            return p
        if mask is None:
            return p.mean(1)
        return p.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp(min=1)

    def _each(self, of: Tensor, mask: Tensor | None, hidden: Tensor) -> Tensor:
        """``[B, T]`` of each token; where texts halt as a whole, ``of [B]`` is its text's, and 0 at padding."""
        if self.variant != "global":
            return of
        of = of[:, None].expand(hidden.shape[:2])
        return of if mask is None else of * mask


def check_one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
