"""Longformer's configuration: transformers' fields, names and defaults, with dilation beside the window."""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from longspan.base import LongspanConfig


@strict
class LongformerConfig(LongspanConfig):
    """Configuration of Longformer (Beltagy et al. 2020).

    Official checkpoints (``model_type: longformer``) load as they are. The defaults are those of transformers' class;
    ``configs/longformer`` holds the published sizes.

    Args:
        attention_window: size of the window around each token, both sides together: ``attention_window // 2`` steps
            to the left and to the right. One even number, or a list of one per layer. With ``is_decoder`` it is the
            number of steps back, beside the token itself.
        attention_dilation: step between the tokens of the window, in tokens; 1 is a plain window. One number, a list
            of one per layer, or a list with, for each layer, one number or a list of one per head.
        max_global_tokens: largest number of global tokens in one example. None: no limit; under ``torch.compile`` and
            ``torch.export``, where shapes are fixed, 64.
        is_decoder: causal attention: no token sees a later one, global tokens included.
        vocab_size: number of token ids.
        hidden_size: width of the hidden states.
        num_hidden_layers: number of layers.
        num_attention_heads: number of heads; divides ``hidden_size``.
        intermediate_size: width of the feed-forward layer.
        hidden_act: its activation, by transformers' name.
        hidden_dropout_prob: dropout of embeddings and of both outputs of a layer.
        attention_probs_dropout_prob: dropout of attention weights.
        max_position_embeddings: rows of the position table. The first ``pad_token_id + 1`` rows are reserved, the
            others are the longest text, in tokens.
        type_vocab_size: number of token types.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: epsilon of the LayerNorms.
        pad_token_id: id of the padding token; positions count from the number after it.
        bos_token_id: id of the token that begins a text.
        eos_token_id: id of the token that ends a text.
        sep_token_id: id of the token between question and text; where neither token types nor a global mask are
            given, heads take it to find the question.
        tie_word_embeddings: whether the language-model head shares the word embeddings.
    """

    model_type = "longspan_longformer"
    file_model_types = ("longformer",)

    attention_window: int | list[int] = 512
    attention_dilation: int | list[int | list[int]] = 1
    max_global_tokens: int | None = None
    is_decoder: bool = False
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    sep_token_id: int | None = 2
    tie_word_embeddings: bool = True

    @property
    def layer_windows(self) -> list[tuple[int, int]]:
        """For each layer the steps a token sees to the left and to the right."""
        totals = self.attention_window
        if isinstance(totals, int):
            totals = [totals] * self.num_hidden_layers
        return [(total, 0) if self.is_decoder else (total // 2, total // 2) for total in totals]

    @property
    def layer_dilations(self) -> list[int | list[int]]:
        """For each layer the step between visible tokens, one for all heads or a list of one per head."""
        if isinstance(self.attention_dilation, int):
            return [self.attention_dilation] * self.num_hidden_layers
        return self.attention_dilation

    @property
    def max_tokens(self) -> int:
        """The longest text the position table serves, in tokens."""
        assert self.pad_token_id is not None
        return self.max_position_embeddings - self.pad_token_id - 1

    def check(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers must not be negative, got {self.num_hidden_layers}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act = {self.hidden_act!r} is none of {sorted(ACT2FN)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.pad_token_id is None:
            raise ValueError("pad_token_id must be a number: position ids count from the one after it; got None")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id = {self.pad_token_id} must lie in [0, vocab_size) with vocab_size = {self.vocab_size}"
            )
        if self.max_tokens < 1:
            raise ValueError(
                f"max_position_embeddings = {self.max_position_embeddings} leaves no position for a token: "
                f"the first pad_token_id + 1 = {self.pad_token_id + 1} rows are reserved"
            )
        if self.max_global_tokens is not None and self.max_global_tokens < 1:
            raise ValueError(f"max_global_tokens must be at least 1 or None, got {self.max_global_tokens}")
        self._check_windows()
        self._check_dilations()

    def _check_windows(self) -> None:
        per_layer = isinstance(self.attention_window, list)
        windows = self.attention_window if isinstance(self.attention_window, list) else [self.attention_window]
        if per_layer and len(windows) != self.num_hidden_layers:
            raise ValueError(
                f"attention_window has {len(windows)} entries, num_hidden_layers = {self.num_hidden_layers}: "
                "one per layer wanted, or one number"
            )
        for window in windows:
            if window < 1 or isinstance(window, bool):
                raise ValueError(f"attention_window must be positive, got {self.attention_window}")
            if window % 2 and not self.is_decoder:
                raise ValueError(
                    f"attention_window must be even, half of it on each side of a token, got {self.attention_window}; "
                    f"nearest: {window + 1}"
                )

    def _check_dilations(self) -> None:
        if isinstance(self.attention_dilation, list) and len(self.attention_dilation) != self.num_hidden_layers:
            raise ValueError(
                f"attention_dilation has {len(self.attention_dilation)} entries, num_hidden_layers = "
                f"{self.num_hidden_layers}: one per layer wanted, or one number"
            )
        for dilation in self.layer_dilations:
            if isinstance(dilation, list) and len(dilation) != self.num_attention_heads:
                raise ValueError(
                    f"attention_dilation has a layer of {len(dilation)} entries, num_attention_heads = "
                    f"{self.num_attention_heads}: one per head wanted"
                )
            for step in dilation if isinstance(dilation, list) else [dilation]:
                if step < 1:
                    raise ValueError(f"attention_dilation must be at least 1 (a plain window), got {step}")
