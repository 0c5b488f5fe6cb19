"""Batches of documents of different lengths.

Shapes: B examples, T tokens of the longest example (rounded up where asked).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOKEN_FIELDS = {  # one value per token -> what a padding token gets there (None: the tokenizer knows)
    "input_ids": None,
    "token_type_ids": None,
    "attention_mask": 0,
    "position_ids": 0,
    "global_attention_mask": 0,
    "special_tokens_mask": 1,
    "question_index": -1,
}
TOKEN_INDICES = ("start_positions", "end_positions")  # values that name a token: padding on the left moves them


@dataclass
class LongDocumentCollator:
    """Pads what a long-document model takes, on the side that the tokenizer names, and stacks it into tensors.

    Unlike ``tokenizer.pad`` it knows `global_attention_mask` and `position_ids`, pads token-level labels, and moves
    start and end positions when the padding comes first.

    Args:
        tokenizer: gives the padding token and the side.
        pad_to_multiple_of: round the length up, for kernels that like it. The models need no such rounding.
        label_pad: the label of padding tokens, ignored by the loss.
    """

    tokenizer: Any
    pad_to_multiple_of: int | None = None
    label_pad: int = -100

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Join examples (dicts of lists, numbers or tensors, all with the same keys) to one batch of tensors."""
        if not features:
            raise ValueError("features must hold at least one example, got an empty list")
        keys = features[0].keys()
        for number, feature in enumerate(features):
            if feature.keys() != keys:
                raise ValueError(f"example {number} has the fields {sorted(feature)}, the first has {sorted(keys)}")
        if "input_ids" not in keys:
            raise ValueError(f"examples need input_ids, got only {sorted(keys)}")
        lengths = [len(feature["input_ids"]) for feature in features]
        width = max(lengths)
        if self.pad_to_multiple_of:
            width += -width % self.pad_to_multiple_of
        left = self.tokenizer.padding_side == "left"

        batch = {key: self._field(key, [f[key] for f in features], lengths, width, left) for key in keys}
        if "attention_mask" not in batch:
            ones = [[1] * length for length in lengths]
            batch["attention_mask"] = self._field("attention_mask", ones, lengths, width, left)
        return batch

    def _field(self, key: str, values: list[Any], lengths: list[int], width: int, left: bool) -> Tensor:
        rows = [torch.as_tensor(value) if _numeric(value) else None for value in values]
        if any(row is None or row.dim() > 1 for row in rows):
            raise ValueError(f"{key} holds neither numbers nor one list of numbers per example: remove that column")
        tensors = [row for row in rows if row is not None]
        if key in TOKEN_FIELDS or (key == "labels" and tensors[0].dim() == 1 and _per_token(tensors, lengths)):
            return self._pad(key, tensors, lengths, width, left)
        if key in TOKEN_INDICES and left:
            tensors = [row + width - length for row, length in zip(tensors, lengths, strict=True)]
        if len({row.shape for row in tensors}) > 1:
            raise ValueError(
                f"{key} has different lengths {[len(row) for row in tensors]} and is not known as per token"
            )
        return torch.stack(tensors)

    def _pad(self, key: str, rows: list[Tensor], lengths: list[int], width: int, left: bool) -> Tensor:
        fill = self._fill(key) if max(lengths) != min(lengths) or width != max(lengths) else 0
        out = torch.full((len(rows), width), fill, dtype=rows[0].dtype)  # [B, T]
        for example, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            if row.dim() != 1 or len(row) != length:
                raise ValueError(f"{key} of example {example} has shape {list(row.shape)}, its input_ids [{length}]")
            out[example, width - length if left else 0 :][:length] = row
        return out

    def _fill(self, key: str) -> int:
        if key == "labels":
            return self.label_pad
        if key == "token_type_ids":
            return self.tokenizer.pad_token_type_id
        if key == "input_ids":
            if self.tokenizer.pad_token_id is None:
                raise ValueError(
                    "the tokenizer has no padding token: set tokenizer.pad_token before batching documents"
                )
            return self.tokenizer.pad_token_id
        fill = TOKEN_FIELDS[key]
        assert fill is not None
        return fill


def _numeric(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, bool | int | float | list | tuple) or hasattr(value, "__array__")


def _per_token(rows: list[Tensor], lengths: list[int]) -> bool:
    """Labels of one fixed length (multi-label classification) stay as they are, others go with the tokens."""
    return [len(row) for row in rows] == lengths
