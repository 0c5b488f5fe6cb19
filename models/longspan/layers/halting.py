"""Adaptive computation time: when each token of a stack that is recurrent in depth stops being computed.

Graves 2016; Dehghani et al. 2019 (Universal Transformer), appendix C, whose bookkeeping this is. At each step a unit
gives every token a probability to halt; they are summed until the sum passes ``1 - epsilon``. What is left to 1 then
is the remainder, the weight of the last step.

B batch, T tokens, E hidden size.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# "basic": each token halts by itself. "accumulated": the same; outputs are summed where "basic" interpolates them.
# "global": a text halts as a whole, by the mean of its tokens' probabilities. "random": probabilities are drawn.
Variant = Literal["basic", "accumulated", "global", "random"]
Mixing = Literal["interpolate", "sum"]  # see ``mix``


class HaltingState(NamedTuple):
    """How far each token is, ``[B, T]``; with "global" each text, ``[B]``. At least float32, whatever the model is."""

    probability: Tensor  # sum of the probabilities so far; exactly 1 after halting
    remainders: Tensor  # what was left to 1 in the step that halted; 0 where none has
    n_updates: Tensor  # steps that counted, a whole number
    running: Tensor  # bool, False after halting

    @classmethod
    def begin(cls, running: Tensor, dtype: torch.dtype) -> "HaltingState":
        """Before the first step; ``running``, bool, is False at padding that is to be left out."""
        zero = torch.zeros(running.shape, dtype=torch.promote_types(dtype, torch.float32), device=running.device)
        return cls(zero, zero, zero, running)

    def undecided(self, epsilon: float) -> Tensor:
        """Which still keep the loop going. A sum of exactly ``1 - epsilon`` neither halts nor does."""
        return self.running & (self.probability < 1 - epsilon)

    def advance(self, p: Tensor, epsilon: float, last: bool = False) -> tuple["HaltingState", Tensor]:
        """Take a step.

        Args:
            p: probability to halt at this step, shaped as the state.
            epsilon: a sum above ``1 - epsilon`` halts.
            last: halt whatever still runs, so that all weights of a token sum to 1.

        Returns:
            The state after the step, and the weight of the step's outcome: p, the remainder in the step that halts, 0
            after it. Of ``n_updates`` nothing is differentiable; of a remainder, the probabilities before it are.
        """
        held, remainders, n_updates, running = self
        halts = running & (held + p > 1 - epsilon)
        if last:
            halts = running
        goes_on = running & ~halts
        zero = held.new_zeros(())
        remainder = torch.where(halts, 1 - held, zero)
        probability = torch.where(halts, held.new_ones(()), held + torch.where(goes_on, p, zero))
        weight = torch.where(goes_on, p, remainder)
        return HaltingState(probability, remainders + remainder, n_updates + running, goes_on), weight


class HaltingUnit(nn.Linear):
    """The probability to halt at this step, from a token's state with the signals of place and step: sigmoid(w x + b).

    Args:
        hidden_size: E.
        initial_bias: of a new unit. At 1.0, the authors' value, a new model halts after about two steps, and often
            stays there in training; -3 starts deep.
    """

    def __init__(self, hidden_size: int, initial_bias: float = 1.0):
        super().__init__(hidden_size, 1)
        self.initial_bias = initial_bias
        nn.init.constant_(self.bias, initial_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., E]`` -> ``[...]``, at least float32, under autocast too."""
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return torch.sigmoid(F.linear(x.to(wide), self.weight.to(wide), self.bias.to(wide))).squeeze(-1)


def mix(output: Tensor, state: Tensor, weight: Tensor, how: Mixing) -> Tensor:
    """The output after a step that made ``state`` of a token.

    Args:
        output: ``[..., E]`` so far, 0 at first.
        state: ``[..., E]``.
        weight: ``[...]`` of the step.
        how: "sum": Graves' weighted mean, if the weights sum to 1. "interpolate": ``weight * state + (1 - weight) *
            output`` (tensor2tensor): weights less than 1 shrink all earlier steps, so that they sum to less than 1.
    """
    weight = weight[..., None]
    if how == "sum":
        return output + weight * state
    return weight * state + (1 - weight) * output


class PonderSummary(NamedTuple):
    """How long each text was pondered, ``[B]`` each, over its tokens."""

    mean: Tensor
    std: Tensor
    largest: Tensor


def ponder_summary(n_updates: Tensor, mask: Tensor | None = None) -> PonderSummary:
    """Steps per text.

    Args:
        n_updates: ``[B, T]``, or ``[B]`` where texts halt as a whole.
        mask: ``[B, T]``, False or 0 at padding; None: no padding.

    Returns:
        Mean, standard deviation and maximum over the tokens of each text; 0 where it has none.
    """
    if n_updates.dim() == 1:
        return PonderSummary(n_updates, torch.zeros_like(n_updates), n_updates)
    tokens = torch.ones_like(n_updates, dtype=torch.bool) if mask is None else mask != 0
    steps = n_updates.masked_fill(~tokens, 0)
    count = tokens.sum(1).clamp(min=1)
    mean = steps.sum(1) / count
    spread = (steps - mean[:, None]).masked_fill(~tokens, 0).square().sum(1) / count
    largest = steps.amax(1) if steps.shape[1] else torch.zeros_like(mean)
    return PonderSummary(mean, spread.sqrt(), largest)


def ponder_cost(n_updates: Tensor, remainders: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of ``n_updates + remainders``: 0-dim, 0 where nothing counts.

    Args:
        n_updates: ``[B, T]``, or ``[B]`` where texts halt as a whole.
        remainders: as ``n_updates``; gradients flow through them alone.
        mask: bool ``[B, T]`` or ``[B]``, what counts; None: everything, padding included.
    """
    cost = n_updates + remainders
    if mask is None:
        return cost.sum() / max(1, cost.numel())
    return cost.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)
