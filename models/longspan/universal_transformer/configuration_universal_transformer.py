"""Universal Transformer's configuration: its parts (encoder, decoder or both), the block, and how it recurs."""

from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN

from longspan.base import LongspanConfig
from longspan.layers.recurrence import RECURRENCES, make_recurrence

SAVING = {  # options of "act" under which halted tokens cost nothing
    "halted_state": "copy",
    "halted_kv": "reuse",
    "mix": "sum",
    "force_halt_at_max": True,
    "skip_padding": True,
    "packed": True,
}


@strict
class UniversalTransformerConfig(LongspanConfig):
    """Configuration of Universal Transformer (Dehghani et al. 2019); ``configs/universal_transformer`` holds its sizes.

    ``UniversalTransformerConfig.tensor2tensor(...)`` gives what produced the published figures, ``.efficient(...)``
    adaptive computation that saves what halted tokens would cost; both take fields as the constructor does.

    Args:
        is_encoder_decoder: both parts. Classes that need one take it: a masked language model the encoder, a causal
            one the decoder. False: the encoder alone, or with ``is_decoder`` the decoder alone.
        is_decoder: without an encoder: causal attention, no token sees a later one.
        vocab_size: number of token ids.
        hidden_size: width of the state.
        intermediate_size: width between the two layers of the transition.
        num_attention_heads: heads, a divisor of ``hidden_size``.
        num_recurrent_steps: how often the block is applied; with ``recurrence = "act"`` at most.
        recurrence: "basic": a fixed number of times. "act": adaptive computation time, each token until it halts.
            "highway", "skip": through a gate. "gru", "lstm": as the input of a recurrent cell. "dwa": each step reads
            all earlier ones. Each is a class of ``longspan.layers.recurrence``.
        recurrence_options: what that class takes, e.g. ``{"mix": "sum"}``; see there.
        num_inner_layers: layers of the block, with weights of their own.
        num_prelude_layers: ordinary layers before the recurrence.
        num_coda_layers: ordinary layers after it.
        transition: "fc": two dense layers at each token. "sepconv": two separable convolutions along the text.
        conv_kernels: tokens that each of the convolutions sees.
        hidden_act: activation of the transition, by transformers' name.
        norm_position: "pre": sublayers take in a LayerNorm of the state, and the output has one (tensor2tensor).
            "post": LayerNorm after each residual sum (the paper's equations).
        layer_norm_eps: epsilon of the LayerNorms.
        position_signal: what a token's place adds at every step: "tensor2tensor", "paper" (see
            ``longspan.layers.coordinates.sinusoid``) or "none". Any length: there is no table.
        step_signal: what the step adds: "learned": a table of ``num_recurrent_steps`` rows. "sinusoid": as the place;
            ``max_recurrent_steps`` may go beyond what was trained. "none".
        timing: "add"; or "concat": signals stand beside the state, and a projection leads back.
        position_offset: "random": in training a text's places begin at a random one, the same in encoder and decoder,
            so that longer texts than those of training have known places. "random_each_step": drawn again at every
            step, for all texts together (tensor2tensor). "step": they move on with the steps, in evaluation too, by
            the padded length. None: at 0.
        max_position_offset: "random" draws from ``[0, max_position_offset)``; None: below the padded length.
        window: tokens that self-attention sees to each side (in a decoder: back), beside the own one; then long
            texts cost in proportion to their length. None: all.
        scale_embedding: word vectors times the root of ``hidden_size``.
        share_embeddings: source and target have one table of word vectors.
        num_target_spaces: rows of a table whose row ``target_space_id`` is added to every source token
            (tensor2tensor has 32); 0: none.
        target_space_id: row of it where a call names none.
        tie_word_embeddings: words are scored by the word vectors.
        text_reading: where heads read a text: its "first" token, its "last", or the "mean" of all; None: "last" in
            decoders, else "first".
        hidden_dropout_prob: dropout of the embedded text and of sublayers.
        attention_probs_dropout_prob: dropout of attention weights.
        activation_dropout_prob: dropout inside the transition.
        label_smoothing: of language models: probability that goes evenly to the other words. The least loss is
            subtracted, so that a perfect model has 0. tensor2tensor: 0.1.
        chunk_size_feed_forward: tokens that the transition "fc" takes at a time; 0: all.
        pad_token_id: id of padding; its vector is zero.
        bos_token_id: id of the token that begins a text, if there is one.
        eos_token_id: id of the token that ends a text.
        decoder_start_token_id: what a decoder begins with; the padding token: with a zero vector, as tensor2tensor's.
        use_cache: whether ``generate`` keeps what it computed for earlier tokens.
    """

    model_type = "longspan_universal_transformer"
    attribute_map: ClassVar = {"num_hidden_layers": "num_recurrent_steps"}
    keys_to_ignore_at_inference: ClassVar = [  # of outputs: what transformers' Trainer does not gather as predictions
        *("past_key_values", "auxiliary_loss", "ponder_loss", "encoder_last_hidden_state"),
        *("n_updates", "remainders", "halting_probabilities"),
        *(f"{part}_{name}" for part in ("encoder", "decoder") for name in ("n_updates", "remainders")),
    ]

    is_encoder_decoder: bool = True
    is_decoder: bool = False
    vocab_size: int = 32000
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    num_recurrent_steps: int = 6
    recurrence: str = "basic"
    recurrence_options: dict[str, Any] | None = None
    num_inner_layers: int = 1
    num_prelude_layers: int = 0
    num_coda_layers: int = 0
    transition: Literal["fc", "sepconv"] = "fc"
    conv_kernels: list[int] | tuple[int, ...] = (3, 5)
    hidden_act: str = "relu"
    norm_position: Literal["pre", "post"] = "pre"
    layer_norm_eps: float = 1e-6
    position_signal: Literal["tensor2tensor", "paper", "none"] = "tensor2tensor"
    step_signal: Literal["learned", "sinusoid", "none"] = "learned"
    timing: Literal["add", "concat"] = "add"
    position_offset: Literal["random", "random_each_step", "step"] | None = None
    max_position_offset: int | None = None
    window: int | None = None
    scale_embedding: bool = True
    share_embeddings: bool = True
    num_target_spaces: int = 0
    target_space_id: int = 0
    tie_word_embeddings: bool = True
    text_reading: Literal["first", "last", "mean"] | None = None
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    activation_dropout_prob: float | int = 0.1
    label_smoothing: float | int = 0.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        self.conv_kernels = list(self.conv_kernels)
        self.recurrence_options = dict(self.recurrence_options or {})
        super().__post_init__(**kwargs)

    @classmethod
    def tensor2tensor(cls, **fields: Any) -> "UniversalTransformerConfig":
        """What tensor2tensor computes, which gave the published figures; fields as the constructor takes them.

        Padding takes part in halting and in the ponder cost; word vectors, scores and loss as in its models.
        """
        options = {"skip_padding": False} if fields.get("recurrence") == "act" else {}
        fields["recurrence_options"] = options | dict(fields.get("recurrence_options") or {})
        return cls(**{"label_smoothing": 0.1, "num_target_spaces": 32} | fields)

    @classmethod
    def efficient(cls, **fields: Any) -> "UniversalTransformerConfig":
        """Adaptive computation time in which halted tokens and padding cost nothing.

        Halted states stay what they are, as the paper says, and their keys and values are used again; outputs are
        weighted sums, and the last step halts all. Fields as the constructor takes them.
        """
        fields["recurrence_options"] = SAVING | dict(fields.get("recurrence_options") or {})
        return cls(**({"recurrence": "act"} | fields))  # pyright: ignore[reportArgumentType]

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def text_token(self) -> str:
        """Where heads read a text: "first", "last" or "mean"."""
        return self.text_reading or super().text_token

    def check(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_recurrent_steps",
                     "num_inner_layers"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_prelude_layers", "num_coda_layers", "num_target_spaces", "chunk_size_feed_forward"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout_prob",
                     "label_smoothing"):  # fmt: skip
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} must divide hidden_size = {self.hidden_size}"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act = {self.hidden_act!r} is none of {sorted(ACT2FN)}")
        if len(self.conv_kernels) != 2 or min(self.conv_kernels) < 1:
            raise ValueError(f"conv_kernels must be two positive numbers of tokens, got {self.conv_kernels}")
        if self.window is not None and self.window < 0:
            raise ValueError(f"window must be a number of tokens to each side, 0 or more, or None; got {self.window}")
        if self.is_decoder and self.is_encoder_decoder:
            raise ValueError("is_decoder = True means a decoder without an encoder: is_encoder_decoder must be False")
        self._check_ids()
        self._check_offset()
        self._check_recurrence()

    def _check_ids(self) -> None:
        for name in ("pad_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} = {value} must be None or lie in [0, vocab_size) with vocab_size = {self.vocab_size}"
                )
        if self.num_target_spaces and not 0 <= self.target_space_id < self.num_target_spaces:
            raise ValueError(
                f"target_space_id = {self.target_space_id} must lie in [0, num_target_spaces) with "
                f"num_target_spaces = {self.num_target_spaces}"
            )

    def _check_offset(self) -> None:
        if self.max_position_offset is not None:
            if self.position_offset != "random":
                raise ValueError(
                    f"max_position_offset = {self.max_position_offset} is for position_offset = 'random', "
                    f"got {self.position_offset!r}"
                )
            if self.max_position_offset < 1:
                raise ValueError(f"max_position_offset must be at least 1 or None, got {self.max_position_offset}")
        if self.position_offset is not None and self.position_signal == "none":
            raise ValueError(f"position_offset = {self.position_offset!r} needs a position_signal, got 'none'")

    def _check_recurrence(self) -> None:
        if self.recurrence not in RECURRENCES:
            raise ValueError(f"recurrence must be one of {', '.join(RECURRENCES)}, got {self.recurrence!r}")
        with torch.device("meta"):
            recurrence = make_recurrence(self.recurrence, 1, 1, self.recurrence_options or {})
        if not recurrence.takes_step_signal and self.step_signal != "none":
            raise ValueError(
                f"recurrence = {self.recurrence!r} counts steps by itself: step_signal must be 'none', "
                f"got {self.step_signal!r}"
            )
        if not recurrence.has_inner_layers and self.num_inner_layers != 1:
            raise ValueError(
                f"recurrence = {self.recurrence!r} has one layer of attention: num_inner_layers must be 1, "
                f"got {self.num_inner_layers}"
            )
