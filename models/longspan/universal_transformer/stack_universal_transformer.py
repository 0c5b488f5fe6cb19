"""Universal Transformer between embedded tokens and features: one layer, and the stack that applies it again and again.

B batch, T tokens, S tokens of the source, H heads, E hidden size; rows are those of a step, see
``longspan.layers.step_tokens``.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from longspan.layers.coordinates import Coordinates, Places
from longspan.layers.halting import HaltingState
from longspan.layers.multihead_attention import SelfAttention, SourceAttention
from longspan.layers.recurrence import HaltingStep, make_recurrence
from longspan.layers.step_past import StepPast
from longspan.layers.step_tokens import StepRows, StepTokens
from longspan.layers.transitions import ConvolutionTransition, FeedForward
from longspan.universal_transformer.configuration_universal_transformer import UniversalTransformerConfig


@dataclass
class StackCall:
    """What one call of a stack is told, and what it leaves behind."""

    mask: Tensor | None  # bool [B, T], False at padding
    positions: Tensor  # int64 [1 or B, T]
    num_steps: int
    source: Tensor | None = None  # [B, S, E]; None where a cache has its keys and values
    source_mask: Tensor | None = None  # bool [B, S]
    past: StepPast | None = None
    explicit: bool = False  # attention with all weights at once
    attentions: list[Tensor] | None = None  # if given, receive weights, [B, H, T, T] each
    source_attentions: list[Tensor] | None = None  # [B, H, T, S]
    states: list[Tensor] = field(default_factory=list)
    halting: HaltingState | None = None
    halting_steps: list[HaltingStep] = field(default_factory=list)


class UniversalTransformerLayer(GradientCheckpointingLayer):
    """Self-attention, in decoders attention to the source, and a transition.

    Args:
        config: of the model.
        causal: no token sees a later one.
        source: whether there is another sequence to attend to.
        transition: False: attention alone.
    """

    def __init__(self, config: UniversalTransformerConfig, *, causal: bool, source: bool, transition: bool = True):
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.pre_norm = config.norm_position == "pre"
        self.self_attn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        dropout = config.attention_probs_dropout_prob
        self.self_attn = SelfAttention(width, heads, dropout=dropout, causal=causal, window=config.window)
        self.cross_attn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if source else None
        self.cross_attn = SourceAttention(width, heads, dropout=dropout) if source else None
        self.ffn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if transition else None
        self.ffn = self._transition(config, causal) if transition else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _transition(self, config: UniversalTransformerConfig, causal: bool) -> nn.Module:
        sizes = (config.hidden_size, config.intermediate_size)
        options = {"activation": ACT2FN[config.hidden_act], "dropout": config.activation_dropout_prob}
        if config.transition == "fc":
            return FeedForward(*sizes, chunk_rows=config.chunk_size_feed_forward, **options)
        return ConvolutionTransition(*sizes, kernel_sizes=config.conv_kernels, causal=causal, **options)

    def forward(self, x: Tensor, at: StepRows, name: str, call: StackCall) -> Tensor:
        """Rows ``[..., E]`` -> the same shape; ``name`` is unique in the stack."""
        options = {"explicit": call.explicit, "weights": call.attentions}
        x = self._sublayer(x, self.self_attn_norm, lambda x: self.self_attn(x, at, name, **options))
        if self.cross_attn is not None:
            cross, options = self.cross_attn, {"explicit": call.explicit, "weights": call.source_attentions}
            x = self._sublayer(
                x, self.cross_attn_norm, lambda x: cross(x, at, f"{name}.cross", call.source_mask, **options)
            )
        if self.ffn is not None:
            ffn = self.ffn
            x = self._sublayer(x, self.ffn_norm, lambda x: ffn(x, at, f"{name}.ffn"))
        return x

    def _sublayer(self, x: Tensor, norm, sublayer) -> Tensor:
        if self.pre_norm:
            return x + self.dropout(sublayer(norm(x)))
        return norm(x + self.dropout(sublayer(x)))


class UniversalTransformerStack(nn.Module):
    """An encoder or a decoder: ordinary layers, the recurrent block, ordinary layers, LayerNorm.

    Args:
        config: of the model.
        causal: a decoder: no token sees a later one.
        source: a decoder of an encoder's output.
    """

    def __init__(self, config: UniversalTransformerConfig, *, causal: bool = False, source: bool = False):
        super().__init__()
        pre_norm = config.norm_position == "pre"
        self.recurrence = make_recurrence(
            config.recurrence,
            config.hidden_size,
            config.num_recurrent_steps,
            config.recurrence_options or {},
            normed=pre_norm,
            layer_norm_eps=config.layer_norm_eps,
        )
        self.coordinates = Coordinates(
            config.hidden_size,
            config.num_recurrent_steps,
            position=config.position_signal,
            step=config.step_signal,
            timing=config.timing,
            offset=None if config.position_offset == "random" else config.position_offset,
        )

        def layers(number: int, transition: bool = True) -> nn.ModuleList:
            options = {"causal": causal, "source": source, "transition": transition}
            return nn.ModuleList([UniversalTransformerLayer(config, **options) for _ in range(number)])

        self.block = layers(config.num_inner_layers, self.recurrence.has_transition)
        self.prelude, self.coda = layers(config.num_prelude_layers), layers(config.num_coda_layers)
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if pre_norm else None

    @property
    def max_steps(self) -> int | None:
        """Steps that there are weights for; None: any number."""
        limits = [limit for limit in (self.coordinates.max_steps, self.recurrence.max_steps) if limit is not None]
        return min(limits) if limits else None

    def forward(self, hidden: Tensor, call: StackCall) -> tuple[Tensor, Tensor]:
        """Run.

        Args:
            hidden: ``[B, T, E]``, embedded tokens without signals.
            call: the rest; receives what was asked for.

        Returns:
            The features ``[B, T, E]``, and what they were before the last LayerNorm.
        """
        # Weights are read off dense steps, which compute the same.
        packed = self.recurrence.packs and call.attentions is None
        tokens = StepTokens(call.mask, call.positions, frozen=self.recurrence.frozen, packed=packed, past=call.past)
        block = self._named("block")
        for name, layer in [*self._named("prelude"), *block, *self._named("coda")]:
            if layer.cross_attn is not None:
                layer.cross_attn.provide(tokens, f"{name}.cross", call.source)
        places = self.coordinates.places(call.positions)
        call.states.append(hidden)

        hidden = self._plain("prelude", hidden, tokens, places, call)
        outcome = self.recurrence(
            hidden,
            tokens,
            timed=lambda x, at: self.coordinates(x, at, places, call.num_steps),
            block=lambda x, at: self._layers(block, x, at, call),
            num_steps=call.num_steps,
        )
        call.states.extend(outcome.states)
        call.halting, call.halting_steps = outcome.halting, outcome.halting_steps
        hidden = self._plain("coda", outcome.output, tokens, places, call)
        tokens.finish()
        return hidden if self.final_norm is None else self.final_norm(hidden), hidden

    def _named(self, kind: str):
        return [(f"{kind}.{j}", layer) for j, layer in enumerate(getattr(self, kind))]

    def _plain(self, kind: str, hidden: Tensor, tokens: StepTokens, places: Places | None, call: StackCall) -> Tensor:
        """Ordinary layers, which get the signal of places once, always added."""
        layers = self._named(kind)
        if not layers:
            return hidden
        at = tokens.plain()
        if places is not None:
            hidden = hidden + places.signal(at, 0, hidden.shape[-1], hidden.dtype)
        for named in layers:
            hidden = self._layers([named], hidden, at, call)
            call.states.append(hidden)
        return hidden

    def _layers(self, layers: list, x: Tensor, at: StepRows, call: StackCall) -> Tensor:
        for name, layer in layers:
            x = layer(x, at, name, call)
        return x
