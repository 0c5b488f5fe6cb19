"""Cross entropy against labels that give a little of their probability to all other words.

V words.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float,
    *,
    ignore_index: int = -100,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross entropy where a label has the probability ``1 - smoothing`` and the others share the rest evenly.

    The entropy of such labels is subtracted, as tensor2tensor does: predicting them exactly gives 0.

    Args:
        logits: ``[..., V]``.
        labels: integers ``[...]``.
        smoothing: in [0, 1).
        ignore_index: label of a token that does not count.
        num_items_in_batch: what to divide the sum by; None: the mean over the tokens that count.

    Returns:
        A number: 0-dim, at least float32.
    """
    words = logits.shape[-1]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    labels = labels.to(logits.device).flatten()
    # torch spreads its smoothing over all words, the label too.
    spread = smoothing * words / (words - 1) if words > 1 else 0.0
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum", label_smoothing=spread)
    count = (labels != ignore_index).sum().to(logits.dtype)
    least = 0.0
    if spread:
        least = -(1 - smoothing) * math.log1p(-smoothing) - smoothing * math.log(smoothing / (words - 1))
    divisor = count if num_items_in_batch is None else num_items_in_batch
    return (total - least * count) / (divisor.to(total.device) if isinstance(divisor, Tensor) else divisor)
