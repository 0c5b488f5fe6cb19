"""How many bits a causal byte model needs per byte of a text: every byte is predicted exactly once.

B batch, T bytes of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from longspan.data.byte_windows import to_ids
from longspan.data.corpora import Bytes
from longspan.training.progress import progress

IGNORED = -100  # a label that is not scored
FIRST_BYTE = 8.0  # bits: nothing precedes it, so that it costs what any byte does


def scored_windows(length: int, size: int, context: int) -> list[tuple[int, int]]:
    """Windows of ``size`` over a text, and from where each one's predictions count.

    Args:
        length: of the text.
        size: of a window; all have it, unless the whole text is shorter.
        context: bytes that a window has at least before the first that it scores, at least 1; the first window has
            none but the text's first byte.

    Returns:
        ``(start, first)`` per window: it covers ``[start, start + size)`` and scores ``[first, start + size)``. The
        scored ranges join without gaps from byte 1 to the end.
    """
    if not 1 <= context < size:
        raise ValueError(f"context must lie in [1, {size}), below the window's size, got {context}")
    windows, scored = [], 1
    while scored < length:
        start = max(0, min(scored - context, length - size))
        windows.append((start, scored))
        scored = min(start + size, length)
    return windows


@torch.no_grad()
def bits_per_byte(
    model: Any,
    text: Bytes,
    *,
    offset: int,
    size: int,
    context: int | None = None,
    batch_size: int = 1,
    autocast: torch.dtype | None = None,
    label: str | None = None,
) -> float:
    """Bits per byte of ``text`` under a causal model, the first byte at 8 bits.

    Args:
        model: returns the mean loss in nats over labels that are not -100, each compared with the logits one step
            earlier; it is in evaluation mode during the call.
        text: uint8.
        offset: id of byte 0.
        size: bytes that are read in one pass.
        context: see `scored_windows`; half a window where it is not given.
        batch_size: windows in a pass.
        autocast: run under autocast of this type; ``None``: as the weights are.
        label: of a progress bar; ``None``: none is shown.
    """
    if not len(text):
        raise ValueError("text must hold at least one byte, got none")
    windows = scored_windows(len(text), size, max(1, size // 2) if context is None else context)
    batches: Iterable[Any] = [windows[i : i + batch_size] for i in range(0, len(windows), batch_size)]
    if label is not None:
        batches = progress(list(batches), label)
    bits = FIRST_BYTE
    was_training = model.training
    model.eval()
    for batch in batches:
        ids = torch.stack([to_ids(text[start : start + size], offset) for start, _ in batch])
        labels = ids.clone()
        for row, (start, first) in enumerate(batch):
            labels[row, : first - start] = IGNORED
        counted = int((labels[:, 1:] != IGNORED).sum())
        with torch.autocast(model.device.type, dtype=autocast, enabled=autocast is not None):
            loss = model(input_ids=ids.to(model.device), labels=labels.to(model.device)).loss
        bits += float(loss) * counted / math.log(2)
    model.train(was_training)
    return bits / len(text)
