"""Checks of operator arguments, once, at the public functions: the name, what came, what was wanted."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

NO_LIMIT = 1 << 40  # a window no sequence outgrows; what ``None`` becomes


FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_rows(name: str, **tensors: Tensor) -> None:
    """Floating point ``[B, H, T, D]`` with ``D >= 1``."""
    for label, tensor in tensors.items():
        if tensor.dim() != 4:
            raise ValueError(f"{name}: {label} must be [batch, heads, tokens, head size], got {list(tensor.shape)}")
        if tensor.dtype not in FLOATING:
            raise ValueError(f"{name}: {label} must be floating point of 16 to 64 bits, got {tensor.dtype}")
        if tensor.shape[3] == 0:
            raise ValueError(f"{name}: {label} must have a head size of at least 1, got {list(tensor.shape)}")


def check_integer(name: str, label: str, number: Any, least: int) -> None:
    if not isinstance(number, Integral) or isinstance(number, bool):
        raise ValueError(f"{name}: {label} must be an integer, got {number!r}")
    if number < least:
        raise ValueError(f"{name}: {label} must be at least {least}, got {number}")


def check_devices(name: str, **tensors: Tensor | None) -> None:
    """All on one device: the kernel of one would read the memory of another."""
    devices = {label: tensor.device for label, tensor in tensors.items() if tensor is not None}
    if any(device != next(iter(devices.values())) for device in devices.values()):
        given = ", ".join(f"{label} on {device}" for label, device in devices.items())
        raise ValueError(f"{name}: all tensors on one device wanted, got {given}")


def check_key_mask(name: str, key_mask: Tensor | None, batch: int, keys: int) -> None:
    wanted = [batch, keys]
    if key_mask is not None and (list(key_mask.shape) != wanted or key_mask.dtype != torch.bool):
        raise ValueError(
            f"{name}: key_mask must be bool {wanted} ([batch, keys], True = may be seen), "
            f"got {key_mask.dtype} {list(key_mask.shape)}"
        )


def check_attention_inputs(name: str, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> None:
    """``query [B, H, T, D]``, ``key, value [B, H or 1, S, D]`` of one dtype, ``key_mask [B, S]`` bool."""
    check_rows(name, query=query, key=key, value=value)
    check_devices(name, query=query, key=key, value=value, key_mask=key_mask)
    if key.shape != value.shape:
        raise ValueError(f"{name}: key {list(key.shape)} and value {list(value.shape)} must have one shape")
    if key.shape[0] != query.shape[0] or key.shape[3] != query.shape[3]:
        raise ValueError(
            f"{name}: query {list(query.shape)} and key {list(key.shape)} must agree in batch and head size"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"{name}: one dtype wanted, got query {query.dtype}, key {key.dtype}, value {value.dtype}")
    check_key_mask(name, key_mask, key.shape[0], key.shape[2])


def check_same_heads(name: str, query: Tensor, key: Tensor) -> None:
    if query.shape[1] != key.shape[1]:
        raise ValueError(f"{name}: query has {query.shape[1]} heads, key and value have {key.shape[1]}")


def check_dropout(name: str, dropout_p: float, dropout_seed: Tensor | int | None, device) -> Tensor | None:
    """The seed as a 0-dim int64 tensor, or None where nothing is dropped."""
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{name}: dropout_p must lie in [0, 1), got {dropout_p}")
    if dropout_p == 0.0:
        return None
    if dropout_seed is None:
        raise ValueError(
            f"{name}: dropout_p = {dropout_p} needs dropout_seed, a 0-dim int64 tensor drawn by the caller"
        )
    if isinstance(dropout_seed, int):
        if not -(2**63) <= dropout_seed < 2**63:
            raise ValueError(f"{name}: dropout_seed must fit 64 bits, got {dropout_seed}")
        return torch.full((), dropout_seed, dtype=torch.int64, device=device)
    if dropout_seed.dim() != 0 or dropout_seed.dtype != torch.int64:
        raise ValueError(
            f"{name}: dropout_seed must be a 0-dim int64 tensor, got {dropout_seed.dtype} {list(dropout_seed.shape)}"
        )
    return dropout_seed.to(device)  # kernels read it where they run


def per_head(name: str, argument: str, given, is_one, num_heads: int) -> list:
    """One value for all heads, or one per head -> a list of ``num_heads`` values."""
    if is_one(given):
        return [given] * num_heads
    if not isinstance(given, Sequence) or not all(is_one(value) for value in given):
        raise ValueError(f"{name}: {argument} = {given!r} is neither one value nor a sequence of one value per head")
    if len(given) != num_heads:
        raise ValueError(f"{name}: {argument} has {len(given)} entries for {num_heads} heads")
    return list(given)


def parse_band(name: str, window, dilation, num_heads: int) -> tuple[list[int], list[int], list[int]]:
    """The public ``window`` and ``dilation`` -> (left, right, dilation) per head, with ``None`` as ``NO_LIMIT``."""

    def is_integer(value) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool)

    def is_pair(value) -> bool:
        return (
            isinstance(value, Sequence) and len(value) == 2 and all(side is None or is_integer(side) for side in value)
        )

    pairs = per_head(name, "window (left, right)", window, is_pair, num_heads)
    left = [NO_LIMIT if pair[0] is None else min(int(pair[0]), NO_LIMIT) for pair in pairs]
    right = [NO_LIMIT if pair[1] is None else min(int(pair[1]), NO_LIMIT) for pair in pairs]
    if any(side < 0 for side in left) or any(side < -1 for side in right):
        raise ValueError(
            f"{name}: window must be (left >= 0, right >= -1) in steps of the dilation, or None for no limit; "
            f"got {window!r}"
        )
    steps = [min(int(step), NO_LIMIT) for step in per_head(name, "dilation", dilation, is_integer, num_heads)]
    if any(step < 1 for step in steps):
        raise ValueError(f"{name}: dilation must be at least 1 (1 = every token), got {dilation!r}")
    return left, right, steps
