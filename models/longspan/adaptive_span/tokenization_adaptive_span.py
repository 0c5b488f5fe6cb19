"""The tokenizers of Adaptive Span: bytes, or the symbols of the training file that a published model was made from.

The published models number symbols as they first appear in a file of symbols and blanks, one line for each line of
text, with ``<eos>`` behind every line. Weights say nothing of that order: it has to be read from the same file again.

T tokens of one text.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import TokenizersBackend

from longspan.data.byte_alphabet import BYTE_CHARACTERS

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
BYTE_OFFSET = 2  # of a vocabulary of all bytes: 0 is padding, 1 the end of a text
NEWLINE = ord("\n")

# What the symbols of a training file are. bytes: decimal numbers (enwik8). characters: themselves, and _ for a blank
# (text8). words: themselves (wikitext-103).
Protocol = Literal["bytes", "characters", "words"]
LINE_END = {"bytes": BYTE_CHARACTERS[NEWLINE], "characters": "\n", "words": "\n"}  # our token for the file's <eos>


def count_symbols(lines: Iterable[str], *, line_ends: bool = True) -> Counter[str]:
    """How often each symbol of a training file occurs, in the order in which they first occur.

    Args:
        lines: of the file.
        line_ends: count a newline behind each line.
    """
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line.split())
        if line_ends:
            counts["\n"] += 1
    return counts


def symbol_vocabulary(symbols: Iterable[str], protocol: Protocol) -> Tokenizer:
    """`tokenizers` vocabulary of a file's symbols, numbered in their order; a newline is the end of a line.

    Raises:
        ValueError: for a symbol that the protocol does not have, or two that mean the same.
    """
    vocabulary: dict[str, int] = {}
    for symbol in symbols:
        token = _token(symbol, protocol)
        if token in vocabulary:
            raise ValueError(
                f"symbol {symbol!r} stands for a newline, as the ends of lines do: take line_ends=False"
                if token == LINE_END[protocol]
                else f"symbol {symbol!r} stands for the same as an earlier one"
            )
        vocabulary[token] = len(vocabulary)
    return _tokenizer(vocabulary, protocol)


def byte_vocabulary() -> Tokenizer:
    """`tokenizers` vocabulary in which every byte of UTF-8 is a token, with id = byte + 2; 258 ids in all."""
    tokens = {character: byte + BYTE_OFFSET for byte, character in enumerate(BYTE_CHARACTERS)}
    tokenizer = _tokenizer({PAD: 0, EOS: 1} | tokens, "bytes")
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer


def _tokenizer(vocabulary: dict[str, int], protocol: Protocol) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    steps: list[Any] = []
    if LINE_END[protocol] not in vocabulary:
        steps.append(normalizers.Replace("\n", " " if protocol == "words" else ""))
    one_by_one = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    if protocol == "bytes":
        to_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([to_characters, one_by_one])
        tokenizer.decoder = decoders.ByteLevel()
    elif protocol == "characters":
        steps.append(normalizers.Replace(" ", "_"))
        tokenizer.pre_tokenizer = one_by_one
        tokenizer.decoder = decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^\s]+"), behavior="removed", invert=True)
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _token(symbol: str, protocol: Protocol) -> str:
    if symbol == "\n":
        return LINE_END[protocol]
    if symbol == UNKNOWN:
        return symbol
    if protocol == "bytes":
        if not (symbol.isascii() and symbol.isdecimal() and int(symbol) < 256):
            raise ValueError(f"protocol 'bytes' has decimal numbers below 256 as symbols, got {symbol!r}")
        return BYTE_CHARACTERS[int(symbol)]
    if protocol == "characters" and len(symbol) != 1:
        raise ValueError(f"protocol 'characters' has single characters as symbols, got {symbol!r}")
    return symbol


class LongspanAdaptiveSpanTokenizer(TokenizersBackend):
    """Bytes, or the symbols of a training file; adds nothing before or behind a text.

    ``byte_level()`` serves new models, ``from_training_file(...)`` the published weights. `AutoTokenizer` finds the
    class in a saved folder once longspan is imported; elsewhere the folder loads as a plain `TokenizersBackend` with
    the same ids.

    Args:
        protocol: what a token is.
        kwargs: as for `TokenizersBackend`.
    """

    def __init__(self, *args: Any, protocol: Protocol = "bytes", **kwargs: Any):
        if not args and kwargs.get("tokenizer_object") is None and kwargs.get("tokenizer_file") is None:
            kwargs["tokenizer_object"] = byte_vocabulary()
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        # A text may hold the five characters "<pad>": they are bytes like any other.
        kwargs.setdefault("split_special_tokens", True)
        line_end = LINE_END[protocol]
        if kwargs.get("eos_token") is not None and str(kwargs["eos_token"]) == line_end:
            kwargs.pop("eos_token")  # set below: registered as special it would vanish from decoded texts
        super().__init__(*args, protocol=protocol, **kwargs)
        self.protocol: Protocol = protocol
        for name, token in (("pad_token", PAD), ("eos_token", EOS), ("eos_token", line_end), ("unk_token", UNKNOWN)):
            if getattr(self, name) is None and token in self.vocab:
                setattr(self, name, token)
        if "model_input_names" not in kwargs:
            self.model_input_names = ["input_ids", "attention_mask"]

    @classmethod
    def byte_level(cls, **kwargs: Any) -> LongspanAdaptiveSpanTokenizer:
        """Every byte is a token, id = byte + 2; 0 is padding, 1 the end of a text: 258 ids, for new models.

        Args:
            kwargs: as for `TokenizersBackend`.
        """
        return cls(**kwargs)

    @classmethod
    def from_training_file(
        cls,
        path: str | Path,
        protocol: Protocol,
        *,
        line_ends: bool = True,
        by_frequency: bool = False,
        unknown: bool = False,
        **kwargs: Any,
    ) -> LongspanAdaptiveSpanTokenizer:
        """The vocabulary of a model, read from the file of symbols that it was trained on.

        A newline in a text is the file's ``<eos>``. There is no padding token: the published models have no id for
        one, and under an attention mask any will do (``tokenizer.pad_token = tokenizer.eos_token``).

        Args:
            path: ``train.txt``.
            protocol: its symbols. "bytes": decimal numbers (enwik8); "characters", with ``_`` for a blank (text8);
                "words" (wikitext-103).
            line_ends: newlines are tokens, as in the published models. False: they are left out of texts, as in those
                of Transformer-XL; figures of the two do not compare.
            by_frequency: number symbols by how often they occur, as models with adaptive input do, in place of where
                they first occur.
            unknown: one id more, ``<unk>``, for symbols that the file does not have. Otherwise they are errors.
            kwargs: as for `TokenizersBackend`.

        Raises:
            ValueError: for a file of other symbols, or of none.
        """
        with Path(path).open(encoding="utf-8", newline="\n") as lines:
            counts = count_symbols(lines, line_ends=line_ends)
        if not counts:
            raise ValueError(f"{path} holds no symbol")
        symbols = [symbol for symbol, _ in counts.most_common()] if by_frequency else list(counts)
        if unknown and UNKNOWN not in counts:
            symbols.append(UNKNOWN)
        return cls(tokenizer_object=symbol_vocabulary(symbols, protocol), protocol=protocol, **kwargs)

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Take ``tokenizer.json`` as it is: transformers would rebuild it from a vocabulary for a subclass."""
        return TokenizersBackend.convert_to_native_format(**kwargs)

    def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._encode_plus(*args, **kwargs)
        except Exception as error:  # `tokenizers` raises nothing more specific
            if "Missing [UNK]" not in str(error):
                raise
            raise ValueError(
                "the text holds a symbol that this vocabulary lacks, which was read from a training file; for a new "
                "model, from_training_file(..., unknown=True) has an id for such symbols"
            ) from None

    def encode_file(self, path: str | Path) -> Tensor:
        """Ids ``[T]``, int64, of a file in the format of the training file: ``valid.txt``, ``test.txt``, itself.

        Raises:
            ValueError: for a symbol that the vocabulary lacks.
        """
        ids_of: dict[str, int] = {}
        numbers = array("q")
        line_end = self.vocab.get(LINE_END[self.protocol])
        with Path(path).open(encoding="utf-8", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                symbols = line.split()
                for symbol in {symbol for symbol in symbols if symbol not in ids_of}:
                    token = _token(symbol, self.protocol)
                    known: Any = self.vocab.get(token, self.unk_token_id)
                    if known is None:
                        raise ValueError(f"line {number} of {path} holds {symbol!r}, which the vocabulary lacks")
                    ids_of[symbol] = known
                numbers.extend(map(ids_of.__getitem__, symbols))
                if line_end is not None:
                    numbers.append(line_end)
        return torch.tensor(numbers, dtype=torch.int64)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of bytes that need not be text in any encoding; newlines that are no tokens are left out.

        Raises:
            ValueError: when tokens are not bytes, or for a byte that the vocabulary lacks.
        """
        if isinstance(data, str):
            raise ValueError("data must be bytes, got a string: call the tokenizer with it")
        ids_of = self._ids_of_bytes()
        lacking = sorted(set(data) - ids_of.keys() - {NEWLINE})
        if lacking:
            raise ValueError(f"data holds byte {lacking[0]}, which the training file of this vocabulary lacks")
        return [ids_of[byte] for byte in data if byte in ids_of]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ``ids`` (numbers, or a tensor ``[T]``), without padding and ends of texts.

        ``decode`` gives a string, with a replacement character for bytes that are not UTF-8.

        Raises:
            ValueError: when tokens are not bytes, or an id is beyond them.
        """
        byte_of = {number: byte for byte, number in self._ids_of_bytes().items()}
        numbers = [int(number) for number in ids]
        beyond = [number for number in numbers if not 0 <= number < len(self)]
        if beyond:
            raise ValueError(f"ids must lie in [0, {len(self)}), got {beyond[0]}")
        return bytes(byte_of[number] for number in numbers if number in byte_of)

    def _ids_of_bytes(self) -> dict[int, int]:
        if self.protocol != "bytes":
            raise ValueError(f"the tokens of this tokenizer are {self.protocol}, not bytes: encode text with it")
        vocabulary = self.vocab
        return {byte: vocabulary[token] for byte, token in enumerate(BYTE_CHARACTERS) if token in vocabulary}


# What a user of `longspan` types; see the class for why it is not its name in saved files.
AdaptiveSpanTokenizer = LongspanAdaptiveSpanTokenizer
