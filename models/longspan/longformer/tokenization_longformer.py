"""The tokenizer of Longformer: any `tokenizers` vocabulary that also marks the global tokens.

Byte-pair (RoBERTa style, as in the published Longformer) or word-piece (BERT style, as in converted models): the
vocabulary, the separators and the token types are those of the `tokenizers` object inside. What this class adds is
`global_attention_mask`, made from sequence ids and padded with 0 by ``pad``, which a plain tokenizer leaves ragged.

Shapes: T tokens of one encoded text or pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from tokenizers import Tokenizer
from transformers import BatchEncoding, TokenizersBackend

GLOBAL_MASK = "global_attention_mask"
GlobalTokens = Literal["first_sequence", "second_sequence", "first_token"]

# What the two families call their special tokens, for vocabularies that come without a list of them.
USUAL_SPECIAL_TOKENS = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "unk_token": ("[UNK]", "<unk>"),
    "mask_token": ("[MASK]", "<mask>"),
}


def mark_global_tokens(
    sequence_ids: Sequence[int | None],
    attention_mask: Sequence[int] | None = None,
    global_tokens: GlobalTokens = "first_sequence",
) -> list[int]:
    """The global attention mask of one encoded text or pair, 1 = global (Beltagy et al. 2020, section 3.1).

    Args:
        sequence_ids: [T] 0 for the first text, 1 for the second, ``None`` for special tokens and padding.
        attention_mask: [T] 0 at padding, which is never global. ``None``: no padding.
        global_tokens: in a pair, ``first_sequence`` marks everything before the second text, separators included (the
            question of a question and a document), ``second_sequence`` everything from the second text on (the answer
            of a multiple choice), ``first_token`` the classification token alone. A single text has its first token
            marked in all three.

    Returns:
        [T] zeros and ones.
    """
    real = [1] * len(sequence_ids) if attention_mask is None else [int(bool(value)) for value in attention_mask]
    second = next((position for position, sequence in enumerate(sequence_ids) if sequence == 1), None)
    if second is None or global_tokens == "first_token":
        first = real.index(1) if 1 in real else len(real)
        return [int(position == first) for position in range(len(real))]
    if global_tokens == "first_sequence":
        return real[:second] + [0] * (len(real) - second)
    return [0] * second + real[second:]


class LongspanLongformerTokenizer(TokenizersBackend):
    """A tokenizer over any `tokenizers` vocabulary that returns `global_attention_mask` beside the token ids.

    The mask is made for single texts and pairs, with truncation, strides and overflowing windows, padding on either
    side, and any ``return_tensors``. ``return_global_attention_mask=False`` leaves it out of one call; without
    "global_attention_mask" in ``model_input_names`` it is never made unless asked for.

    `AutoTokenizer` finds this class in a saved folder once longspan is imported. Where it is not imported, the same
    folder loads as a plain `TokenizersBackend` with the same ids: the class has a name of its own so that it is not
    taken for transformers' `LongformerTokenizer`, which is RoBERTa's and would misread word pieces.

    Args:
        global_tokens: which tokens of a pair are global, see `mark_global_tokens`; saved with the tokenizer.
        kwargs: as for `TokenizersBackend`: ``tokenizer_object`` or ``tokenizer_file``, special tokens,
            ``model_max_length``, ``padding_side`` ... Special tokens that are not named are looked up by their usual
            names; token types are returned if the vocabulary's template tells two texts apart by them.

    Raises:
        ValueError: when ``global_tokens`` is none of the three.
    """

    def __init__(self, *args: Any, global_tokens: GlobalTokens = "first_sequence", **kwargs: Any):
        if global_tokens not in get_args(GlobalTokens):
            raise ValueError(f"global_tokens must be one of {list(get_args(GlobalTokens))}, got {global_tokens!r}")
        super().__init__(*args, global_tokens=global_tokens, **kwargs)
        self.global_tokens: GlobalTokens = global_tokens
        for name, usual in USUAL_SPECIAL_TOKENS.items():
            found = next((token for token in usual if token in self.vocab), None)
            if getattr(self, name) is None and found is not None:
                setattr(self, name, found)
        if "model_input_names" not in kwargs:
            types = ["token_type_ids"] if 1 in self.backend_tokenizer.encode("", "").type_ids else []
            self.model_input_names = ["input_ids", *types, "attention_mask", GLOBAL_MASK]

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Take ``tokenizer.json`` as it is: transformers would rebuild it from vocabulary and merges for a subclass."""
        return TokenizersBackend.convert_to_native_format(**kwargs)

    def _encode_plus(self, *args: Any, return_global_attention_mask: bool | None = None, **kwargs: Any) -> Any:
        encoded = super()._encode_plus(*args, **kwargs)
        if return_global_attention_mask is None:
            return_global_attention_mask = GLOBAL_MASK in self.model_input_names
        if not return_global_attention_mask or encoded.encodings is None:
            return encoded
        masks = [
            mark_global_tokens(encoding.sequence_ids, encoding.attention_mask, self.global_tokens)
            for encoding in encoded.encodings
        ]
        ids = encoded["input_ids"]
        single = isinstance(ids, list) and (len(ids) == 0 or isinstance(ids[0], int))
        mask = BatchEncoding({GLOBAL_MASK: masks[0] if single else masks}, tensor_type=kwargs.get("return_tensors"))
        encoded[GLOBAL_MASK] = mask[GLOBAL_MASK]
        return encoded

    def _pad(self, encoded_inputs: Any, *args: Any, padding_side: str | None = None, **kwargs: Any) -> Any:
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        if GLOBAL_MASK in padded:
            mask = list(padded[GLOBAL_MASK])
            padding = [0] * (len(padded[self.model_input_names[0]]) - len(mask))
            left = (padding_side or self.padding_side) == "left"
            padded[GLOBAL_MASK] = padding + mask if left else mask + padding
        return padded


# What a user of `longspan` types; see the class for why it is not its name in saved files.
LongformerTokenizer = LongspanLongformerTokenizer


def to_longformer_tokenizer(
    tokenizer: TokenizersBackend, max_length: int | None = None, global_tokens: GlobalTokens | None = None
) -> LongspanLongformerTokenizer:
    """A Longformer tokenizer with the vocabulary, special tokens and padding side of another one.

    `longspan.convert_to_long` calls this for the tokenizer of the short model. It also serves models whose folder
    holds a plain `RobertaTokenizer` or `BertTokenizer`: those work, but make no `global_attention_mask`.

    Args:
        tokenizer: any tokenizer of transformers that runs on `tokenizers`; it is not changed.
        max_length: the new ``model_max_length`` in tokens; ``None`` keeps the old one.
        global_tokens: see `mark_global_tokens`; ``None`` keeps what the tokenizer had, else ``first_sequence``.

    Raises:
        ValueError: when the tokenizer has no `tokenizers` object inside, or the length is not a positive integer.
    """
    if not isinstance(tokenizer, TokenizersBackend):
        raise ValueError(
            f"tokenizer must be one that runs on `tokenizers` (a TokenizersBackend), got {type(tokenizer).__name__}"
        )
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise ValueError(f"max_length must be a positive number of tokens or None, got {max_length!r}")
    names = [name for name in tokenizer.model_input_names if name != GLOBAL_MASK]
    options: Mapping[str, Any] = {
        **{key: value for key, value in tokenizer._special_tokens_map.items() if value is not None},
        "extra_special_tokens": list(tokenizer._extra_special_tokens),
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "split_special_tokens": tokenizer.split_special_tokens,
        "add_prefix_space": tokenizer.add_prefix_space,
        "model_max_length": tokenizer.model_max_length if max_length is None else max_length,
        "model_input_names": [*names, GLOBAL_MASK],
        "global_tokens": global_tokens or getattr(tokenizer, "global_tokens", "first_sequence"),
    }
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()  # a tokenizer keeps these from its last call
    backend.no_padding()
    return LongspanLongformerTokenizer(tokenizer_object=backend, **options)
