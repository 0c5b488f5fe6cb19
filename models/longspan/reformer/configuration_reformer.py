"""Reformer's configuration: transformers' fields, names and defaults, and which of three semantics LSH has."""

import math
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from longspan.base import LongspanConfig

LAYER_TYPES = ("lsh", "local")


@strict
class ReformerConfig(LongspanConfig):
    """Configuration of Reformer (Kitaev et al. 2020).

    Official checkpoints (``model_type: reformer``) load as they are, with the original semantics. The defaults are
    those of transformers' class; ``configs/reformer`` holds the published sizes.

    Args:
        lsh_semantics: which tokens a query meets in the sorted order of a hash round. "chunked": its own chunk and
            the neighbours within the round; padding changes nothing. "original": the released code's: neighbours count
            modulo the chunks of all rounds (in local layers: of the text), padding takes part in the length. What files
            of transformers get. "strict": the newest ``lsh_attn_chunk_length * (1 + lsh_num_chunks_before)`` earlier
            tokens of its bucket: the only one that never looks at later tokens, so that generating step by step equals
            one pass; wants ``is_decoder``.
        attn_layers: "lsh" or "local", one for each layer.
        is_decoder: causal attention: no token sees the content of a later one.
        vocab_size: number of token ids.
        hidden_size: width of each of the two streams; heads read both, 2 * hidden_size.
        num_attention_heads: number of heads.
        attention_head_size: width of a head; heads need not fill ``hidden_size``.
        feed_forward_size: width of the feed-forward layer.
        hidden_act: its activation, by transformers' name.
        num_hashes: hash rounds; more find more of the keys that matter. Can be given at each call, too.
        num_buckets: number of buckets: an even number, a list of even factors of it, or None: by the length of each
            text, about two for each chunk (with "strict": of the longest text). Never written by a model.
        hash_seed: seed of the rotations that hash. None: drawn afresh at each step of training, and always the same
            in evaluation.
        lsh_attn_chunk_length: tokens of a chunk in LSH layers.
        lsh_num_chunks_before: chunks before its own that a token sees in LSH layers.
        lsh_num_chunks_after: chunks after its own that a token sees in LSH layers.
        lsh_attention_probs_dropout_prob: dropout of attention weights in LSH layers.
        local_attn_chunk_length: tokens of a chunk in local layers.
        local_num_chunks_before: chunks before its own that a token sees in local layers.
        local_num_chunks_after: chunks after its own that a token sees in local layers.
        local_attention_probs_dropout_prob: dropout of attention weights in local layers.
        hidden_dropout_prob: dropout of embeddings, of sublayers and of the last hidden state.
        classifier_dropout: dropout of classification heads; None: ``hidden_dropout_prob``.
        axial_pos_embds: positions from one table per axis of a grid; False: one learned row per position.
        axial_pos_shape: cells along each axis of the grid, any number of axes; their product is the longest text.
        axial_pos_embds_dim: width of each axis' table; they sum to ``hidden_size``.
        axial_norm_std: standard deviation of new axial tables. Much larger than ``initializer_range`` (as the 1.0 of
            transformers, which its files mean) positions drown the words for a long time.
        max_position_embeddings: rows of the table of learned positions; also what automatic numbers of buckets look
            at to tell when one factor is not enough.
        chunk_size_feed_forward: tokens that the feed-forward layers take at a time, in the backward pass too; any
            number. 0: as many as run fast.
        chunk_size_lm_head: with labels, tokens whose scores of all words exist at a time; any number. Then a training
            step returns no ``logits``. 0: all, and they are returned.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: epsilon of the LayerNorms.
        pad_token_id: id of the padding token.
        bos_token_id: id of the token that begins a text.
        eos_token_id: id of the token that ends a text.
        use_cache: whether ``generate`` keeps what it computed for earlier tokens.
        tie_word_embeddings: must be False: words are embedded in ``hidden_size``, and scored from twice that.
        num_hidden_layers: length of ``attn_layers``, which says it.
    """

    model_type = "longspan_reformer"
    file_model_types = ("reformer",)
    file_defaults: ClassVar = {"lsh_semantics": "original", "axial_norm_std": 1.0}
    keys_to_ignore_at_inference: ClassVar = ["past_key_values", "buckets"]

    lsh_semantics: Literal["original", "chunked", "strict"] = "chunked"
    attn_layers: list[str] | tuple[str, ...] = ("local", "lsh", "local", "lsh", "local", "lsh")
    is_decoder: bool = False
    vocab_size: int = 320
    hidden_size: int = 256
    num_attention_heads: int = 12
    attention_head_size: int = 64
    feed_forward_size: int = 512
    hidden_act: str = "relu"
    num_hashes: int = 1
    num_buckets: int | list[int] | tuple[int, ...] | None = None
    hash_seed: int | None = None
    lsh_attn_chunk_length: int | None = 64
    lsh_num_chunks_before: int | None = 1
    lsh_num_chunks_after: int | None = 0
    lsh_attention_probs_dropout_prob: float | int | None = 0.0
    local_attn_chunk_length: int | None = 64
    local_num_chunks_before: int | None = 1
    local_num_chunks_after: int | None = 0
    local_attention_probs_dropout_prob: float | int | None = 0.05
    hidden_dropout_prob: float | int = 0.05
    classifier_dropout: float | int | None = None
    axial_pos_embds: bool = True
    axial_pos_shape: list[int] | tuple[int, ...] = (64, 64)
    axial_pos_embds_dim: list[int] | tuple[int, ...] = (64, 192)
    axial_norm_std: float | int = 0.02
    max_position_embeddings: int = 4096
    chunk_size_lm_head: int = 0
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 2
    use_cache: bool = True
    tie_word_embeddings: bool = False
    num_hidden_layers: int | None = None

    def __post_init__(self, **kwargs):
        for name in ("attn_layers", "axial_pos_shape", "axial_pos_embds_dim", "num_buckets"):
            value = getattr(self, name)
            setattr(self, name, list(value) if isinstance(value, tuple) else value)
        if self.num_hidden_layers not in (None, len(self.attn_layers)):
            raise ValueError(
                f"num_hidden_layers = {self.num_hidden_layers}, but attn_layers has {len(self.attn_layers)} entries: "
                "leave it out, attn_layers says it"
            )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As ever; what a file says of the number of layers follows ``attn_layers``, which may be given beside it."""
        return super().from_dict({**config_dict, "num_hidden_layers": None}, **kwargs)

    @property
    def feature_size(self) -> int:
        return 2 * self.hidden_size

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def text_token(self) -> str:
        return "first" if self.lsh_semantics == "original" else super().text_token

    @property
    def max_tokens(self) -> int:
        """The longest text that the position embeddings serve, in tokens."""
        return math.prod(self.axial_pos_shape) if self.axial_pos_embds else self.max_position_embeddings

    @property
    def padded_multiple(self) -> int:
        """What the original code pads the length of texts to: a multiple of every chunk length in use."""
        return math.lcm(*(self.options_of(layer)["chunk_length"] for layer in set(self.attn_layers)))

    def options_of(self, layer: str) -> dict[str, Any]:
        """The attention options of "lsh" or "local" layers, under the names that the layers take."""
        options = {
            "chunk_length": getattr(self, f"{layer}_attn_chunk_length"),
            "chunks_before": getattr(self, f"{layer}_num_chunks_before") or 0,
            "chunks_after": getattr(self, f"{layer}_num_chunks_after") or 0,
            "dropout": getattr(self, f"{layer}_attention_probs_dropout_prob") or 0.0,
            "causal": self.is_decoder,
        }
        if layer == "local":
            return options | {"wrap": self.lsh_semantics == "original"}
        return options | {
            "num_hashes": self.num_hashes,
            "num_buckets": self.num_buckets,
            "hash_seed": self.hash_seed,
            "max_positions": self.max_position_embeddings if self.lsh_semantics == "original" else self.max_tokens,
            "semantics": self.lsh_semantics,
        }

    def check(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "attention_head_size", "feed_forward_size",
                     "num_hashes", "max_position_embeddings"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("chunk_size_feed_forward", "chunk_size_lm_head", "axial_norm_std", "initializer_range"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act = {self.hidden_act!r} is none of {sorted(ACT2FN)}")
        for name in ("hidden_dropout_prob", "lsh_attention_probs_dropout_prob", "local_attention_probs_dropout_prob",
                     "classifier_dropout"):  # fmt: skip
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id = {self.pad_token_id} must be None or lie in [0, vocab_size) with "
                f"vocab_size = {self.vocab_size}"
            )
        if self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings must be False: words are embedded in hidden_size, but scored from "
                f"2 * hidden_size = {self.feature_size} features"
            )
        self._check_layers()
        self._check_hashing()
        if self.axial_pos_embds:
            self._check_axes()

    def _check_layers(self) -> None:
        if not self.attn_layers:
            raise ValueError("attn_layers must name at least one layer, 'lsh' or 'local'")
        for layer in self.attn_layers:
            if layer not in LAYER_TYPES:
                raise ValueError(f"attn_layers may hold 'lsh' and 'local', got {layer!r} in {list(self.attn_layers)}")
        self.num_hidden_layers = len(self.attn_layers)
        for layer in sorted(set(self.attn_layers)):
            for name, least in (("attn_chunk_length", 1), ("num_chunks_before", 0), ("num_chunks_after", 0)):
                value = getattr(self, f"{layer}_{name}")
                if value is None and least == 0:
                    continue
                if value is None or value < least:
                    raise ValueError(f"{layer}_{name} must be at least {least} for {layer} layers, got {value}")

    def _check_hashing(self) -> None:
        given = self.num_buckets
        factors = [given] if isinstance(given, int) else [] if given is None else list(given)
        if given == [] or any(factor < 2 or factor % 2 for factor in factors):
            raise ValueError(
                "num_buckets must be an even number, a list of even factors of it, or None (by the length of the "
                f"text), got {given}: each bucket has its opposite"
            )
        if self.hash_seed is not None and not -(2**63) <= self.hash_seed < 2**63:
            raise ValueError(f"hash_seed must fit 64 bits, got {self.hash_seed}")
        if self.lsh_semantics == "strict":
            if not self.is_decoder:
                raise ValueError("lsh_semantics = 'strict' looks at earlier tokens only: it wants is_decoder = True")
            for layer in set(self.attn_layers):
                after = self.options_of(layer)["chunks_after"]
                if after:
                    raise ValueError(
                        f"lsh_semantics = 'strict' looks at earlier tokens only: {layer}_num_chunks_after must be 0, "
                        f"got {after}"
                    )

    def _check_axes(self) -> None:
        shape, widths = self.axial_pos_shape, self.axial_pos_embds_dim
        if not shape or min(shape) < 1 or not widths or min(widths) < 1:
            raise ValueError(
                f"axial_pos_shape = {shape} and axial_pos_embds_dim = {widths} must hold positive numbers, "
                "one for each axis"
            )
        if len(shape) != len(widths):
            raise ValueError(
                f"axial_pos_shape = {shape} has {len(shape)} axes, axial_pos_embds_dim = {widths} has {len(widths)}"
            )
        if sum(widths) != self.hidden_size:
            raise ValueError(
                f"axial_pos_embds_dim = {widths} must sum to hidden_size = {self.hidden_size}, got {sum(widths)}"
            )
