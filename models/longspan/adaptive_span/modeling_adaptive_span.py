"""Transformer with adaptive attention spans (Sukhbaatar et al. 2019a): every head learns how far it looks back.

The published causal model with its memory over streams, the all-attention variant (2019b), dynamic spans, and an
encoder whose heads look to both sides.

B batch, T tokens, C remembered rows, E hidden size, H heads, D head size, L layers, S maximum span.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import can_return_tuple

from longspan.adaptive_span.configuration_adaptive_span import AdaptiveSpanConfig
from longspan.adaptive_span.encoder_adaptive_span import AdaptiveSpanLayer, host_reaches, span_loss
from longspan.adaptive_span.generation_adaptive_span import AdaptiveSpanGenerationMixin, check_cache, new_cache
from longspan.base import BackboneOutput, LongspanPreTrainedModel, check_token_inputs, token_mask
from longspan.heads import (
    CausalLMHead,
    CausalLMOutput,
    LinearLanguageModelHead,
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    check_words,
)
from longspan.layers.adaptive_softmax import AdaptiveInput, AdaptiveLogSoftmax, WordCluster
from longspan.layers.arrangement import Arrangement
from longspan.layers.span import DynamicSpan, Span, StaticSpan
from longspan.layers.span_memory import next_memory
from longspan.layers.span_self_attention import SpanReach, SpanSelfAttention, by_distance


@dataclass
class AdaptiveSpanOutput(BackboneOutput):
    """As ``BackboneOutput``; weights of attention are ``[B, H, T, C + T]``, remembered rows first.

    Args:
        past_key_values: the cache, where one is kept.
        mems: inputs of each layer to remember for the next block, ``[B, C', E]``; with ``use_mems``.
        span_loss: ``span_loss_weight`` times the mean span, summed over layers; ``auxiliary_loss`` in training.
        spans: of each layer, in tokens: ``[H]``, or ``[B, H, T]`` where they are dynamic; when asked for.
    """

    past_key_values: Any = None
    mems: tuple[Tensor, ...] | None = None
    span_loss: Tensor | None = None
    spans: tuple[Tensor, ...] | None = None


@dataclass
class AdaptiveSpanCausalLMOutput(CausalLMOutput):
    """As ``CausalLMOutput``, with the span loss; in evaluation it is no part of ``loss``."""

    span_loss: Tensor | None = None


class AdaptiveSpanPreTrainedModel(LongspanPreTrainedModel):
    """Base of all classes: configuration, names, new weights, and what can be asked about spans."""

    config_class = AdaptiveSpanConfig
    config: AdaptiveSpanConfig
    base_model_prefix = "model"
    has_pooler = False
    _no_split_modules: ClassVar = ["AdaptiveSpanLayer"]
    _keep_in_fp32_modules_strict: ClassVar = ["span"]  # half precision cannot count tokens

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """PyTorch's own ranges for linear layers, unit normal vectors for words and positions: as the original."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AdaptiveSpanModel):
            if module.key_position_embeddings is not None:
                init.normal_(module.key_position_embeddings)
        elif isinstance(module, SpanSelfAttention | StaticSpan | DynamicSpan | WordCluster):
            module.reset_parameters()

    def _span_layers(self) -> list[Span]:
        backbone: Any = self.base_model
        return [layer.self_attn.span for layer in backbone.layers]

    def spans(self, *, ramp: bool = False) -> Tensor:
        """How far the heads look, in tokens: float ``[L, H]`` in [0, max_span], detached.

        Args:
            ramp: count the ramp too, as far as ``max_span`` reaches.

        Raises:
            ValueError: where spans are dynamic: they depend on the text.
        """
        if self.config.span_mode == "dynamic":
            raise ValueError(
                "span_mode = 'dynamic': spans depend on the text. model.base_model(input_ids, output_spans=True).spans "
                "has them, [batch, heads, tokens] for each layer"
            )
        like = next(self.parameters())
        spans = torch.stack([span(like) for span in self._span_layers()]).detach()
        return (spans + (self.config.span_ramp if ramp else 0)).clamp(0, self.config.max_span)

    def span_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of spans: for a group of their own, without weight decay and perhaps with its own rate."""
        for span in self._span_layers():
            yield from span.parameters()

    def save_pretrained(self, *args, **kwargs):
        """As in transformers; spans that training has moved out of bounds are saved within them."""
        if self.base_model.trained:
            self.clamp_spans()
        return super().save_pretrained(*args, **kwargs)

    def clamp_spans(self) -> None:
        """Put static spans back into [0, max_span], in place: after a step of an optimiser.

        Once a model is trained, every forward pass begins with it, and saving, too: a plain loop needs nothing.
        Weights that are only loaded are used as they are.
        """
        for span in self._span_layers():
            span.clamp_()


class AdaptiveSpanModel(AdaptiveSpanPreTrainedModel):
    """The stack: causal, or with ``is_decoder = False`` an encoder."""

    def __init__(self, config: AdaptiveSpanConfig):
        super().__init__(config)
        if config.adaptive_io_cutoffs is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        else:
            self.embed_tokens = AdaptiveInput(
                config.vocab_size, config.hidden_size, config.adaptive_io_cutoffs, config.adaptive_io_factor
            )
        self.key_position_embeddings = None
        if config.position_keys == "shared":
            self.key_position_embeddings = nn.Parameter(torch.empty(1, config.head_size, config.position_rows))
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([AdaptiveSpanLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = None
        if config.norm_position == "pre":
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.trained = False  # whether an optimiser may have moved spans
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mems: Sequence[Tensor] | None = None,
        use_mems: bool | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_spans: bool = False,
    ) -> AdaptiveSpanOutput:
        """Encode a batch of texts, or of blocks of streams, of any length.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding, wherever it stands: it changes nothing. With a cache
                the last T columns count.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            mems: for each layer ``[B, C, E]``, what the block before returned; causal models. None: texts begin. So
                they do in rows of the batch whose memories are set to zero: zeros are places before the text.
            use_mems: return the memories of these tokens; by default only where some are given.
            past_key_values: the cache of earlier tokens, which takes in these.
            use_cache: keep a cache and return it; by default only where one is given.
            output_attentions: also return attention weights, ``[B, H, T, C + T]`` for each layer, before dropout. For
                inspection: attention itself never holds so much of anything.
            output_hidden_states: also return what each layer takes in, and the last one's output, ``[B, T, E]``.
            output_spans: also return the spans of each layer, in tokens.

        Raises:
            ValueError: on inputs that do not fit, before anything runs.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        batch, length = check_token_inputs(input_ids, inputs_embeds, config.vocab_size)
        if attention_mask is not None and attention_mask.dim() == 2 and past_key_values is not None:
            attention_mask = attention_mask[:, -length:]
        check_token_inputs(input_ids, inputs_embeds, config.vocab_size, attention_mask=attention_mask)
        if inputs_embeds is not None and inputs_embeds.shape[2] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds must have hidden_size = {config.hidden_size} features, got {list(inputs_embeds.shape)}"
            )
        use_mems = mems is not None if use_mems is None else use_mems
        mask = token_mask(attention_mask)
        cache = past_key_values
        if use_cache and cache is None:
            cache = new_cache(config, None if config.span_mode == "dynamic" else self.spans())
        if cache is not None:
            check_cache(cache, config, batch, self.training)
        self._check_state(mems, use_mems, cache, batch, bool(output_attentions))

        if self.training and not self.trained:
            self.trained = True
        if self.trained:
            self.clamp_spans()
        arrangement = None
        if Arrangement.needed(mask):
            assert mask is not None
            arrangement = Arrangement(mask)
            mask = arrangement.inward(mask)
            input_ids = None if input_ids is None else arrangement.inward(input_ids)
            inputs_embeds = None if inputs_embeds is None else arrangement.inward(inputs_embeds)
        hidden = self.dropout(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        remembered = host_reaches(config, self.layers)
        reaches = [None] * len(self.layers) if remembered is None else [reach for reach, _ in remembered]
        position_key = self._position_key(reaches)

        states, attentions, spans, memories = [], [], [], []
        lengths = None if mask is None else mask.sum(1)
        for index, (layer, reach) in enumerate(zip(self.layers, reaches, strict=True)):
            memory = None if mems is None else mems[index]
            if use_mems:
                rows = config.max_span if remembered is None else remembered[index][1]
                memories.append(next_memory(memory, hidden, rows, lengths=lengths, zeros=config.zero_cache))
            key_mask = mask
            if memory is not None and not config.zero_cache:
                tokens = hidden.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
                key_mask = torch.cat([memory.any(2), tokens], 1)
            state = None if cache is None else cache.layers[index]
            if output_hidden_states:
                states.append(hidden)
            hidden, span, weights = layer(hidden, position_key, memory, key_mask, reach, state, output_attentions)
            spans.append(span)
            attentions.append(weights)
        if self.norm is not None:
            hidden = self.norm(hidden)
        states.append(hidden)
        loss = span_loss(config, spans, mask)

        def placed(x: Tensor, *dims: int) -> Tensor:
            """As the caller's tokens stand; remembered rows stay in front."""
            for dim in dims if arrangement is not None else ():
                old, new = x.split([x.shape[dim] - length, length], dim)
                x = torch.cat([old, arrangement.outward(new, dim)], dim)  # type: ignore[union-attr]
            return x

        return AdaptiveSpanOutput(
            last_hidden_state=placed(hidden, 1),
            hidden_states=tuple(placed(state, 1) for state in states) if output_hidden_states else None,
            attentions=tuple(placed(x, 2, 3) for x in attentions) if output_attentions else None,
            auxiliary_loss=loss if self.training else None,
            past_key_values=cache,
            mems=tuple(memories) if use_mems else None,
            span_loss=loss,
            spans=tuple(placed(x, 2) if x.dim() == 3 else x for x in spans) if output_spans else None,
        )

    def _check_state(self, mems, use_mems: bool, cache, batch: int, output_attentions: bool) -> None:
        config = self.config
        remembers = use_mems or mems is not None
        if remembers and not config.is_decoder:
            raise ValueError("mems, use_mems: an encoder sees both sides and remembers nothing; is_decoder is False")
        if cache is not None and remembers:
            raise ValueError("mems and past_key_values are two ways to carry the past: give one of them")
        if cache is not None and not cache.is_empty and output_attentions:
            raise ValueError("output_attentions: weights are returned for whole texts, not for tokens after a cache")
        if mems is None:
            return
        if len(mems) != config.num_hidden_layers:
            raise ValueError(
                f"mems must have num_hidden_layers = {config.num_hidden_layers} tensors, as the block before returned "
                f"them, got {len(mems)}"
            )
        for index, memory in enumerate(mems):
            shape = list(memory.shape) if isinstance(memory, Tensor) else type(memory).__name__
            if len(shape) != 3 or shape[0] != batch or shape[2] != config.hidden_size:
                raise ValueError(
                    f"mems[{index}] must be [batch, rows, hidden_size] = [{batch}, any, {config.hidden_size}], "
                    f"got {shape}"
                )

    def _position_key(self, reaches: Sequence[SpanReach | None]) -> Tensor | None:
        """Position keys by distance, as far as any layer looks; None where every layer has its own."""
        if self.key_position_embeddings is None:
            return None
        config = self.config
        rows = max(
            config.max_span if reach is None else layer.self_attn.rows_read(reach)  # type: ignore[operator]
            for layer, reach in zip(self.layers, reaches, strict=True)
        )
        return by_distance(self.key_position_embeddings, config.max_span, rows, bidirectional=not config.is_decoder)


class _AdaptiveSpanWithHead(AdaptiveSpanPreTrainedModel):
    backbone_class = AdaptiveSpanModel
    model: AdaptiveSpanModel


class AdaptiveSpanForCausalLM(AdaptiveSpanGenerationMixin, CausalLMHead, _AdaptiveSpanWithHead):
    """Causal model that scores the next word, carries memories over streams, and generates."""

    output_class = AdaptiveSpanCausalLMOutput
    _tied_weights_keys: ClassVar = {"lm_head.decoder.weight": "model.embed_tokens.weight"}

    def build_head(self, config: AdaptiveSpanConfig) -> None:
        if not config.is_decoder:
            raise ValueError("a causal language model needs is_decoder = True in its configuration, got False")
        super().build_head(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        if config.adaptive_io_cutoffs is not None:
            self.lm_head = AdaptiveLogSoftmax(
                config.vocab_size, config.hidden_size, config.adaptive_io_cutoffs, config.adaptive_io_factor
            )
            self._tied_weights_keys = {  # type: ignore[misc]
                f"lm_head.clusters.{i}.{name}": f"model.embed_tokens.clusters.{i}.{name}"
                for i in range(len(config.adaptive_io_cutoffs) + 1)
                for name in ("weight", "projection")
            }

    def get_output_embeddings(self):
        """None with adaptive softmax: it has no one table."""
        return None if isinstance(self.lm_head, AdaptiveLogSoftmax) else super().get_output_embeddings()

    def score(self, hidden_states, labels, num_items_in_batch):
        """As the head's; log-probabilities where the softmax is adaptive, and there none in a training step."""
        hidden_states = self.dropout(hidden_states)
        if not isinstance(self.lm_head, AdaptiveLogSoftmax) or labels is None:
            return super().score(hidden_states, labels, num_items_in_batch)
        check_words(labels, hidden_states.shape[:2], self.config.vocab_size)
        loss = self.lm_head.loss(hidden_states, labels, self.config.chunk_size_lm_head, num_items_in_batch)
        return loss, None if self.training else self.lm_head(hidden_states)


class AdaptiveSpanForMaskedLM(MaskedLMHead, _AdaptiveSpanWithHead):
    """Encoder that fills in masked words."""

    _tied_weights_keys: ClassVar = {"lm_head.decoder.weight": "model.embed_tokens.weight"}

    def build_head(self, config: AdaptiveSpanConfig) -> None:
        if config.is_decoder:
            raise ValueError("a masked language model needs is_decoder = False in its configuration, got True")
        self.lm_head = LinearLanguageModelHead(config.feature_size, config.vocab_size)


class AdaptiveSpanForSequenceClassification(SequenceClassificationHead, _AdaptiveSpanWithHead):
    """Labels texts: a causal model reads them at their last token, an encoder at their first."""


class AdaptiveSpanForTokenClassification(TokenClassificationHead, _AdaptiveSpanWithHead):
    """Labels tokens."""


class AdaptiveSpanForQuestionAnswering(QuestionAnsweringHead, _AdaptiveSpanWithHead):
    """Finds answers."""


class AdaptiveSpanForMultipleChoice(MultipleChoiceHead, _AdaptiveSpanWithHead):
    """Chooses among texts."""
