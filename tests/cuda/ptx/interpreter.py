"""Executes PTX with numpy: one element of every register's array for each thread of the launch, all blocks at once.

Threads that stand at the lowest instruction go first, so that lanes which parted meet again; barriers hold each block
until all of its living threads are there. Words that kernels here do not use are refused.
"""

import re
from collections.abc import Callable

import numpy as np

from .memory import Global, Shared
from .program import Instruction, Kernel
from .words import COMPARISONS, FUNCTIONS, convert, matrix_product, move_matrices

_WIDTH = {"8": 1, "16": 2, "32": 4, "64": 8}
_KINDS = {"u": "u", "s": "i", "b": "u", "f": "f"}
Mask = np.ndarray | None  # which threads an instruction is for; None: all


def numpy_type(name: str) -> np.dtype:
    """``"s32"`` -> int32."""
    return np.dtype(bool) if name == "pred" else np.dtype(f"{_KINDS[name[0]]}{_WIDTH[name[1:]]}")


def bits_type(name: str) -> np.dtype:
    """What a register of this type keeps: its bits."""
    return np.dtype(bool) if name == "pred" else np.dtype(f"u{_WIDTH[name[1:]]}")


def names_of(operand: str) -> list[str]:
    """``"{a, b}"`` -> its parts; of anything else itself."""
    return [name.strip() for name in operand.strip("{} ").split(",")]


class Launch:
    """One launch of a kernel.

    Args:
        kernel: parsed.
        blocks: of the grid, one dimension.
        threads: of a block, a multiple of 32.
        shared_bytes: dynamic shared memory of a block.
        parameters: the bytes of all arguments, as ``Kernel.parameters`` lays them out.
    """

    def __init__(self, kernel: Kernel, blocks: int, threads: int, shared_bytes: int, parameters: bytes) -> None:
        if threads % 32:
            raise ValueError(f"whole warps wanted, got {threads} threads")
        self.kernel, self.blocks, self.threads = kernel, blocks, threads
        self.count = blocks * threads
        self.lane = np.arange(self.count)
        self.block = self.lane // threads
        self.special = {
            "%tid.x": (self.lane % threads).astype(np.uint32),
            "%ctaid.x": self.block.astype(np.uint32),
            "%ntid.x": np.full(self.count, threads, np.uint32),
        }
        self.memory, self.shared = Global(), Shared(blocks, shared_bytes)
        self.parameters = np.frombuffer(parameters + bytes(16), np.uint8)
        self.registers: dict[str, np.ndarray] = {}
        self.steps = 0
        self.code = [self._compile(instruction) for instruction in kernel.instructions]

    # --------------------------------------------------------------------------------------------------- operands

    def read(self, operand: str, kind: str) -> np.ndarray:
        """The value of a register, a constant or a symbol, as ``kind``."""
        dtype = numpy_type(kind)
        if operand in self.special:
            return self.special[operand].view(dtype)
        if operand.startswith("%"):
            held = self._register(operand)
            if held.dtype == bool or held.dtype.itemsize == dtype.itemsize:
                return held if held.dtype == bool else held.view(dtype)
            return held.astype(f"u{dtype.itemsize}").view(dtype)
        if operand.startswith(("0f", "0d")):
            bits, of = (np.uint32, np.float32) if operand[1] == "f" else (np.uint64, np.float64)
            return np.array(int(operand[2:], 16), bits).view(of)
        if re.match(r"-?\d", operand):
            value = int(operand, 0) & ((1 << (8 * dtype.itemsize)) - 1)
            return np.array(value, f"u{dtype.itemsize}").view(dtype)
        # A symbol: a parameter's offset; the one array in shared memory begins at 0.
        offset = 0 if operand == self.kernel.shared else self.kernel.parameters[operand][0]
        return np.array(offset, f"u{dtype.itemsize}").view(dtype)

    def _register(self, name: str) -> np.ndarray:
        if name not in self.registers:
            kind = self.kernel.registers[re.sub(r"\d+$", "", name[1:])]
            self.registers[name] = np.zeros(self.count, bits_type(kind))
        return self.registers[name]

    def write(self, name: str, value: np.ndarray, mask: Mask) -> None:
        """Signed values are extended to wider registers, others filled up with zeros."""
        if name == "_":
            return
        held = self._register(name)
        if held.dtype != bool:
            if value.dtype.itemsize == held.dtype.itemsize:
                value = value.view(held.dtype)
            else:
                value = value.astype(f"{'i' if value.dtype.kind == 'i' else 'u'}{held.dtype.itemsize}").view(held.dtype)
        if mask is None:
            held[...] = value
        else:
            np.copyto(held, value, where=mask)

    def address(self, operand: str, kind: str) -> np.ndarray:
        """``[register or symbol + offset]`` -> int64 for each thread; sums of 32 bits wrap around."""
        match = re.match(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        assert match, operand
        base = self.read(match[1], kind).astype(np.int64)
        sums = base + int(match[2] or 0)
        return np.broadcast_to(sums & 0xFFFFFFFF if kind == "u32" else sums, self.count)

    def _whole_warps(self, mask: Mask, word: str) -> None:
        if mask is not None:
            warps = mask.reshape(-1, 32)
            if (warps.any(1) != warps.all(1)).any():
                raise RuntimeError(f"{word} by part of a warp")

    # ----------------------------------------------------------------------------------------------- instructions

    def _compile(self, instruction: Instruction) -> Callable[[Mask], None] | Instruction:
        """A function of the threads that run it; jumps, barriers and returns stay as they are."""
        words = instruction.words
        if words[0] in ("bra", "ret") or (words[0] == "bar" and words[1] != "warp"):
            return instruction
        run = self._body(words, instruction.operation, instruction.arguments)
        guard, negated = instruction.guard, instruction.negated
        if guard is None:
            return run

        def guarded(mask: Mask) -> None:
            taken = self._register(guard)
            taken = ~taken if negated else taken.copy()
            run(taken if mask is None else mask & taken)

        return guarded

    def _body(self, words: list[str], operation: str, arguments: list[str]) -> Callable[[Mask], None]:
        word, kind = words[0], words[-1]
        if word in FUNCTIONS:
            function = FUNCTIONS[word]
            return lambda mask: self.write(
                arguments[0], function(words, *(self.read(x, kind) for x in arguments[1:])), mask
            )
        if word == "mov" and "{" in "".join(arguments):
            return self._pack(arguments, kind) if "{" in arguments[1] else self._unpack(arguments, kind)
        if word == "mov" or word == "cvta":
            kind = "u64" if word == "cvta" else kind
            return lambda mask: self.write(arguments[0], self.read(arguments[1], kind), mask)
        if word == "setp":
            compare = COMPARISONS[words[1]]
            return lambda mask: self.write(
                arguments[0], compare(self.read(arguments[1], kind), self.read(arguments[2], kind)), mask
            )
        if word == "selp":
            return lambda mask: self.write(
                arguments[0],
                np.where(self.read(arguments[3], "pred"), self.read(arguments[1], kind), self.read(arguments[2], kind)),
                mask,
            )
        if word == "cvt":
            target = words[-2]
            return lambda mask: self.write(
                arguments[0], convert(target, kind, *(self.read(x, kind) for x in arguments[1:])), mask
            )
        if word == "ld":
            return self._load(words, arguments)
        if word == "st":
            return self._store(words, arguments)
        if word == "shfl":
            return self._shuffle(words, arguments)
        if word == "ldmatrix":
            return self._load_matrices(words, arguments)
        if word == "mma" and "m16n8k16" in words:
            return self._matrix_product(words, arguments)
        if operation.startswith("cp.async.cg"):
            return self._copy(arguments)
        if operation.startswith("bar.warp"):
            return lambda mask: self._whole_warps(mask, operation)
        if operation.startswith("cp.async."):
            return lambda mask: None  # copies land at once: what waits are for, the emulator checks
        raise NotImplementedError(f"PTX word {operation}")

    def _pack(self, arguments: list[str], kind: str) -> Callable[[Mask], None]:
        """``mov.b32 a, {low, high}``: registers of half the width, side by side."""
        names, size = names_of(arguments[1]), numpy_type(kind).itemsize
        part = f"b{8 * size // len(names)}"

        def pack(mask: Mask) -> None:
            parts = [np.broadcast_to(self.read(name, part), self.count) for name in names]
            self.write(arguments[0], np.stack(parts, -1).view(f"u{size}")[:, 0], mask)

        return pack

    def _unpack(self, arguments: list[str], kind: str) -> Callable[[Mask], None]:
        names, size = names_of(arguments[0]), numpy_type(kind).itemsize

        def unpack(mask: Mask) -> None:
            whole = np.ascontiguousarray(np.broadcast_to(self.read(arguments[1], kind), self.count))
            parts = whole.view(f"u{size // len(names)}").reshape(self.count, -1)
            for i, name in enumerate(names):
                self.write(name, np.ascontiguousarray(parts[:, i]), mask)

        return unpack

    def _load(self, words: list[str], arguments: list[str]) -> Callable[[Mask], None]:
        space, kind = words[1], words[-1]
        dtype, names = numpy_type(kind), names_of(arguments[0])

        def load(mask: Mask) -> None:
            address = self.address(arguments[1], "u32" if space == "shared" else "u64")
            some = slice(None) if mask is None else mask
            for i, name in enumerate(names):
                place = address[some] + i * dtype.itemsize
                if space == "param":
                    loaded = self.parameters[place[:, None] + np.arange(dtype.itemsize)].copy().view(dtype)[:, 0]
                elif space == "shared":
                    loaded = self.shared.load(place, self.block[some], dtype.itemsize).view(dtype)
                else:
                    loaded = self.memory.load(place, dtype.itemsize).view(dtype)
                values = np.zeros(self.count, dtype)
                values[some] = loaded
                self.write(name, values, mask)

        return load

    def _store(self, words: list[str], arguments: list[str]) -> Callable[[Mask], None]:
        space, kind = words[1], words[-1]
        dtype, names = numpy_type(kind), names_of(arguments[1])
        bits = f"u{dtype.itemsize}"

        def store(mask: Mask) -> None:
            address = self.address(arguments[0], "u32" if space == "shared" else "u64")
            some = slice(None) if mask is None else mask
            for i, name in enumerate(names):
                values = np.broadcast_to(self.read(name, kind), self.count)[some].view(bits)
                place = address[some] + i * dtype.itemsize
                if space == "shared":
                    self.shared.store(place, self.block[some], values)
                else:
                    self.memory.store(place, values)

        return store

    def _shuffle(self, words: list[str], arguments: list[str]) -> Callable[[Mask], None]:
        target = arguments[0].split("|")[0].strip()

        def shuffle(mask: Mask) -> None:
            self._whole_warps(mask, "shfl")
            given = np.broadcast_to(self.read(arguments[1], "b32"), self.count)
            other = np.broadcast_to(self.read(arguments[2], "u32"), self.count).astype(np.int64)
            if words[2] == "bfly":
                source = self.lane ^ other
            elif words[2] == "idx":
                source = self.lane // 32 * 32 + other % 32
            else:
                raise NotImplementedError(f"shfl.{words[2]}")
            self.write(target, given[source], mask)

        return shuffle

    def _copy(self, arguments: list[str]) -> Callable[[Mask], None]:
        def copy(mask: Mask) -> None:
            some = np.ones(self.count, bool) if mask is None else mask
            wanted = np.broadcast_to(self.read(arguments[3], "s32"), self.count) == 16
            to, origin = self.address(arguments[0], "u32"), self.address(arguments[1], "u64")
            values = np.zeros((self.count, 2), np.uint64)
            taken = some & wanted
            for i in range(2):
                values[taken, i] = self.memory.load(origin[taken] + 8 * i, 8)
            self.shared.set_rows(to[some], self.block[some], values[some])

        return copy

    def _load_matrices(self, words: list[str], arguments: list[str]) -> Callable[[Mask], None]:
        names = names_of(arguments[0])

        def load(mask: Mask) -> None:
            self._whole_warps(mask, "ldmatrix")
            some = slice(None) if mask is None else mask
            rows = np.zeros((self.count, 8), np.uint16)
            rows[some] = self.shared.rows(self.address(arguments[1], "u32")[some], self.block[some])
            for name, value in zip(names, move_matrices(rows, "trans" in words), strict=True):
                self.write(name, value, mask)

        return load

    def _matrix_product(self, words: list[str], arguments: list[str]) -> Callable[[Mask], None]:
        d, a, b, c = map(names_of, arguments)

        def multiply(mask: Mask) -> None:
            self._whole_warps(mask, "mma")

            def lanes(names: list[str], kind: str) -> list[np.ndarray]:
                return [np.broadcast_to(self.read(name, kind), self.count).reshape(-1, 32) for name in names]

            product = matrix_product(lanes(a, "b32"), lanes(b, "b32"), lanes(c, "f32"), "bf16" in words)
            for name, value in zip(d, product, strict=True):
                self.write(name, value.reshape(-1), mask)

        return multiply

    # --------------------------------------------------------------------------------------------------- the walk

    def run(self) -> "Launch":
        """To the end of all threads."""
        waiting: dict[int, np.ndarray] = {0: np.ones(self.count, bool)}  # instruction -> the threads that stand there
        parked: dict[int, np.ndarray] = {}  # at a barrier

        def stand(groups: dict[int, np.ndarray], at: int, threads: np.ndarray) -> None:
            groups[at] = groups[at] | threads if at in groups else threads

        with np.errstate(all="ignore"):
            while waiting or parked:
                if not waiting:
                    self._check_barriers(parked)
                    waiting, parked = {at + 1: threads for at, threads in parked.items()}, {}
                at = min(waiting)
                threads = waiting.pop(at)
                following = min(waiting, default=len(self.code))
                mask = None if threads.all() else threads
                while at < following:
                    step = self.code[at]
                    self.steps += 1
                    if not isinstance(step, Instruction):
                        step(mask)
                        at += 1
                        continue
                    if step.words[0] == "bar":
                        stand(parked, at, threads)
                        break
                    taken = threads
                    if step.guard is not None:
                        guard = self._register(step.guard)
                        taken = threads & (~guard if step.negated else guard)
                    rest = threads & ~taken
                    if taken.any() and step.words[0] == "bra":
                        stand(waiting, self.kernel.labels[step.arguments[0]], taken)
                    if rest.any():
                        stand(waiting, at + 1, rest)
                    break
                else:
                    if at < len(self.code):
                        stand(waiting, at, threads)
        return self

    def _check_barriers(self, parked: dict[int, np.ndarray]) -> None:
        places = np.zeros(self.blocks, int)
        for threads in parked.values():
            places += threads.reshape(self.blocks, -1).any(1)
        if (places > 1).any():
            raise RuntimeError("threads of one block at different barriers")
