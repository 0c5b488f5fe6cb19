"""Does a language model find the verb that agrees with its subject likelier than the verb that does not?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longspan.data.subject_verb import PAD, AgreementDataset


def collate_sentences(features: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Batches for a causal language model, padded on the right."""
    ids = pad_sequence([feature["input_ids"] for feature in features], True, PAD)
    mask = pad_sequence([torch.ones_like(feature["input_ids"]) for feature in features], True, 0)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@torch.no_grad()
def agreement_accuracy(model: Any, sentences: AgreementDataset, batch_size: int = 100) -> float:
    """Share of sentences whose right verb form is likelier than the wrong one, from the words before it alone.

    Args:
        model: causal, returns ``logits [B, T, V]`` of the words that follow.
        sentences: see there.
        batch_size: sentences in a pass.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    right = 0
    for begin in range(0, len(sentences), batch_size):
        items = [sentences[number] for number in range(begin, min(begin + batch_size, len(sentences)))]
        batch = collate_sentences(items)
        del batch["labels"]
        logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
        for row, item in enumerate(items):
            said = logits[row, item["verb"] - 1]
            right += bool(said[item["input_ids"][item["verb"]]] > said[item["other"]])
    model.train(was_training)
    return right / len(sentences)
