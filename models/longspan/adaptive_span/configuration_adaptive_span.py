"""Configuration of Adaptive Span: the published causal model, its relatives, and an encoder."""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from longspan.base import LongspanConfig
from longspan.layers.adaptive_softmax import cluster_sizes


@strict
class AdaptiveSpanConfig(LongspanConfig):
    """Configuration of Adaptive Span (Sukhbaatar et al. 2019a).

    The defaults are the small model of the paper; ``configs/adaptive_span`` holds the published sizes.

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the model.
        num_hidden_layers: number of layers.
        num_attention_heads: number of heads, a divisor of ``hidden_size``.
        intermediate_size: width of the feed-forward layers; with ``persistent_memory_size`` there are none.
        hidden_act: their activation, by transformers' name.
        is_decoder: True: causal, a token attends to what stands before it, never to itself. False: an encoder, whose
            tokens attend to both sides and to themselves, as far as the span of a head reaches.
        max_span: the longest span, in tokens; rows of the table of positions (an encoder: to either side).
        span_ramp: tokens over which a head's weights fade from 1 to 0 behind its span.
        span_mode: what has a span of its own. "static": every head; "static_layer": every layer; "dynamic": every
            head at every token, computed from the token; "none": nothing, all heads see ``max_span`` tokens.
        span_init: span of a new model as a fraction of ``max_span``, in [0, 1]. Dynamic spans begin at least one ramp
            long.
        span_loss_weight: what a token of span costs. In training, the loss grows by this times the mean span of the
            heads, summed over the layers.
        span_renormalise: divide faded weights by their sum. False: as fairseq's port does, which leaves them at their
            share of the softmax over the whole window.
        span_epsilon: added to that sum, as the released code adds 1e-8: a head whose keys outside of its span score
            much higher than those inside then fades. For comparison with that code; 0: exact, and faster.
        span_trim_multiple: the window of a layer is cut to the reach of its widest head in steps of so many tokens.
            Decides about the length of memories, and about results where weights are not renormalised exactly.
        cache_slack: tokens that memories hold beyond the window, since spans may grow.
        adapt_cache: memories follow the span; False: they hold ``max_span`` tokens.
        attend_to_zero_cache: the positions before the beginning of a text take part in attention with a key and a
            value of zero, as in the released model; False: they do not exist. Encoders have no such positions.
        block_size: tokens of a block of training over streams. A model takes texts of any length.
        persistent_memory_size: vectors of each head that are part of every attention, in place of feed-forward
            layers (the all-attention model of Sukhbaatar et al. 2019b); 0: feed-forward layers.
        norm_position: "post": LayerNorm after each residual sum. "pre": before each sublayer, and one at the end.
        position_keys: "shared": one table of relative positions for all layers; "per_layer": one for each.
        relu_dropout: dropout inside of feed-forward layers.
        attention_dropout: dropout of attention weights.
        embedding_dropout: dropout of what comes in and of what the language model head reads.
        classifier_dropout: dropout of classification heads; None: ``relu_dropout``.
        adaptive_io_cutoffs: with them, words are embedded and scored in clusters (adaptive input and softmax): the
            first word of each cluster but the first, of a vocabulary sorted by frequency. None: one table.
        adaptive_io_factor: by which the vectors of each cluster are narrower than those of the one before.
        tie_word_embeddings: score words by the vectors that embed them.
        chunk_size_lm_head: with labels, tokens whose scores of all words exist at a time; then a training step returns
            no ``logits``. 0: all, and they are returned.
        layer_norm_eps: epsilon of the LayerNorms.
        pad_token_id: id of the padding token.
        bos_token_id: id of the token that begins a text.
        eos_token_id: id of the token that ends a text.
        use_cache: whether ``generate`` keeps what it computed for earlier tokens.
    """

    model_type = "longspan_adaptive_span"
    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "mems", "span_loss", "auxiliary_loss", "spans"]

    vocab_size: int = 205
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    hidden_act: str = "relu"
    is_decoder: bool = True
    max_span: int = 8192
    span_ramp: int = 32
    span_mode: Literal["static", "static_layer", "dynamic", "none"] = "static"
    span_init: float | int = 0.0
    span_loss_weight: float | int = 5e-7
    span_renormalise: bool = True
    span_epsilon: float | int = 0.0
    span_trim_multiple: int = 64
    cache_slack: int = 64
    adapt_cache: bool = True
    attend_to_zero_cache: bool = True
    block_size: int = 512
    persistent_memory_size: int = 0
    norm_position: Literal["post", "pre"] = "post"
    position_keys: Literal["shared", "per_layer"] = "shared"
    relu_dropout: float | int = 0.3
    attention_dropout: float | int = 0.3
    embedding_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    adaptive_io_cutoffs: list[int] | tuple[int, ...] | None = None
    adaptive_io_factor: int = 4
    tie_word_embeddings: bool = False
    chunk_size_lm_head: int = 0
    layer_norm_eps: float = 1e-5
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        if isinstance(self.adaptive_io_cutoffs, tuple):
            self.adaptive_io_cutoffs = list(self.adaptive_io_cutoffs)
        super().__post_init__(**kwargs)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def head_dropout(self) -> float:
        return self.relu_dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def zero_cache(self) -> bool:
        """Whether positions before the text are attended to."""
        return self.attend_to_zero_cache and self.is_decoder

    @property
    def position_rows(self) -> int:
        """Rows of the table of positions: distances to the left, or offsets to either side."""
        return self.max_span if self.is_decoder else 2 * self.max_span - 1

    def check(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_span", "span_ramp", "span_trim_multiple", "block_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("span_loss_weight", "span_epsilon", "cache_slack", "persistent_memory_size", "chunk_size_lm_head"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("relu_dropout", "attention_dropout", "embedding_dropout", "classifier_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} must be a multiple of num_attention_heads = "
                f"{self.num_attention_heads}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act = {self.hidden_act!r} is none of {sorted(ACT2FN)}")
        for name in ("pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} = {value} must be None or lie in [0, vocab_size) with vocab_size = {self.vocab_size}"
                )
        self._check_span()
        if self.adaptive_io_cutoffs is not None:
            self._check_clusters()

    def _check_span(self) -> None:
        if not 0 <= self.span_init <= 1:
            raise ValueError(
                f"span_init is a fraction of max_span and must lie in [0, 1], got {self.span_init}; "
                f"for {self.span_init} tokens say {self.span_init / self.max_span:.4g}"
            )
        if not self.span_renormalise and self.span_epsilon:
            raise ValueError(
                f"span_epsilon = {self.span_epsilon} is part of renormalising: with span_renormalise = False it "
                "must be 0"
            )

    def _check_clusters(self) -> None:
        try:
            cluster_sizes(self.vocab_size, self.hidden_size, self.adaptive_io_cutoffs, self.adaptive_io_factor)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(
                f"adaptive_io_cutoffs = {self.adaptive_io_cutoffs}, adaptive_io_factor = {self.adaptive_io_factor}: "
                f"{error}"
            ) from None
        if not self.is_decoder:
            raise ValueError("adaptive_io_cutoffs: words in clusters are for causal models; is_decoder must be True")
