"""Reformer's parts between token ids and features: embeddings, sublayers, and the reversible stack of them.

Names of modules and parameters are those of transformers, so that published checkpoints load as they are.

B batch, H heads, T tokens, D head size, E hidden size of each of the two streams, F feed-forward size.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from longspan.layers.axial_positions import AxialPositions, LearnedPositions
from longspan.layers.decisions import Decisions, SeededDropout
from longspan.layers.local_self_attention import LocalSelfAttention
from longspan.layers.lsh_self_attention import LSHSelfAttention
from longspan.layers.reversible import reversible
from longspan.layers.stream_layer_norm import StreamLayerNorm
from longspan.reformer.configuration_reformer import ReformerConfig

FEED_FORWARD_ROWS = 1024  # tokens that a feed-forward layer takes at a time where nothing is said: they stay in cache


@dataclass
class AttentionCall:
    """What the attention of every layer is told, and what it leaves behind."""

    mask: Tensor | None  # [B, T]
    num_hashes: int | None = None
    cache: Any = None
    length: int | None = None  # of the text, where the model padded it
    attentions: list[Tensor] | None = None
    buckets: list[Tensor | None] = field(default_factory=list)


class ReformerSelfOutput(nn.Module):
    """The projection of the heads back to the stream."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.num_attention_heads * config.attention_head_size, config.hidden_size, bias=False)
        self.dropout = SeededDropout(config.hidden_dropout_prob)

    def forward(self, attended: Tensor, decisions: Decisions) -> Tensor:
        """``[B, T, H * D]`` -> ``[B, T, E]``."""
        return self.dropout(self.dense(attended), decisions)


class ReformerAttention(nn.Module):
    """A sublayer: LayerNorm, LSH or local attention, output projection. The residual is the stack's."""

    def __init__(self, config: ReformerConfig, index: int):
        super().__init__()
        self.index = index
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        sizes = (config.hidden_size, config.num_attention_heads, config.attention_head_size)
        layer = config.attn_layers[index]
        options = config.options_of(layer)
        if layer == "lsh":
            self.self_attention = LSHSelfAttention(*sizes, layer_index=index, **options)
        else:
            self.self_attention = LocalSelfAttention(*sizes, **options)
        self.output = ReformerSelfOutput(config)

    def forward(self, hidden: Tensor, decisions: Decisions, call: AttentionCall) -> Tensor:
        """``[B, T, E]`` -> ``[B, T, E]``."""
        hidden = self.layer_norm(hidden)
        options: dict[str, Any] = {}
        if isinstance(self.self_attention, LSHSelfAttention):
            options["num_hashes"] = call.num_hashes
        state = None if call.cache is None else call.cache.layers[self.index]
        attended = self.self_attention(hidden, call.mask, decisions, state=state, length=call.length, **options)
        if call.attentions is not None:
            call.attentions.append(self.self_attention.weights(hidden, call.mask, decisions, **options))
            call.buckets.append(decisions.once("buckets", lambda: None))
        return self.output(attended, decisions)


class ReformerFeedForwardDense(nn.Module):
    """The wide projection and its activation."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.feed_forward_size)
        self.dropout = SeededDropout(config.hidden_dropout_prob)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor, decisions: Decisions) -> Tensor:
        """``[B, T, E]`` -> ``[B, T, F]``."""
        return self.activation(self.dropout(self.dense(hidden), decisions))


class ReformerFeedForwardOutput(nn.Module):
    """The projection back to the stream."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.feed_forward_size, config.hidden_size)
        self.dropout = SeededDropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, decisions: Decisions) -> Tensor:
        """``[B, T, F]`` -> ``[B, T, E]``."""
        return self.dropout(self.dense(hidden), decisions)


class ReformerFeedForward(nn.Module):
    """A sublayer, token by token: LayerNorm and two projections."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.layer_norm = StreamLayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = ReformerFeedForwardDense(config)
        self.output = ReformerFeedForwardOutput(config)

    def forward(self, hidden: Tensor, decisions: Decisions) -> Tensor:
        """``[B, T, E]`` -> ``[B, T, E]``."""
        return self.output(self.dense(self.layer_norm(hidden), decisions), decisions)


class ReformerLayer(nn.Module):
    """The two sublayers of one layer, for ``reversible`` to call."""

    def __init__(self, config: ReformerConfig, index: int):
        super().__init__()
        self.attention = ReformerAttention(config, index)
        self.feed_forward = ReformerFeedForward(config)


class ReformerEncoder(nn.Module):
    """The reversible stack and the LayerNorm over both streams."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.rows = config.chunk_size_feed_forward
        self.layers = nn.ModuleList([ReformerLayer(config, index) for index in range(len(config.attn_layers))])
        self.layer_norm = StreamLayerNorm(config.feature_size, eps=config.layer_norm_eps)
        self.dropout = SeededDropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, call: AttentionCall, states: list[Tensor] | None) -> Tensor:
        """``[B, T, E]`` -> ``[B, T, 2 E]``; ``states`` receives the second stream around every layer."""
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        rows = self.rows
        if not rows and not torch.compiler.is_compiling():
            rows = max(1, FEED_FORWARD_ROWS // max(1, hidden.shape[0]))
        streams = reversible(
            self.layers, hidden, call, rows=rows, states=states, keep_activations=call.attentions is not None
        )
        return self.dropout(self.layer_norm(torch.cat(streams, -1)), Decisions())


class ReformerEmbeddings(nn.Module):
    """Words with dropout, plus positions."""

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.axial_pos_embds:
            self.position_embeddings = AxialPositions(
                config.axial_pos_shape, config.axial_pos_embds_dim, config.hidden_dropout_prob
            )
        else:
            self.position_embeddings = LearnedPositions(
                config.max_position_embeddings, config.hidden_size, config.hidden_dropout_prob
            )
        self.dropout = SeededDropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor) -> Tensor:
        """``[B, T]`` ids or ``[B, T, E]`` and positions ``[B or 1, T]`` -> ``[B, T, E]``."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return self.dropout(words, Decisions()) + self.position_embeddings(position_ids, words.shape[0])
