"""Batches of inputs and outputs of different lengths, for sequence-to-sequence models.

B pairs, S tokens of the longest input, T of the longest output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass
class SequencePairCollator:
    """Pads on the right: ``input_ids [B, S]``, ``attention_mask [B, S]``, ``labels [B, T]``.

    Args:
        pad_token_id: of inputs.
        label_pad: in labels, ignored by the loss.
        pad_to_multiple_of: round both lengths up.
    """

    pad_token_id: int = 0
    label_pad: int = -100
    pad_to_multiple_of: int | None = None

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        if not features:
            raise ValueError("features must hold at least one pair, got an empty list")
        for number, feature in enumerate(features):
            missing = {"input_ids", "labels"} - feature.keys()
            if missing:
                raise ValueError(f"pair {number} has no {sorted(missing)[0]}, only {sorted(feature)}")
        inputs = self._pad([feature["input_ids"] for feature in features], self.pad_token_id)
        labels = self._pad([feature["labels"] for feature in features], self.label_pad)
        mask = self._pad([torch.ones(len(feature["input_ids"]), dtype=torch.int64) for feature in features], 0)
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}

    def _pad(self, rows: Sequence[Any], value: int) -> Tensor:
        out = pad_sequence([torch.as_tensor(row, dtype=torch.int64) for row in rows], True, value)
        more = -out.shape[1] % self.pad_to_multiple_of if self.pad_to_multiple_of else 0
        return torch.nn.functional.pad(out, (0, more), value=value)
