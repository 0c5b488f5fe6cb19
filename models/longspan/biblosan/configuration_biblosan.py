"""Bi-BloSAN's configuration: two variants of its equations, and DiSAN, which has no blocks."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from longspan.base import LongspanConfig


@strict
class BiBloSanConfig(LongspanConfig):
    """Configuration of Bi-BloSAN (Shen et al. 2018); ``configs/biblosan`` holds the published sizes.

    Args:
        block_length: tokens of a block. There is no default, since the best one depends on the texts:
            ``longspan.biblosan.suggest_block_length(lengths, batch_size)`` computes it from a corpus, once, before
            training. None with ``attention = "full"``.
        attention: "block": Bi-BloSAN. "full": DiSAN, attention over the whole text, whose cost grows with the square
            of the length.
        variant: "reference": what the authors' code computes, which gave the published figures; new models take it,
            too. "paper": the equations as published.
        mask_padding_blocks: padding changes nothing. False: blocks of padding alone are attended to and padding comes
            out as in the authors' code, so that a result depends on the padded length of its batch; only to compare
            with that code.
        share_attention: attention within blocks and between blocks has the same weights, which the paper leaves open;
            the authors' code has weights for each.
        vocab_size: number of words.
        embedding_size: width of word vectors.
        num_fixed_embeddings: the first rows of the word vectors that are never trained: padding, the unknown word, and
            words with vectors from elsewhere.
        hidden_size: width of one direction; texts and tokens come out twice as wide.
        head_hidden_size: width of the hidden layer of heads; None: ``hidden_size``.
        num_hidden_layers: layers on top of each other, from the second on with a residual connection. The paper has 1.
        hidden_act: "elu", "relu", "selu" or "linear": of the encoder, and of heads that compare texts or answer
            questions. Heads that label texts, rate pairs and select sentences have ReLU; the authors' encoders for
            these tasks do, too.
        score_scale: attention scores lie between plus and minus this.
        hidden_dropout_prob: dropout of what every linear layer takes in; the authors used 0.25 to 0.4.
        sentence_block_length: of a document's sentences, as ``block_length`` of a text's tokens; sentence selection
            alone has it.
        pad_token_id: id of padding.
        unk_token_id: id of words that are not in the vocabulary. Both rows are zero.
        sep_token_id: id of a token between question and text; where there are no token types, the question-answering
            head finds the question by it.
        bos_token_id: id of a token that begins a text, if the tokenizer has one.
        eos_token_id: id of a token that ends a text, if the tokenizer has one.
    """

    model_type = "longspan_biblosan"

    block_length: int | None = None
    attention: Literal["block", "full"] = "block"
    variant: Literal["reference", "paper"] = "reference"
    mask_padding_blocks: bool = True
    share_attention: bool = False
    vocab_size: int = 30000
    embedding_size: int = 300
    num_fixed_embeddings: int = 2
    hidden_size: int = 300
    head_hidden_size: int | None = None
    num_hidden_layers: int = 1
    hidden_act: Literal["elu", "relu", "selu", "linear"] = "elu"
    score_scale: float | int = 5.0
    hidden_dropout_prob: float | int = 0.25
    sentence_block_length: int = 4
    pad_token_id: int | None = 0
    unk_token_id: int | None = 1
    sep_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    @property
    def feature_size(self) -> int:
        return 2 * self.hidden_size

    @property
    def num_attention_heads(self) -> int:
        """Every feature of both directions has attention weights of its own."""
        return self.feature_size

    @property
    def head_size(self) -> int:
        """Width of the hidden layer of heads."""
        return self.hidden_size if self.head_hidden_size is None else self.head_hidden_size

    def check(self) -> None:
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "sentence_block_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.head_hidden_size is not None and self.head_hidden_size < 1:
            raise ValueError(f"head_hidden_size must be at least 1 or None, got {self.head_hidden_size}")
        self._check_blocks()
        if not 0 < self.score_scale <= 40:
            raise ValueError(
                f"score_scale must lie in (0, 40]: beyond, sums of exp(score) overflow; got {self.score_scale}"
            )
        if not 0 <= self.hidden_dropout_prob < 1:
            raise ValueError(f"hidden_dropout_prob must lie in [0, 1), got {self.hidden_dropout_prob}")
        if not 0 <= self.num_fixed_embeddings <= self.vocab_size:
            raise ValueError(
                f"num_fixed_embeddings = {self.num_fixed_embeddings} must lie in [0, vocab_size] with "
                f"vocab_size = {self.vocab_size}"
            )
        for name in ("pad_token_id", "unk_token_id", "sep_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} = {value} must be None or lie in [0, vocab_size) with vocab_size = {self.vocab_size}"
                )
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings must be False: no head of Bi-BloSAN scores words")

    def _check_blocks(self) -> None:
        if self.attention == "full":
            if self.block_length is not None:
                raise ValueError(
                    f"attention = 'full' has no blocks: block_length must be None, got {self.block_length}"
                )
            if self.share_attention:
                raise ValueError("attention = 'full' has no blocks to share weights: share_attention must be False")
            if self.variant == "paper":
                raise ValueError("attention = 'full' has one form: variant must be 'reference', got 'paper'")
            return
        if self.block_length is None:
            raise ValueError(
                "block_length is missing: longspan.biblosan.suggest_block_length(lengths, batch_size) computes it from "
                "the lengths of the training texts. For attention without blocks say attention = 'full'"
            )
        if self.block_length < 1:
            raise ValueError(f"block_length must be at least 1 token, got {self.block_length}")
        if self.variant == "paper" and not self.mask_padding_blocks:
            raise ValueError(
                "mask_padding_blocks = False is for comparison with the authors' code: variant must be 'reference', "
                "got 'paper'"
            )
