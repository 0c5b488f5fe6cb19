"""The tokenizers of Reformer: bytes, as in the enwik8 model, and a small BPE, as in the Crime and Punishment model.

One class serves both, since all that differs is the `tokenizers` vocabulary inside. T tokens of one text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import TokenizersBackend

from longspan.data.byte_vocabulary import BYTE_OFFSET, EOS, NUM_BYTES, PAD, byte_vocabulary

UNKNOWN = "<unk>"


def train_vocabulary(texts: Iterable[str], vocab_size: int = 320) -> Tokenizer:
    """`tokenizers` vocabulary of pieces of words, byte-pair encoding over characters, learnt from texts.

    A space belongs to the word behind it; other white space is a piece of its own. Characters that do not occur in
    ``texts``, or are too rare for so small a vocabulary, become ``<unk>``.

    Args:
        texts: what to learn from.
        vocab_size: number of pieces, with ``<pad>`` 0, ``<unk>`` 1 and ``</s>`` 2; fewer where the texts yield no more.

    Raises:
        ValueError: when no room is left for pieces, or the texts are one string.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several strings, got one: put it into a list")
    special = [PAD, UNKNOWN, EOS]
    if vocab_size <= len(special):
        raise ValueError(f"vocab_size must exceed the {len(special)} special tokens, got {vocab_size}")
    tokenizer = Tokenizer(BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^\s]+|\s"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        limit_alphabet=vocab_size - len(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class LongspanReformerTokenizer(TokenizersBackend):
    """Reformer's tokenizer over any `tokenizers` vocabulary; without one, over bytes.

    ``byte_level()`` makes the one for models of the enwik8 shape, ``train(texts)`` one for models of the Crime and
    Punishment shape. Both pad on either side, truncate, and give character offsets. `AutoTokenizer` finds the class
    in a saved folder once longspan is imported; elsewhere the folder loads as a plain `TokenizersBackend` with the
    same ids, which is why the class has a name of its own.

    Args:
        kwargs: as for `TokenizersBackend`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        if not args and kwargs.get("tokenizer_object") is None and kwargs.get("tokenizer_file") is None:
            kwargs["tokenizer_object"] = byte_vocabulary()
            # A text may hold the five characters "<pad>": they are bytes like any other.
            kwargs.setdefault("split_special_tokens", True)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(*args, **kwargs)
        for name, token in (("pad_token", PAD), ("eos_token", EOS), ("unk_token", UNKNOWN)):
            if getattr(self, name) is None and token in self.vocab:
                setattr(self, name, token)
        if "model_input_names" not in kwargs:
            self.model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def byte_level(cls, model_max_length: int = 65536, **kwargs: Any) -> LongspanReformerTokenizer:
        """Every byte is a token, id = byte + 2, 0 = padding; any text and any bytes come back as they were.

        Args:
            model_max_length: the longest text, in bytes; what ``truncation=True`` cuts to.
            kwargs: as for `TokenizersBackend`.
        """
        return cls(model_max_length=model_max_length, **kwargs)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 320, model_max_length: int = 524288, **kwargs: Any
    ) -> LongspanReformerTokenizer:
        """Pieces of words, learnt from ``texts``; see `train_vocabulary`.

        Args:
            texts: what to learn from.
            vocab_size: number of pieces.
            model_max_length: the longest text, in tokens; what ``truncation=True`` cuts to.
            kwargs: as for `TokenizersBackend`.
        """
        vocabulary = train_vocabulary(texts, vocab_size)
        return cls(tokenizer_object=vocabulary, model_max_length=model_max_length, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Take ``tokenizer.json`` as it is: transformers would rebuild it from vocabulary and merges for a subclass."""
        return TokenizersBackend.convert_to_native_format(**kwargs)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of bytes that need not be text in any encoding.

        Raises:
            ValueError: when tokens are not bytes.
        """
        self._check_bytes()
        return [byte + BYTE_OFFSET for byte in data]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ``ids`` (numbers, or a tensor ``[T]``), without padding and ends of texts.

        ``decode`` gives a string, with a replacement character for bytes that are not UTF-8.

        Raises:
            ValueError: when tokens are not bytes, or an id is beyond them.
        """
        self._check_bytes()
        numbers = [int(number) for number in ids]
        beyond = [number for number in numbers if not 0 <= number < NUM_BYTES + BYTE_OFFSET]
        if beyond:
            raise ValueError(f"ids must lie in [0, {NUM_BYTES + BYTE_OFFSET}), got {beyond[0]}")
        return bytes(number - BYTE_OFFSET for number in numbers if number >= BYTE_OFFSET)

    def _check_bytes(self) -> None:
        if not isinstance(self.backend_tokenizer.decoder, decoders.ByteLevel) or len(self.vocab) < NUM_BYTES:
            raise ValueError(
                "this tokenizer's tokens are not bytes: encode text with it, or take ReformerTokenizer.byte_level()"
            )


# What a user of `longspan` types; see the class for why it is not its name in saved files.
ReformerTokenizer = LongspanReformerTokenizer
