"""What a model that carries state makes of a text: every token is predicted once, with all that was read before it.

B rows, M tokens of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from longspan.data.byte_windows import byte_ids
from longspan.data.corpora import Bytes
from longspan.data.streams import Ids, check_ids, take
from longspan.training.bits_per_byte import FIRST_BYTE, IGNORED
from longspan.training.progress import progress


@torch.no_grad()
def stream_nats(
    model: Any,
    ids: Ids,
    *,
    rows: int = 1,
    block_size: int,
    rank: int = 0,
    ranks: int = 1,
    autocast: torch.dtype | None = None,
    label: str | None = None,
) -> tuple[float, int]:
    """Sum of the losses over a stream, and the number of tokens that it is over: all but the first.

    Args:
        model: returns the mean loss in nats over targets that are not -100, and ``mems``; it is in evaluation mode
            during the call.
        ids: the stream.
        rows: read side by side, each from its beginning without state: with one row, nothing is forgotten.
        block_size: tokens of a row in one pass.
        rank: number of this process, which reads every ``ranks``-th row from this one on; the sums of all are added.
        ranks: number of processes.
        autocast: run under autocast of this type; ``None``: as the weights are.
        label: of a progress bar; ``None``: none is shown.
    """
    ids = check_ids(ids, "ids")
    targets = len(ids) - 1
    if targets < 1:
        raise ValueError(f"ids must hold at least two tokens, got {len(ids)}")
    length = -(-targets // rows)  # of a row; the last may be shorter
    starts = range(rank * length, targets, ranks * length)
    device = next(model.parameters()).device
    blocks: Iterable[int] = range(0, length, block_size) if starts else []
    if label is not None:
        blocks = progress(list(blocks), label)
    was_training = model.training
    model.eval()
    nats, counted, mems = 0.0, 0, None
    for block in blocks:
        width = min(block_size, length - block)
        inputs = torch.zeros(len(starts), width, dtype=torch.int64)
        outputs = torch.full_like(inputs, IGNORED)
        for row, start in enumerate(starts):
            stop = min(start + block + width, start + length, targets)
            part = take(ids, start + block, stop + 1)
            inputs[row, : len(part) - 1], outputs[row, : len(part) - 1] = part[:-1], part[1:]
        count = int((outputs != IGNORED).sum())
        if not count:
            break  # the only row here ended before the others
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            read = model(input_ids=inputs.to(device), next_ids=outputs.to(device), mems=mems, use_mems=True)
        mems = read.mems
        nats += float(read.loss) * count
        counted += count
    model.train(was_training)
    return nats, counted


def stream_bits_per_byte(
    model: Any,
    text: Bytes,
    *,
    offset: int,
    size: int,
    rows: int = 1,
    autocast: torch.dtype | None = None,
    label: str | None = None,
) -> float:
    """Bits per byte of ``text`` under a model that carries state, the first byte at 8 bits.

    Args:
        model: see `stream_nats`.
        text: uint8.
        offset: id of byte 0.
        size: bytes of a row in one pass.
        rows: read side by side, each from its beginning without state.
        autocast: run under autocast of this type; ``None``: as the weights are.
        label: of a progress bar; ``None``: none is shown.
    """
    if not len(text):
        raise ValueError("text must hold at least one byte, got none")
    nats = 0.0
    if len(text) > 1:
        ids = byte_ids(text, offset)
        nats, _ = stream_nats(model, ids, rows=rows, block_size=size, autocast=autocast, label=label)
    return (FIRST_BYTE + nats / math.log(2)) / len(text)
