"""What a model carries from block to block of a stream: any nesting of tuples, lists and dicts of tensors ``[B, ...]``.

``None`` is the state before the first block. B rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = Any


def map_tensors(function: Callable[..., Any], *states: State) -> State:
    """``function`` of the tensors that stand at the same place of all states, nested as they are."""
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    if first is None:
        return None
    if isinstance(first, dict):
        return {name: map_tensors(function, *(state[name] for state in states)) for name in first}
    if isinstance(first, tuple | list):
        mapped = [map_tensors(function, *parts) for parts in zip(*states, strict=True)]
        return tuple(mapped) if isinstance(first, tuple) else mapped
    raise TypeError(f"mems must be tensors in tuples, lists and dicts, got {type(first).__name__}")


@dataclass(frozen=True)
class StreamPlace:
    """What must be the same for a state to be carried on.

    Args:
        tokens: length of the stream.
        rows: number of rows.
        block_size: tokens in a block.
        seed: of the offsets.
    """

    tokens: int
    rows: int
    block_size: int
    seed: int


def save_states(
    folder: Path,
    place: StreamPlace,
    states: Sequence[State],
    first_rows: Sequence[int],
    *,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Write the states of one process.

    Args:
        folder: of the checkpoint.
        place: see there.
        states: one per part of a block.
        first_rows: number of each part's first row.
        rank: of the process.
        ranks: number of processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [
        {"first_row": first, "state": map_tensors(lambda tensor: tensor.detach().cpu().contiguous(), state)}
        for first, state in zip(first_rows, states, strict=True)
    ]
    torch.save({"place": asdict(place), "ranks": ranks, "pieces": pieces}, folder / _file(rank))


def load_states(folder: Path, place: StreamPlace, first_rows: Sequence[int], batch_size: int) -> list[State]:
    """Read the states of ``batch_size`` rows from each of ``first_rows`` on, however many processes had written them.

    Raises:
        ValueError: where the checkpoint has none, or was made on another stream.
    """
    pieces: list[dict[str, Any]] = []
    rank, ranks = 0, 1
    while rank < ranks:
        if not (folder / _file(rank)).exists():
            raise ValueError(
                f"{folder} must hold {_file(rank)}, the state of a stream: was it written by StreamTrainer?"
            )
        content = torch.load(folder / _file(rank), weights_only=True, map_location="cpu", mmap=True)
        now, before = asdict(place), content["place"]
        changed = [f"{name} = {before[name]} (now {now[name]})" for name in now if before[name] != now[name]]
        if changed:
            raise ValueError(f"the run in {folder} began with {', '.join(changed)}: resume it with the same")
        pieces += content["pieces"]
        rank, ranks = rank + 1, content["ranks"]
    pieces.sort(key=lambda piece: piece["first_row"])
    return [_rows(pieces, first, batch_size) for first in first_rows]


def _rows(pieces: Sequence[dict[str, Any]], first: int, count: int) -> State:
    """Rows ``[first, first + count)`` out of pieces that are sorted and join without gaps."""
    begins = [piece["first_row"] for piece in pieces]
    found = []
    for piece, begin, end in zip(pieces, begins, [*begins[1:], math.inf], strict=True):
        if begin < first + count and first < end:
            wanted = slice(max(first - begin, 0), first + count - begin)
            found.append(map_tensors(lambda tensor, wanted=wanted: tensor[wanted], piece["state"]))
    return map_tensors(lambda *tensors: torch.cat(tensors), *found)  # copies: the file may go


def _file(rank: int) -> str:
    return f"stream_state_{rank}.pt"
