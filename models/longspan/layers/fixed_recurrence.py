"""Applying one block a fixed number of times: the plainest recurrence in depth, and what all kinds share.

B batch, T tokens, E hidden size; rows are those of a step, see ``step_tokens.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from longspan.layers.halting import HaltingState
from longspan.layers.step_tokens import Frozen, StepRows, StepTokens

Apply = Callable[[Tensor, StepRows], Tensor]  # rows -> rows


class HaltingStep(NamedTuple):
    """What one step of adaptive computation did, each ``[B, T]``; ``[B]`` where texts halt as a whole."""

    probability: Tensor  # to halt at this step; 0 where halted before
    weight: Tensor  # of the step's outcome
    running: Tensor  # bool, before the step


@dataclass
class Outcome:
    """What a recurrence gives back."""

    output: Tensor  # [B, T, E]
    states: list[Tensor] = field(default_factory=list)  # after each step, [B, T, E]
    halting: HaltingState | None = None
    halting_steps: list[HaltingStep] = field(default_factory=list)


class Recurrence(nn.Module):
    """A fixed number of times, each on what the last one made. Other kinds differ in ``advance``.

    Args:
        hidden_size: E.
        num_steps: at most done, where the caller says nothing else.
        normed: whether sublayers take in a LayerNorm of the state, so that gates do, too.
        layer_norm_eps: epsilon of LayerNorms.
    """

    takes_step_signal = True  # whether the state may be given a signal of the step
    has_inner_layers = True  # whether the block may have several
    has_transition = True  # whether the block ends in a transition

    def __init__(self, hidden_size: int, num_steps: int, *, normed: bool = True, layer_norm_eps: float = 1e-6):
        super().__init__()
        self.hidden_size, self.num_steps = hidden_size, num_steps
        self._normed, self._eps = normed, layer_norm_eps

    @property
    def max_steps(self) -> int | None:
        """Steps that there are weights for; None: any number."""
        return None

    @property
    def frozen(self) -> Frozen:
        """What becomes of tokens that have halted."""
        return "continue"

    @property
    def packs(self) -> bool:
        """Whether active tokens alone are computed."""
        return False

    def forward(self, hidden: Tensor, tokens: StepTokens, timed: Apply, block: Apply, num_steps: int) -> Outcome:
        """Run.

        Args:
            hidden: ``[B, T, E]``, what goes into the first step.
            tokens: of this call.
            timed: gives a state its signals of place and step.
            block: what is applied again and again.
            num_steps: at most done.
        """
        state, memory, states = hidden, self.begin(hidden), []
        for step in range(num_steps):
            at = tokens.begin(step)
            rows, memory = self.advance(at.enter(state), memory, hidden, at, timed, block)
            state = at.leave(state, rows)
            states.append(state)
        return Outcome(self.finish(state, memory), states)

    def begin(self, hidden: Tensor) -> Any:
        """What is kept from step to step beside the state."""
        return None

    def advance(
        self, rows: Tensor, memory: Any, hidden: Tensor, at: StepRows, timed: Apply, block: Apply
    ) -> tuple[Tensor, Any]:
        """One step: the state's new rows, and the new memory."""
        return block(timed(rows, at), at), memory

    def finish(self, state: Tensor, memory: Any) -> Tensor:
        """The output, of the last state."""
        return state

    def _norm(self) -> nn.Module:
        return nn.LayerNorm(self.hidden_size, eps=self._eps) if self._normed else nn.Identity()
