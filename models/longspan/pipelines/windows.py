"""A document of any length as inputs of a model that takes a limited one.

The document is tokenized once, with the question if there is one, and without truncation. A window then is the part
before the document (classification token, question, separators), some of the document's tokens, and the part after it:
the special tokens are those of the tokenizer, whatever its template is.

Shapes: T tokens of the whole encoding, D tokens of the document in it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from longspan.base import LongspanPreTrainedModel
from longspan.data.spans import split_windows
from longspan.longformer.tokenization_longformer import GLOBAL_MASK, mark_global_tokens

PER_TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", GLOBAL_MASK)


@dataclass
class EncodedDocument:
    """One document, encoded whole.

    Attributes:
        text: the document.
        fields: name of a model input -> [T] values.
        offsets: [D] characters [start, end) of each document token in ``text``.
        start: position of the document's first token in ``fields``.
        stop: one past the position of its last.
    """

    text: str
    fields: dict[str, list[int]]
    offsets: list[tuple[int, int]]
    start: int
    stop: int

    def __len__(self) -> int:
        """D, the document's own tokens."""
        return self.stop - self.start

    @property
    def extra(self) -> int:
        """Tokens that every window holds beside the document's: question, classification token, separators."""
        return len(self.fields["input_ids"]) - len(self)

    def window(self, first: int, last: int) -> dict[str, list[int]]:
        """Model inputs that hold the document tokens [first, last)."""
        return {
            name: [*values[: self.start], *values[self.start + first : self.start + last], *values[self.stop :]]
            for name, values in self.fields.items()
        }


def encode_document(tokenizer: Any, model: nn.Module, text: str, question: str | None = None) -> EncodedDocument:
    """Encode a document, behind its question if there is one, with the inputs that the model takes.

    Args:
        tokenizer: a tokenizer that runs on `tokenizers` (character offsets are needed).
        model: its forward arguments decide what is made. The global attention mask comes from the tokenizer; if that
            makes none, a question is marked from the sequence ids, and a lone text is left to the model's own rule.
        text: the document.
        question: what is asked about it.

    Raises:
        ValueError: when the text holds nothing that the tokenizer knows as a token.
    """
    pair = (text,) if question is None else (question, text)
    encoded = tokenizer(*pair, return_offsets_mapping=True, verbose=False)
    own = int(question is not None)
    sequence_ids = encoded.sequence_ids(0)
    positions = [position for position, sequence in enumerate(sequence_ids) if sequence == own]
    if not positions:
        name = "the text" if question is None else "context"
        raise ValueError(f"{name} holds nothing but spaces and characters that the tokenizer drops: {text[:40]!r}")
    accepted = forward_arguments(model)
    fields = {name: list(encoded[name]) for name in PER_TOKEN_INPUTS if name in encoded and name in accepted}
    fields.setdefault("attention_mask", [1] * len(sequence_ids))
    if question is not None and GLOBAL_MASK in accepted:
        fields.setdefault(GLOBAL_MASK, mark_global_tokens(sequence_ids))
    start, stop = positions[0], positions[-1] + 1
    return EncodedDocument(text, fields, list(encoded["offset_mapping"][start:stop]), start, stop)


def plan_windows(document: EncodedDocument, size: int | None, overlap: int | None, usual: int) -> list[tuple[int, int]]:
    """Windows [first, last) over the document's tokens such that no model input is longer than ``size``.

    Args:
        document: the document.
        size: longest model input in tokens, question and separators included; ``None``: no limit, one window.
        overlap: document tokens that neighbouring windows share; ``None``: ``usual``, but at most half a window.
        usual: the overlap in tokens where the caller named none.

    Raises:
        ValueError: when question and separators fill a window, or the windows would not advance.
    """
    if size is None or len(document.fields["input_ids"]) <= size:
        return [(0, len(document))]
    room = size - document.extra
    if room < 1:
        raise ValueError(
            f"the question with its separators takes {document.extra} tokens and leaves no room for the document in "
            f"windows of {size} tokens: shorten the question, or raise max_seq_len if the model takes more"
        )
    if overlap is None:
        overlap = min(usual, room // 2)
    if overlap >= room:
        raise ValueError(
            f"stride must be smaller than the {room} document tokens that fit in a window of {size}, got {overlap}"
        )
    return split_windows(len(document), room, overlap)


def forward_arguments(model: nn.Module) -> frozenset[str]:
    """Names of the arguments that the model takes, seen through a PEFT wrapper.

    A head of the zoo names what any architecture may know; what its backbone does not know, it cannot take.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    names = frozenset(inspect.signature(inner.forward).parameters)
    if isinstance(inner, LongspanPreTrainedModel):
        names &= frozenset(inspect.signature(inner.base_model.forward).parameters)
    return names


def position_limit(model: nn.Module) -> int | None:
    """Longest input in tokens that the model's positions allow, or ``None`` where nothing bounds it.

    Models of longspan say so themselves (``config.max_tokens``). For others the position table is looked up: one with
    a padding row (RoBERTa) begins to count behind it, the rows up to it are no places for tokens.
    """
    config: Any = getattr(model, "config", None)
    if isinstance(own := getattr(config, "max_tokens", None), int):
        return own
    for module in model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            reserved = 0 if table.padding_idx is None else table.padding_idx + 1
            return table.num_embeddings - reserved
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None
