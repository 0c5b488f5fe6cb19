"""Coordinate embeddings: signals of a token's place and of the step in depth, given to the state at every step.

Dehghani et al. 2019, equations 6 and 7; tensor2tensor's layout differs, see ``sinusoid``.

B batch, T tokens, E hidden size, M steps, C channels: those of the state so far.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longspan.layers.step_tokens import StepRows

Layout = Literal["tensor2tensor", "paper"]
Offset = Literal["random_each_step", "step"]
TIME_SCALES = 10000.0  # from the fastest wave to the slowest


def sinusoid(positions: Tensor, channels: int, layout: Layout = "tensor2tensor", dtype=torch.float32) -> Tensor:
    """Waves of ``channels / 2`` lengths, sine and cosine.

    Args:
        positions: integers ``[...]``, counted from 0.
        channels: an odd last one is 0.
        layout: "paper": sines and cosines take turns, positions count from 1, and wave j has the length
            ``10000 ** (2 j / channels)``. "tensor2tensor": first all sines, then all cosines, from position 0, with
            ``10000 ** (j / (channels / 2 - 1))``.
        dtype: of the result; computed in float64, for positions far out.

    Returns:
        ``[..., channels]``.
    """
    number = channels // 2
    wide = torch.float32 if positions.device.type == "mps" else torch.float64  # which mps lacks
    j = torch.arange(number, dtype=wide, device=positions.device)
    if layout == "paper":
        angle = (positions + 1).to(wide)[..., None] * torch.exp(j * (-2 * math.log(TIME_SCALES) / channels))
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
    else:
        angle = positions.to(wide)[..., None] * torch.exp(j * (-math.log(TIME_SCALES) / max(number - 1, 1)))
        waves = torch.cat([angle.sin(), angle.cos()], -1)
    return F.pad(waves, (0, channels % 2)).to(dtype)


class Places:
    """The signal of the places of one call's tokens.

    Args:
        positions: int64 ``[1 or B, T]``.
        layout: of the waves.
    """

    def __init__(self, positions: Tensor, layout: Layout):
        self.positions, self.length = positions, positions.shape[1]
        self.layout: Layout = layout
        self._newest: tuple[int, Tensor] | None = None

    def signal(self, at: StepRows, shift: int | Tensor, channels: int, dtype: torch.dtype) -> Tensor:
        """Of the places of a step's rows, moved by ``shift``: ``[..., channels]``. Steps that agree share one."""
        if torch.compiler.is_compiling() or isinstance(shift, Tensor) or at.num_joined:
            return sinusoid(at.positions + shift, channels, self.layout, dtype)
        newest = self._newest
        if newest is None or newest[0] != shift or newest[1].dtype != dtype:
            self._newest = newest = (shift, sinusoid(self.positions + shift, channels, self.layout, dtype))
        return at.take(newest[1])


class Coordinates(nn.Module):
    """Gives the state the signals of place and step.

    Args:
        hidden_size: E.
        num_steps: M, rows of the learned table.
        position: layout of the signal of the place, or "none".
        step: "learned": a table, times the root of its width, so that new entries have variance 1. "sinusoid": as the
            place, goes on beyond M. "none".
        timing: "add"; or "concat": one signal behind the other, then a projection back to E.
        offset: "step": at step t places begin at T t / M. "random_each_step": in training at a random place below T.
            None: where the call says.
    """

    def __init__(
        self,
        hidden_size: int,
        num_steps: int,
        *,
        position: Literal["tensor2tensor", "paper", "none"] = "tensor2tensor",
        step: Literal["learned", "sinusoid", "none"] = "learned",
        timing: Literal["add", "concat"] = "add",
        offset: Offset | None = None,
    ):
        super().__init__()
        self.position, self.step, self.timing, self.offset = position, step, timing, offset
        self.layout: Layout = "paper" if position == "paper" else "tensor2tensor"
        concat = timing == "concat"
        width = hidden_size * 2 if concat and position != "none" else hidden_size  # before the signal of the step
        self.step_embedding = nn.Embedding(num_steps, width) if step == "learned" else None
        if self.step_embedding is not None:
            nn.init.normal_(self.step_embedding.weight, std=width**-0.5)
        whole = width * 2 if concat and step != "none" else width
        self.projection = nn.Linear(whole, hidden_size, bias=False) if whole != hidden_size else None

    @property
    def max_steps(self) -> int | None:
        """Steps that there are signals for; None: any number."""
        return None if self.step_embedding is None else self.step_embedding.num_embeddings

    def places(self, positions: Tensor) -> Places | None:
        """To be made once for a call, ``positions [1 or B, T]``, and given to all of its steps."""
        return None if self.position == "none" else Places(positions, self.layout)

    def forward(self, x: Tensor, at: StepRows, places: Places | None, num_steps: int) -> Tensor:
        """The state of a step's rows, with its signals.

        Args:
            x: rows ``[..., E]``.
            at: the step.
            places: from ``places``.
            num_steps: at most done in this call.
        """
        if places is not None:
            signal = places.signal(at, self._shift(at, places, num_steps), x.shape[-1], x.dtype)
            x = self._join(x, signal)
        if self.step_embedding is not None:
            x = self._join(x, self.step_embedding.weight[at.step] * x.shape[-1] ** 0.5)
        elif self.step == "sinusoid":
            number = torch.full((), at.step, device=x.device)
            x = self._join(x, sinusoid(number, x.shape[-1], self.layout, x.dtype))
        return x if self.projection is None else self.projection(x)

    def _shift(self, at: StepRows, places: Places, num_steps: int) -> int | Tensor:
        if self.offset == "step":
            return places.length * at.step // num_steps
        if self.offset == "random_each_step" and self.training:
            return torch.randint(max(1, places.length), (), device=at.positions.device)
        return 0

    def _join(self, x: Tensor, signal: Tensor) -> Tensor:
        if self.timing == "add":
            return x + signal.to(x.dtype)
        return torch.cat([x, signal.to(x.dtype).expand(*x.shape[:-1], -1)], -1)
