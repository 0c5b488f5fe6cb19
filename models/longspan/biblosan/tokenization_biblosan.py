"""The tokenizer of Bi-BloSAN: whole lower-case words, with the ids of padding and unknown words that the authors have.

T tokens of one text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import TokenizersBackend

PAD, UNKNOWN = "@@@empty", "@@@unk"  # ids 0 and 1

# Words as GloVe's vocabulary has them: "don't" is "do" and "n't", "dog's" is "dog" and "'s", numbers keep their point,
# other marks stand alone.
WORDS = r"\w+(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\d+(?:[.,]\d+)+|\w+(?:-\w+)*|[^\w\s]"


def word_vocabulary(words: Iterable[str]) -> Tokenizer:
    """`tokenizers` vocabulary of whole words, lower-cased: 0 is padding, 1 any other word, then ``words`` in order.

    Raises:
        ValueError: when ``words`` is one string.
    """
    if isinstance(words, str):
        raise ValueError("words must be several strings, got one: put it into a list")
    vocabulary = {PAD: 0, UNKNOWN: 1}
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("’", "'"), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    return tokenizer


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs, in the order in which they first occur.

    Raises:
        ValueError: when ``texts`` is one string.
    """
    if isinstance(texts, str):
        raise ValueError("texts must be several strings, got one: put it into a list")
    splitter = word_vocabulary([])
    assert splitter.normalizer is not None and splitter.pre_tokenizer is not None
    counts: Counter[str] = Counter()
    for text in texts:
        pieces = splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(text))
        counts.update(word for word, _ in pieces)
    return counts


class LongspanBiBloSanTokenizer(TokenizersBackend):
    """Whole lower-case words. Returns token types, which tell the two texts of a pair apart; adds no special tokens.

    `AutoTokenizer` finds this class in a saved folder once longspan is imported; elsewhere the folder loads as a plain
    `TokenizersBackend` with the same ids.

    Args:
        kwargs: as for `TokenizersBackend`: ``tokenizer_object`` or ``tokenizer_file``, ``model_max_length`` ...
            Without a vocabulary every word is unknown: see ``train``.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        if not args and kwargs.get("tokenizer_object") is None and kwargs.get("tokenizer_file") is None:
            kwargs["tokenizer_object"] = word_vocabulary([])
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        # A text may hold the words "@@@unk" and "@@@empty": they are words like any other.
        kwargs.setdefault("split_special_tokens", True)
        super().__init__(*args, **kwargs)
        for name, token in (("pad_token", PAD), ("unk_token", UNKNOWN)):
            if getattr(self, name) is None and token in self.vocab:
                setattr(self, name, token)
        if "model_input_names" not in kwargs:
            self.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vectors: Collection[str] = (),
        min_frequency: int = 1,
        max_words: int | None = None,
        **kwargs: Any,
    ) -> LongspanBiBloSanTokenizer:
        """The words of ``texts``, frequent ones first.

        Args:
            texts: what to learn from.
            vectors: words with vectors from elsewhere, e.g. what ``longspan.data.read_word_vectors`` returns: those
                that occur come first, in ids from 2 on, so that ``num_fixed_embeddings`` can name them; see
                ``count_fixed``.
            min_frequency: words that occur less often are unknown, unless they have a vector.
            max_words: keep so many words, the frequent ones among those with vectors first; None: all.
            kwargs: as for `TokenizersBackend`.

        Raises:
            ValueError: when the texts are one string, or hold no word that is frequent enough.
        """
        counts = count_words(texts)
        known = set(vectors)
        words = [word for word, count in counts.most_common() if count >= min_frequency or word in known]
        words.sort(key=lambda word: word not in known)
        if not words:
            raise ValueError(f"texts hold no word that occurs min_frequency = {min_frequency} times")
        return cls(tokenizer_object=word_vocabulary(words[:max_words]), **kwargs)

    def count_fixed(self, vectors: Collection[str]) -> int:
        """``num_fixed_embeddings`` for a tokenizer that was trained with ``vectors``: 2, and the words they have."""
        known = set(vectors)
        return 2 + sum(word in known for word in self.get_vocab())

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Take ``tokenizer.json`` as it is: transformers would rebuild it from a vocabulary for a subclass."""
        return TokenizersBackend.convert_to_native_format(**kwargs)


# What a user of `longspan` types; see the class for why it is not its name in saved files.
BiBloSanTokenizer = LongspanBiBloSanTokenizer
