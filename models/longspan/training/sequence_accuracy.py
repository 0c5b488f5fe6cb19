"""How often a sequence-to-sequence model says the right symbol, and the whole of the right sequence.

B pairs, T tokens of the longest output, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

IGNORED = -100


class Accuracy(NamedTuple):
    """Shares, from 0 to 1.

    Args:
        characters: of symbols that are right, each asked for after the right ones before it.
        sequences: of outputs of which all symbols are: exactly those that greedy generation would write.
    """

    characters: float
    sequences: float


@torch.no_grad()
def sequence_accuracy(
    model: Any,
    pairs: Any,
    collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]],
    *,
    batch_size: int = 50,
    **inputs: Any,
) -> Accuracy:
    """Count over all of ``pairs``.

    Args:
        model: takes batches and returns ``logits [B, T, V]``, scores of the labels at their places.
        pairs: items by number, see `longspan.data.sequence_pairs`.
        collate: makes a batch.
        batch_size: pairs in a pass.
        inputs: given to the model beside each batch.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    right = symbols = whole = 0
    for begin in range(0, len(pairs), batch_size):
        items = [pairs[number] for number in range(begin, min(begin + batch_size, len(pairs)))]
        batch = {name: tensor.to(device) for name, tensor in collate(items).items()}
        labels = batch["labels"]
        asked = labels != IGNORED
        hits = (model(**batch, **inputs).logits.argmax(-1) == labels) & asked
        right += int(hits.sum())
        symbols += int(asked.sum())
        whole += int((hits | ~asked).all(1).sum())
    model.train(was_training)
    if not symbols:
        raise ValueError("pairs must hold at least one label, got none")
    return Accuracy(right / symbols, whole / len(pairs))
