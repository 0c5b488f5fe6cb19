"""What PTX words compute, on numpy arrays of the right type."""

from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., Any]


def _shift(words: list[str], x: np.ndarray, count: np.ndarray) -> np.ndarray:
    """By more than the width: zeros, or copies of the sign."""
    width = 8 * x.dtype.itemsize
    count = count.view(f"u{count.dtype.itemsize}")
    amount = np.minimum(count, width - 1).astype(x.dtype)
    if words[0] == "shl":
        return np.where(count >= width, 0, np.left_shift(x, amount)).astype(x.dtype)
    shifted = np.right_shift(x, amount)
    return shifted if x.dtype.kind == "i" else np.where(count >= width, 0, shifted).astype(x.dtype)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")


def _multiply(words: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if words[1] == "wide":
        return _wide(x) * _wide(y)
    if words[1] == "hi":
        return (_wide(x) * _wide(y) >> (8 * x.dtype.itemsize)).astype(x.dtype)
    return x * y


def _multiply_add(words: list[str], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _multiply(words, x, y) + z


def _fused(words: list[str], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    wider = np.float64 if x.dtype.itemsize == 4 else np.longdouble
    return (x.astype(wider) * y + z).astype(x.dtype)


def _divide(words: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "f":
        return x / y
    y = np.where(y == 0, 1, y)  # undefined: threads that are masked out get here
    quotient = np.abs(x.astype(object)) // np.abs(y.astype(object)) if x.dtype.itemsize == 8 else None
    if quotient is None:
        return np.trunc(x.astype(np.float64) / y).astype(x.dtype)
    return (quotient * np.sign(x.astype(object)) * np.sign(y.astype(object))).astype(x.dtype)


def _remainder(words: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.fmod(x, np.where(y == 0, 1, y)).astype(x.dtype)


def _permute(words: list[str], x: np.ndarray, y: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt: each byte is the one of ``y x`` that a digit of the selector names, or copies of its sign."""
    both = x.astype(np.uint64) | y.astype(np.uint64) << np.uint64(32)
    result = np.zeros(np.broadcast(x, y, selector).shape, np.uint32)
    for i in range(4):
        digit = selector.astype(np.uint64) >> np.uint64(4 * i)
        byte = both >> (digit & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        byte = np.where(digit & np.uint64(8), (byte >> np.uint64(7)) * np.uint64(0xFF), byte)
        result |= (byte << np.uint64(8 * i)).astype(np.uint32)
    return result


def _extreme(words: list[str], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype.kind == "f":
        return np.fmax(x, y) if words[0] == "max" else np.fmin(x, y)
    return np.maximum(x, y) if words[0] == "max" else np.minimum(x, y)


def _in_its_type(function: Function) -> Function:
    return lambda words, x: function(x).astype(x.dtype)


FUNCTIONS: dict[str, Function] = {
    "add": lambda words, x, y: x + y,
    "sub": lambda words, x, y: x - y,
    "mul": _multiply,
    "mad": _multiply_add,
    "fma": _fused,
    "div": _divide,
    "rem": _remainder,
    "max": _extreme,
    "min": _extreme,
    "and": lambda words, x, y: x & y,
    "or": lambda words, x, y: x | y,
    "xor": lambda words, x, y: x ^ y,
    "not": lambda words, x: ~x,
    "neg": lambda words, x: -x,
    "abs": lambda words, x: np.abs(x),
    "shl": _shift,
    "shr": _shift,
    "prmt": _permute,
    "rcp": _in_its_type(lambda x: 1 / x),
    "sqrt": _in_its_type(np.sqrt),
    "ex2": _in_its_type(np.exp2),
    "lg2": _in_its_type(np.log2),
}

COMPARISONS: dict[str, Function] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda x, y: (x == y) | np.isnan(x) | np.isnan(y),
    "neu": lambda x, y: ~np.equal(x, y),
    "ltu": lambda x, y: ~np.greater_equal(x, y),
    "leu": lambda x, y: ~np.greater(x, y),
    "gtu": lambda x, y: ~np.less_equal(x, y),
    "geu": lambda x, y: ~np.less(x, y),
}  # names that end in u are true of NaN, too


def _to_bf16(x: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even: uint16."""
    bits = np.asarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def _to_half(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).astype(np.float16).view(np.uint16)


def convert(target: str, kind: str, *values: np.ndarray) -> np.ndarray:
    """``cvt.<target>.<kind>``; of two values the first becomes the upper half of the word."""
    if target in ("f16x2", "bf16x2"):
        narrow = _to_half if target == "f16x2" else _to_bf16
        high, low = (narrow(value).astype(np.uint32) for value in values)
        return low | high << np.uint32(16)
    (x,) = values
    if target == "f16":
        return _to_half(x)
    if target == "bf16":
        return _to_bf16(x)
    if kind == "f16":
        return x.astype(np.float32)
    kinds = {"u": "u", "s": "i", "b": "u", "f": "f"}
    return x.astype(f"{kinds[target[0]]}{int(target[1:]) // 8}")


def move_matrices(rows: np.ndarray, transposed: bool) -> list[np.ndarray]:
    """ldmatrix.x4: the row that each lane points to, ``[lanes, 8]`` -> four words for each lane.

    Lane 8m + r points to row r of matrix m; of each matrix lane l gets row l / 4, columns 2 (l % 4) and the next.
    """
    matrices = rows.reshape(-1, 4, 8, 8)  # warp, matrix, row, column
    if transposed:
        matrices = matrices.swapaxes(2, 3)
    pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1, 4, 32)  # warp, matrix, lane
    return [np.ascontiguousarray(pairs[:, i]).reshape(-1) for i in range(4)]


def matrix_product(a: list[np.ndarray], b: list[np.ndarray], c: list[np.ndarray], is_bf16: bool) -> list[np.ndarray]:
    """mma.m16n8k16: words ``[warps, 32]`` of a (4), b (2) and c (4) -> the four words of a b + c, by the PTX manual."""

    def halves(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = word & np.uint32(0xFFFF), word >> np.uint32(16)
        if is_bf16:
            return (low << np.uint32(16)).view(np.float32), (high << np.uint32(16)).view(np.float32)
        return tuple(part.astype(np.uint16).view(np.float16).astype(np.float32) for part in (low, high))  # pyright: ignore

    lane = np.arange(32)
    g, t = lane // 4, lane % 4
    warps = a[0].shape[0]
    left, right = np.zeros((warps, 16, 16), np.float32), np.zeros((warps, 16, 8), np.float32)
    total = np.zeros((warps, 16, 8), np.float32)
    for i, word in enumerate(a):
        for j, part in enumerate(halves(word)):
            left[:, g + i % 2 * 8, 2 * t + i // 2 * 8 + j] = part
    for i, word in enumerate(b):
        for j, part in enumerate(halves(word)):
            right[:, 2 * t + 8 * i + j, g] = part
    for i, word in enumerate(c):
        total[:, g + i // 2 * 8, 2 * t + i % 2] = word
    total += left @ right
    return [np.ascontiguousarray(total[:, g + i // 2 * 8, 2 * t + i % 2]) for i in range(4)]
