"""The tokenizers of the Universal Transformer: bytes, or pieces of words, with the end of the text behind each text.

As in tensor2tensor, 0 is padding and 1 the end; a byte's id is the byte + 2. One class serves both, since all that
differs is the `tokenizers` vocabulary inside. tensor2tensor's own subword files have another format, and are not read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import TokenizersBackend

from longspan.data.byte_vocabulary import EOS, PAD, byte_pair_vocabulary, byte_vocabulary


class LongspanUniversalTransformerTokenizer(TokenizersBackend):
    """The Universal Transformer's tokenizer over any `tokenizers` vocabulary; without one, over bytes.

    ``byte_level()`` makes the one over bytes, ``train(texts)`` one over pieces of words that falls back to bytes, so
    that no text is unknown. Both write the end behind every text, sources and targets alike; a beginning that is to be
    continued takes ``add_special_tokens=False``. `AutoTokenizer` finds the class in a saved folder once longspan is
    imported; elsewhere the folder loads as a plain `TokenizersBackend` with the same ids.

    Args:
        kwargs: as for `TokenizersBackend`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        if not args and kwargs.get("tokenizer_object") is None and kwargs.get("tokenizer_file") is None:
            kwargs["tokenizer_object"] = with_end(byte_vocabulary())
            # A text may hold the five characters "<pad>": they are bytes like any other.
            kwargs.setdefault("split_special_tokens", True)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(*args, **kwargs)
        for name, token in (("pad_token", PAD), ("eos_token", EOS)):
            if getattr(self, name) is None and token in self.vocab:
                setattr(self, name, token)
        if "model_input_names" not in kwargs:
            self.model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def byte_level(cls, model_max_length: int = 65536, **kwargs: Any) -> LongspanUniversalTransformerTokenizer:
        """Every byte is a token, id = byte + 2; any text comes back as it was.

        Args:
            model_max_length: the longest text with its end, in tokens; what ``truncation=True`` cuts to.
            kwargs: as for `TokenizersBackend`.
        """
        return cls(model_max_length=model_max_length, **kwargs)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int = 32768, model_max_length: int = 65536, **kwargs: Any
    ) -> LongspanUniversalTransformerTokenizer:
        """Pieces of words, learnt from ``texts``: for translation, sources and targets together.

        Args:
            texts: what to learn from.
            vocab_size: number of ids, at least 258; fewer where the texts yield no more: ask ``len(tokenizer)``.
            model_max_length: the longest text with its end, in tokens; what ``truncation=True`` cuts to.
            kwargs: as for `TokenizersBackend`.
        """
        vocabulary = with_end(byte_pair_vocabulary(texts, vocab_size))
        kwargs.setdefault("split_special_tokens", True)
        return cls(tokenizer_object=vocabulary, model_max_length=model_max_length, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Take ``tokenizer.json`` as it is: transformers would rebuild it from vocabulary and merges for a subclass."""
        return TokenizersBackend.convert_to_native_format(**kwargs)


def with_end(vocabulary: Any) -> Any:
    """The `tokenizers` vocabulary, told to write the end behind every text."""
    number = vocabulary.token_to_id(EOS)
    vocabulary.post_processor = TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B:1 {EOS}:1", special_tokens=[(EOS, number)]
    )
    return vocabulary


# What a user of `longspan` types; see the class for why it is not its name in saved files.
UniversalTransformerTokenizer = LongspanUniversalTransformerTokenizer
