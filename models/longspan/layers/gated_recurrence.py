"""Recurrences in depth with gates, or with a memory: kinds that tensor2tensor has beside the paper's.

B batch, T tokens, E hidden size; rows are those of a step, see ``step_tokens.py``.
"""

from typing import Any

import torch
from torch import Tensor, nn

from longspan.layers.fixed_recurrence import Recurrence


def gate(in_features: int, out_features: int, initial_bias: float = 0.0) -> nn.Linear:
    """A dense layer that new models give a bias other than 0."""
    layer = nn.Linear(in_features, out_features)
    layer.initial_bias = initial_bias  # type: ignore[assignment]
    return layer


class _Gated(Recurrence):
    """Two states mixed by a gate, which sees the state (s), what the block made (t) and the first input (i).

    Args:
        hidden_size: E.
        num_steps: T.
        gates_inputs: which of "s", "t" and "i" the gates see.
        couple_gates: what is not taken of the new state is kept of the old. False: a second gate says what is kept.
        transform_bias: of a new gate; the second begins with its negative.
    """

    def __init__(
        self,
        hidden_size: int,
        num_steps: int,
        *,
        gates_inputs: str = "i",
        couple_gates: bool = True,
        transform_bias: float = -1.0,
        **basics: Any,
    ):
        super().__init__(hidden_size, num_steps, **basics)
        if not gates_inputs or set(gates_inputs) - set("sti"):
            raise ValueError(
                "gates_inputs must name what gates see, letters of 's' (state), 't' (transformed), 'i' (input), "
                f"got {gates_inputs!r}"
            )
        self.gates_inputs = [letter for letter in "sti" if letter in gates_inputs]
        self.gate_norms = nn.ModuleList([self._norm() for _ in self.gates_inputs])
        width = hidden_size * len(self.gates_inputs)
        self.transform = gate(width, hidden_size, transform_bias)
        self.carry = None if couple_gates else gate(width, hidden_size, -transform_bias)

    def advance(self, rows, memory, hidden, at, timed, block):
        new, first = block(timed(rows, at), at), at.take(hidden)
        seen = {"s": rows, "t": new, "i": first}
        seen = [norm(seen[letter]) for norm, letter in zip(self.gate_norms, self.gates_inputs, strict=True)]
        seen = torch.cat(seen, -1)
        taken = torch.sigmoid(self.transform(seen))
        kept = 1 - taken if self.carry is None else torch.sigmoid(self.carry(seen))
        return self.keeps(rows, first) * kept + new * taken, memory

    @staticmethod
    def keeps(state: Tensor, first: Tensor) -> Tensor:
        """What is kept beside the new state."""
        raise NotImplementedError


class HighwayRecurrence(_Gated):
    """Gates mix the state and what the block made of it."""

    @staticmethod
    def keeps(state: Tensor, first: Tensor) -> Tensor:
        return state


class SkipRecurrence(_Gated):
    """Gates mix the first input and what the block made of the state."""

    @staticmethod
    def keeps(state: Tensor, first: Tensor) -> Tensor:
        return first


class _Cell(Recurrence):
    """A cell of a recurrent network in depth, fed by attention. It counts steps by itself.

    Args:
        hidden_size: E.
        num_steps: T.
        with_transition: attention is followed by a transition before the cell.
    """

    takes_step_signal = False
    has_inner_layers = False

    def __init__(self, hidden_size: int, num_steps: int, *, with_transition: bool = False, **basics: Any):
        super().__init__(hidden_size, num_steps, **basics)
        self.has_transition = with_transition
        self.input_norm, self.output_norm = self._norm(), self._norm()


class GRURecurrence(_Cell):
    """A gated unit as tensor2tensor has it, which mixes the candidate with what attention made, not with the state."""

    def __init__(self, hidden_size: int, num_steps: int, **options: Any):
        super().__init__(hidden_size, num_steps, **options)
        self.update, self.reset = (gate(2 * hidden_size, hidden_size, 1.0) for _ in range(2))
        self.candidate = gate(2 * hidden_size, hidden_size)

    def advance(self, rows, memory, hidden, at, timed, block):
        given = self.input_norm(block(timed(rows, at), at))
        both = torch.cat([given, rows], -1)
        update, reset = torch.sigmoid(self.update(both)), torch.sigmoid(self.reset(both))
        candidate = torch.tanh(self.candidate(torch.cat([given, reset * rows], -1)))
        return self.output_norm((1 - update) * given + update * candidate), memory


class LSTMRecurrence(_Cell):
    """A long short-term memory; its memory begins at 0.

    Args:
        hidden_size: E.
        num_steps: T.
        forget_bias: added to what goes into the forget gate.
        memory_as_output: the last memory is the output, not the last state.
        options: of ``_Cell``.
    """

    def __init__(
        self,
        hidden_size: int,
        num_steps: int,
        *,
        forget_bias: float = 1.0,
        memory_as_output: bool = False,
        **options: Any,
    ):
        super().__init__(hidden_size, num_steps, **options)
        self.forget_bias, self.memory_as_output = forget_bias, memory_as_output
        self.input, self.forget, self.output, self.modulation = (gate(2 * hidden_size, hidden_size) for _ in range(4))

    def begin(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)

    def advance(self, rows, memory, hidden, at, timed, block):
        given = self.input_norm(block(timed(rows, at), at))
        both = torch.cat([given, rows], -1)
        forget = torch.sigmoid(self.forget(both) + self.forget_bias)
        new = torch.sigmoid(self.input(both)) * torch.tanh(self.modulation(both))
        held = forget * at.take(memory) + new
        return self.output_norm(torch.sigmoid(self.output(both)) * torch.tanh(held)), at.put(memory, held)

    def finish(self, state: Tensor, memory: Tensor) -> Tensor:
        return memory if self.memory_as_output else state


class DepthwiseAttentionRecurrence(Recurrence):
    """Each step reads all earlier states by learned weights ("dwa"), as tensor2tensor computes it.

    That is: step t reads the input and the outcomes of the first t - 1 steps, so the first reads nothing and begins
    at 0; and the weights are a softmax over features, not over depth.

    Args:
        hidden_size: E.
        num_steps: T.
        depth_embedding: add a learned signal of the depth to each state that is read.
        per_feature: a weight for every feature; False: the one weight is 1.
    """

    def __init__(
        self,
        hidden_size: int,
        num_steps: int,
        *,
        depth_embedding: bool = True,
        per_feature: bool = True,
        **basics: Any,
    ):
        super().__init__(hidden_size, num_steps, **basics)
        self.weigh = nn.Linear(hidden_size, hidden_size if per_feature else 1)
        self.depth_embedding = nn.Embedding(num_steps + 1, hidden_size) if depth_embedding else None
        if self.depth_embedding is not None:
            nn.init.normal_(self.depth_embedding.weight, std=hidden_size**-0.5)

    @property
    def max_steps(self) -> int | None:
        return None if self.depth_embedding is None else self.num_steps

    def begin(self, hidden: Tensor) -> list[Tensor]:
        return [hidden]

    def advance(self, rows, memory, hidden, at, timed, block):
        read = torch.zeros_like(rows)
        for depth, slot in enumerate(memory[: at.step]):
            state = at.take(slot)
            if self.depth_embedding is not None:
                state = state + self.depth_embedding.weight[depth] * self.hidden_size**0.5
            read = read + state * self.weigh(state).softmax(-1)
        new = block(timed(read, at), at)
        return new, [*memory, at.put(hidden, new)]
