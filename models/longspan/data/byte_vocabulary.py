"""Vocabularies in which every byte of UTF-8 is a token: id = byte + 2, behind padding and the end of a text."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from longspan.data.byte_alphabet import BYTE_CHARACTERS

PAD, EOS = "<pad>", "</s>"
BYTE_OFFSET = 2  # the first byte's id: 0 is padding, 1 the end of a text
NUM_BYTES = 256


def byte_vocabulary() -> Tokenizer:
    """`tokenizers` vocabulary in which every byte of UTF-8 is a token, with id = byte + 2; 258 ids in all.

    Byte-pair encoding without any pairs: `tokenizers` gives each byte a printable character, and keeps track of which
    characters of the text it belongs to.
    """
    vocabulary = {PAD: 0, EOS: 1} | {BYTE_CHARACTERS[byte]: byte + BYTE_OFFSET for byte in range(NUM_BYTES)}
    return _complete(Tokenizer(BPE(vocab=vocabulary, merges=[])))


def byte_pair_vocabulary(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """`byte_vocabulary`, and pieces of words behind it that are learnt from texts: no text has an unknown piece.

    Args:
        texts: what to learn from.
        vocab_size: number of ids; fewer where the texts yield no more.

    Raises:
        ValueError: when no room is left for pieces, or the texts are one string.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several strings, got one: put it into a list")
    if vocab_size < BYTE_OFFSET + NUM_BYTES:
        raise ValueError(f"vocab_size must be at least {BYTE_OFFSET + NUM_BYTES}, all bytes, got {vocab_size}")
    learner = _complete(Tokenizer(BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=list(BYTE_CHARACTERS),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = learner.get_vocab()
    pieces = sorted((piece for piece in learnt if len(piece) > 1 and piece not in (PAD, EOS)), key=learnt.__getitem__)
    vocabulary = byte_vocabulary().get_vocab()
    vocabulary |= {piece: BYTE_OFFSET + NUM_BYTES + number for number, piece in enumerate(pieces)}
    return _complete(Tokenizer(BPE(vocab=vocabulary, merges=_merges(learner))))


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The pairs that were learnt, first to last."""
    return [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]]


def _complete(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer
