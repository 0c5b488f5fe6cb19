"""Batches for models that read two texts, a document's sentences and a question, or windows of long texts.

Shapes: B examples, T and T' tokens of the longest first and second text, S sentences, Q tokens of a question.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids ``[N, T]`` of the longest row's length and their mask (1 = a token), padded on the right."""
    width = max([1, *map(len, rows)])
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
        mask[number, : len(row)] = 1
    return ids, mask


def _labels(features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    if "labels" not in features[0]:
        return {}
    return {"labels": torch.as_tensor([feature["labels"] for feature in features])}


def _check(features: Sequence[Mapping[str, Any]], *names: str) -> None:
    if not features:
        raise ValueError("features must hold at least one example, got an empty list")
    for number, feature in enumerate(features):
        missing = [name for name in names if name not in feature]
        if missing:
            raise ValueError(f"example {number} has no {', '.join(missing)}, only {sorted(feature)}")


@dataclass
class TextPairCollator:
    """Pairs of texts, each in a row of its own: neither is padded to the other's length.

    Examples have ``input_ids`` and ``pair_input_ids``, lists of any lengths, and ``labels`` where there are any; what
    else they have is left out.

    Args:
        pad_id: id of padding.
    """

    pad_id: int = 0

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """-> ``input_ids, attention_mask [B, T]``, ``pair_input_ids, pair_attention_mask [B, T']``, ``labels [B]``."""
        _check(features, "input_ids", "pair_input_ids")
        first, first_mask = pad_rows([feature["input_ids"] for feature in features], self.pad_id)
        second, second_mask = pad_rows([feature["pair_input_ids"] for feature in features], self.pad_id)
        return {
            "input_ids": first,
            "attention_mask": first_mask,
            "pair_input_ids": second,
            "pair_attention_mask": second_mask,
            **_labels(features),
        }


@dataclass
class SentenceSelectionCollator:
    """Documents as lists of sentences, and a question on each.

    Examples have ``sentences`` (a list of lists of ids, of any numbers and lengths), ``question_input_ids``, and
    ``labels``, the number of the right sentence, where there are any.

    Args:
        pad_id: id of padding.
    """

    pad_id: int = 0

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """-> ``input_ids, attention_mask [B, S, T]``, ``question_input_ids, question_attention_mask [B, Q]``, labels.

        A missing sentence has no token: its mask is 0 throughout.

        Raises:
            ValueError: when a label names no sentence of its document.
        """
        _check(features, "sentences", "question_input_ids")
        for number, feature in enumerate(features):
            label, count = feature.get("labels", 0), len(feature["sentences"])
            if not 0 <= label < count:
                raise ValueError(f"labels of example {number} is {label}: it must name one of its {count} sentences")
        most = max(len(feature["sentences"]) for feature in features)
        filled = [[*feature["sentences"], *[[]] * (most - len(feature["sentences"]))] for feature in features]
        ids, mask = pad_rows([sentence for sentences in filled for sentence in sentences], self.pad_id)
        questions, question_mask = pad_rows([feature["question_input_ids"] for feature in features], self.pad_id)
        return {
            "input_ids": ids.unflatten(0, (len(features), most)),
            "attention_mask": mask.unflatten(0, (len(features), most)),
            "question_input_ids": questions,
            "question_attention_mask": question_mask,
            **_labels(features),
        }


class RandomWindowCollator:
    """For training on long texts: of every text in a batch a window from anywhere, all of one size.

    Sizes are drawn batch by batch, log-uniformly, so that a model learns to read short and long texts; there is no
    padding unless a text is shorter than the window. Examples have ``input_ids`` and ``labels``.

    Args:
        shortest: window, in tokens.
        longest: window.
        pad_id: id of padding.
        seed: of sizes and places, which follow from it and the number of batches before.
    """

    def __init__(self, shortest: int, longest: int, *, pad_id: int = 0, seed: int = 0):
        if not 1 <= shortest <= longest:
            raise ValueError(f"wanted 1 <= shortest <= longest tokens, got {shortest} and {longest}")
        self.shortest, self.longest, self.pad_id = shortest, longest, pad_id
        self._draw = random.Random(f"{seed} windows")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """-> ``input_ids, attention_mask [B, T]``, ``labels [B]``."""
        _check(features, "input_ids")
        size = round(math.exp(self._draw.uniform(math.log(self.shortest), math.log(self.longest))))
        windows = []
        for feature in features:
            ids = feature["input_ids"]
            start = self._draw.randint(0, max(0, len(ids) - size))
            windows.append(ids[start : start + size])
        ids, mask = pad_rows(windows, self.pad_id)
        return {"input_ids": ids, "attention_mask": mask, **_labels(features)}
