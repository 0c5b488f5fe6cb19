"""Learning to execute (Zaremba and Sutskever 2014): digits to be remembered, and small programs to be run, as text.

Everything is characters: `PROGRAM_CHARACTERS` numbers them. Programs are Python, and print one number.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

PAD, END, FIRST = 0, 1, 2
PROGRAM_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz()+-*<>=:. \n"
VOCAB_SIZE = FIRST + len(PROGRAM_CHARACTERS)
Kind = Literal["copy", "double", "reverse", "program", "control", "addition"]
KINDS: tuple[Kind, ...] = ("copy", "double", "reverse", "program", "control", "addition")
_VARIABLES = "abcdefghij"


def encode(text: str) -> list[int]:
    """Ids of the characters.

    Raises:
        ValueError: for a character that programs do not have.
    """
    unknown = sorted(set(text) - set(PROGRAM_CHARACTERS))
    if unknown:
        raise ValueError(f"text must consist of {PROGRAM_CHARACTERS!r}, got {unknown[0]!r}")
    return [FIRST + PROGRAM_CHARACTERS.index(character) for character in text]


def decode(ids: list[int]) -> str:
    """The characters of ids, up to the first end."""
    ids = ids[: ids.index(END)] if END in ids else ids
    return "".join(PROGRAM_CHARACTERS[number - FIRST] for number in ids if number >= FIRST)


def memorise(kind: Literal["copy", "double", "reverse"], length: int, draw: Random) -> tuple[str, str]:
    """Digits and what to say of them; "double": they are shown twice, and to be said once."""
    digits = "".join(str(draw.randrange(10)) for _ in range(length))
    return (digits * 2 if kind == "double" else digits), (digits[::-1] if kind == "reverse" else digits)


class _Writer:
    """Writes a program and knows what its variables hold.

    An expression is its text and its value.
    """

    def __init__(self, length: int, draw: Random) -> None:
        self.length, self.draw = length, draw
        self.lines: list[str] = []

    def number(self) -> tuple[str, int]:
        value = self.draw.randrange(10 ** self.draw.randint(1, self.length))
        return str(value), value

    def fresh(self) -> str:
        used = {line[0] for line in self.lines}
        return self.draw.choice([name for name in _VARIABLES if name not in used])

    def add(self, left: tuple[str, int]) -> tuple[str, int]:
        """Addition or subtraction."""
        right, sign = self.number(), self.draw.choice("+-")
        value = left[1] + right[1] if sign == "+" else left[1] - right[1]
        return f"({left[0]}{sign}{right[0]})", value

    def multiply(self, left: tuple[str, int]) -> tuple[str, int]:
        """By a number of one digit."""
        factor = self.draw.randint(2, 9)
        return f"({left[0]}*{factor})", left[1] * factor

    def choose(self, left: tuple[str, int]) -> tuple[str, int]:
        """One of two values by a comparison."""
        other, one, two = self.number(), self.number(), self.number()
        sign = self.draw.choice("<>")
        holds = one[1] < two[1] if sign == "<" else one[1] > two[1]
        return f"({left[0]} if {one[0]}{sign}{two[0]} else {other[0]})", (left if holds else other)[1]

    def assign(self, left: tuple[str, int]) -> tuple[str, int]:
        name = self.fresh()
        self.lines.append(f"{name}={left[0]}")
        return name, left[1]

    def loop(self, left: tuple[str, int]) -> tuple[str, int]:
        """Add the same number a few times."""
        name, value = self.assign(left)
        (text, step), times, sign = self.number(), self.draw.randint(2, 9), self.draw.choice("+-")
        self.lines.append(f"for x in range({times}):{name}{sign}={text}")
        return name, value + step * times * (1 if sign == "+" else -1)


def write_program(kind: Literal["program", "control", "addition"], length: int, nesting: int, draw: Random):
    """A program and what it prints.

    Args:
        kind: "addition" is the sum of two numbers; "control" has choices and loops, "program" products as well.
        length: most digits of a number.
        nesting: operations that are put into each other.
        draw: of all choices.
    """
    writer = _Writer(length, draw)
    expression = writer.number()
    if kind == "addition":
        other = writer.number()
        expression = f"{expression[0]}+{other[0]}", expression[1] + other[1]
    else:
        operations: list[Callable[[tuple[str, int]], tuple[str, int]]] = [writer.choose, writer.loop, writer.assign]
        if kind == "program":
            operations += [writer.add, writer.multiply]
        for _ in range(nesting):
            expression = draw.choice(operations)(expression)
    return "\n".join([*writer.lines, f"print({expression[0]})"]), str(expression[1])


class ExecutionDataset(Dataset[dict[str, Tensor]]):
    """Texts and what to say of them. Item ``i`` depends on all arguments but ``count``, and on ``i``.

    Sizes are mixed: each item draws its own, up to the given ones. Each has ``input_ids`` and ``labels``, int64, both
    with the end behind them; `text` gives both as text.

    Args:
        kind: see `KINDS`.
        count: number of items.
        length: most digits to remember, or of a number in a program (the paper: 55, and 5).
        nesting: most operations of a program (the paper: 2).
        seed: of the items.
        mixed: whether sizes are drawn; if not, every item has the given ones.
    """

    def __init__(
        self, kind: Kind, count: int, *, length: int, nesting: int = 2, seed: int = 0, mixed: bool = True
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if length < 1 or nesting < 1:
            raise ValueError(f"length and nesting must be at least 1, got {length} and {nesting}")
        self.kind: Kind = kind
        self.count, self.length, self.nesting, self.seed, self.mixed = count, length, nesting, seed, mixed

    def __len__(self) -> int:
        return self.count

    def text(self, index: int) -> tuple[str, str]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        draw = Random(f"{self.seed} {self.kind} {self.length} {self.nesting} {self.mixed} {index}")
        length = draw.randint(1, self.length) if self.mixed else self.length
        if self.kind in ("copy", "double", "reverse"):
            return memorise(self.kind, length, draw)
        return write_program(self.kind, length, draw.randint(1, self.nesting) if self.mixed else self.nesting, draw)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        given, wanted = self.text(index)
        return {"input_ids": torch.tensor([*encode(given), END]), "labels": torch.tensor([*encode(wanted), END])}
