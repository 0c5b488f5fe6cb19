"""Kernels out of the PTX text that nvcc writes: parameters, registers, instructions."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)\s*((?:\.\w+[^\n{]*\n)*)\s*\{\n(.*?)\n\}", re.S)
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+%(\w+?)(?:<\d+>)?;")
_SHARED = re.compile(r"\.extern\s+\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+(\w+)\[\]")
_BYTES = {"8": 1, "16": 2, "32": 4, "64": 8}


@dataclass
class Instruction:
    """``@[!]guard operation arguments``; what stands in brackets or braces is one argument."""

    operation: str
    arguments: list[str]
    guard: str | None = None
    negated: bool = False

    @property
    def words(self) -> list[str]:
        return self.operation.split(".")


@dataclass
class Kernel:
    """One entry.

    ``shared`` names its dynamic shared memory; ``parameters``: name -> (offset among all of them, bytes);
    ``registers``: prefix -> type.
    """

    name: str
    shared: str = ""
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def split_arguments(text: str) -> list[str]:
    """``"{a, b}, [c + 4], d"`` -> ``["{a, b}", "[c + 4]", "d"]``."""
    arguments, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[") - (character in "}]")
        if character == "," and depth == 0:
            arguments.append(current.strip())
            current = ""
        else:
            current += character
    return [*arguments, current.strip()] if current.strip() else arguments


def _instruction(statement: str) -> Instruction:
    match = re.match(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)$", statement, re.S)
    assert match, statement
    negated, guard, operation, rest = match.groups()
    return Instruction(operation, split_arguments(rest), guard, bool(negated))


class Kernels(Mapping[str, Kernel]):
    """Those of one file by symbol, each parsed when it is asked for: a file may have many."""

    def __init__(self, text: str) -> None:
        shared = set(_SHARED.findall(text))
        assert len(shared) <= 1, shared
        self._shared = "".join(shared)
        self._entries = {name: (parameters, body) for name, parameters, _, body in _ENTRY.findall(text)}
        self._parsed: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._parsed:
            self._parsed[name] = _kernel(name, self._shared, *self._entries[name])
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def parse(text: str) -> Mapping[str, Kernel]:
    """All kernels of a PTX file by symbol."""
    return Kernels(text)


def _kernel(name: str, shared: str, parameters: str, body: str) -> Kernel:
    kernel, offset = Kernel(name, shared), 0
    for kind, parameter, count in _PARAMETER.findall(parameters):
        size = _BYTES[re.sub(r"\D", "", kind)]
        offset = -(-offset // 8) * 8
        total = size * int(count or 1)
        kernel.parameters[parameter] = (offset, total)
        offset += total
    kernel.registers = {prefix: kind for kind, prefix in _REGISTERS.findall(body)}
    body = re.sub(r"//[^\n]*", "", body)
    for statement in re.split(r";", body):
        statement = statement.strip()
        # Labels stand before a statement, and braces around inline assembly of one.
        while match := re.match(r"(\$\w+):\s*|[{}]\s*", statement):
            if match[1]:
                kernel.labels[match[1]] = len(kernel.instructions)
            statement = statement[match.end() :]
        lines = [line for line in statement.splitlines() if not line.strip().startswith(".")]
        statement = " ".join(lines).strip()
        if statement and not statement.startswith("."):
            kernel.instructions.append(_instruction(statement))
    return kernel
