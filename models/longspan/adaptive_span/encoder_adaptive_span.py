"""The layers of Adaptive Span, and what their spans mean for a whole model: reach, memories, loss.

B batch, T tokens, C remembered rows, E hidden size, H heads.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from longspan.adaptive_span.configuration_adaptive_span import AdaptiveSpanConfig
from longspan.layers.span import head_windows, memory_rows, trimmed_rows
from longspan.layers.span_self_attention import SpanReach, SpanSelfAttention


class AdaptiveSpanMLP(nn.Module):
    """The feed-forward layer."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.relu_dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """``[B, T, E]`` -> ``[B, T, E]``."""
        return self.down_proj(self.dropout(self.activation(self.up_proj(hidden))))


class AdaptiveSpanLayer(GradientCheckpointingLayer):
    """Attention and, unless persistent vectors stand in for it, a feed-forward layer."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.self_attn = SpanSelfAttention(
            config.hidden_size,
            config.num_attention_heads,
            max_span=config.max_span,
            ramp=config.span_ramp,
            span_mode=config.span_mode,
            span_init=config.span_init,
            bidirectional=not config.is_decoder,
            zero_cache=config.zero_cache,
            renormalise=config.span_renormalise,
            epsilon=config.span_epsilon,
            persistent=config.persistent_memory_size,
            own_positions=config.position_keys == "per_layer",
            dropout=config.attention_dropout,
        )
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = self.ffn_norm = None
        if not config.persistent_memory_size:
            self.mlp = AdaptiveSpanMLP(config)
            self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden: Tensor,
        position_key: Tensor | None,
        memory: Tensor | None,
        key_mask: Tensor | None,
        reach: SpanReach | None,
        state: Any,
        output_attentions: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``[B, T, E]`` -> ``[B, T, E]``, the spans and the weights; arguments are those of ``SpanSelfAttention``."""
        shared = (key_mask, reach, state, output_attentions)
        if self.pre_norm:
            remembered = None
            if memory is not None:  # what stands before the text stays zero
                remembered = self.attention_norm(memory.to(hidden.dtype)) * memory.any(2, keepdim=True)
            out, span, weights = self.self_attn(self.attention_norm(hidden), position_key, remembered, *shared)
            hidden = hidden + out
            if self.mlp is not None and self.ffn_norm is not None:
                hidden = hidden + self.mlp(self.ffn_norm(hidden))
            return hidden, span, weights
        out, span, weights = self.self_attn(hidden, position_key, memory, *shared)
        hidden = self.attention_norm(hidden + out)
        if self.mlp is not None and self.ffn_norm is not None:
            hidden = self.ffn_norm(hidden + self.mlp(hidden))
        return hidden, span, weights


def host_reaches(config: AdaptiveSpanConfig, layers: Iterable[nn.Module]) -> list[tuple[SpanReach, int]] | None:
    """How far each layer looks, and the rows that it remembers; None where the host cannot know.

    One look at all spans together: on a device that computes ahead it is the one moment that waits.

    Raises:
        ValueError: where a span is not a number.
    """
    if torch.compiler.is_compiling() or config.span_mode == "dynamic":
        return None
    layers = list(layers)
    ramp, longest = config.span_ramp, config.max_span
    if config.span_mode == "none":
        spans = [[float(longest)]] * len(layers)
    else:
        fractions = torch.stack([layer.self_attn.span.span_fraction.detach() for layer in layers])  # type: ignore
        if fractions.device.type == "meta":
            return None
        spans = [[fraction * longest for fraction in of_heads] for of_heads in fractions.tolist()]
        for index, of_heads in enumerate(spans):
            if not all(map(math.isfinite, of_heads)):
                raise ValueError(
                    f"layers[{index}].self_attn.span.span_fraction must be numbers, got {fractions[index].tolist()}: "
                    "training has diverged. Try a lower learning rate, or a longer warm-up"
                )
    reaches = []
    for of_heads in spans:
        trimmed = trimmed_rows(max(of_heads), ramp, longest, config.span_trim_multiple)
        rows = memory_rows(trimmed, longest, config.cache_slack) if config.adapt_cache else longest
        reaches.append((SpanReach(head_windows(of_heads, config.num_attention_heads, ramp, longest), trimmed), rows))
    return reaches


def span_loss(config: AdaptiveSpanConfig, spans: Sequence[Tensor], mask: Tensor | None) -> Tensor | None:
    """``span_loss_weight`` times the mean span of heads (and tokens), summed over layers (section 2.1).

    Args:
        config: of the model.
        spans: of each layer in tokens, ``[H]`` or ``[B, H, T]``.
        mask: bool ``[B, T]``, False at padding, which has no part in the mean.
    """
    if config.span_mode == "none":
        return None
    total = spans[0].new_zeros(())
    for span in spans:
        if span.dim() == 3 and mask is not None:
            total = total + (span * mask[:, None]).sum() / (mask.sum() * span.shape[1]).clamp(min=1)
        elif span.numel():
            total = total + span.mean()
    return config.span_loss_weight * total
