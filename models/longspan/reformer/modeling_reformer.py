"""Reformer (Kitaev et al. 2020): LSH and local attention in a reversible stack, for very long texts.

Names of modules and parameters are those of transformers, so that published checkpoints load as they are.

B batch, H heads, R hash rounds, T tokens, E hidden size of each of the two streams.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import can_return_tuple

from longspan.base import (
    BackboneOutput,
    LongspanPreTrainedModel,
    can_inspect,
    check_token_inputs,
    token_mask,
)
from longspan.heads import (
    CausalLMHead,
    LinearLanguageModelHead,
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from longspan.layers.arrangement import Arrangement
from longspan.layers.axial_positions import AxialTables
from longspan.ops.transfers import bounds
from longspan.reformer.configuration_reformer import ReformerConfig
from longspan.reformer.conversion import UNUSED_NAMES
from longspan.reformer.encoder_reformer import AttentionCall, ReformerEmbeddings, ReformerEncoder
from longspan.reformer.generation_reformer import ReformerGenerationMixin, check_cache, new_cache, prefill_by_length


@dataclass
class ReformerOutput(BackboneOutput):
    """As ``BackboneOutput``; ``last_hidden_state`` is ``[B, T, 2 E]``, both streams.

    Args:
        past_key_values: the cache, where one is kept.
        buckets: for each layer int32 ``[B, H, R, T]``, None for local layers; when asked for. Padding has a bucket
            behind all others. Texts of up to one chunk are not hashed: one round with one bucket.
    """

    past_key_values: Any = None
    buckets: tuple[Tensor | None, ...] | None = None


class ReformerPreTrainedModel(LongspanPreTrainedModel):
    """Base of all Reformer classes: configuration and names.

    A reversible stack computes activations again by itself: asked for gradient checkpointing, it goes on as it is.
    """

    config_class = ReformerConfig
    config: ReformerConfig
    base_model_prefix = "reformer"
    has_pooler = False
    _no_split_modules: ClassVar = ["ReformerAttention", "ReformerFeedForward"]
    _keys_to_ignore_on_load_unexpected: ClassVar = list(UNUSED_NAMES)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, AxialTables):
            for table in module:
                init.normal_(table, std=self.config.axial_norm_std)


class ReformerModel(ReformerPreTrainedModel):
    """The stack: bidirectional, or causal with ``is_decoder``."""

    def __init__(self, config: ReformerConfig):
        super().__init__(config)
        self.embeddings = ReformerEmbeddings(config)
        self.encoder = ReformerEncoder(config)
        self.gradient_checkpointing = False  # what transformers sets; nothing here reads it
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> ReformerOutput:
        """Encode a batch of texts of any length that the position embeddings reach.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding. It may stand anywhere and changes nothing, but under
                the original semantics, where chunks and positions count it. With a cache its last T columns count.
            position_ids: ``[B, T]``; by default a text's tokens count from 0.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            num_hashes: hash rounds of this call, in place of the configuration's; in training too.
            past_key_values: the cache of earlier tokens, which takes in these.
            use_cache: keep a cache and return it; by default only where one is given.
            output_attentions: also return attention weights, ``[B, H, T, T]`` for each layer, before dropout, and the
                buckets of LSH layers. For inspection: attention itself never holds T x T of anything. Activations are
                kept.
            output_hidden_states: also return the second stream before the first layer and after each,
                ``[B, T, E]``. Activations are kept, so that gradients reach these states.

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
        if num_hashes is not None and (not isinstance(num_hashes, int) or num_hashes < 1):
            raise ValueError(f"num_hashes must be an integer of at least 1, got {num_hashes!r}")
        if inputs_embeds is not None and inputs_embeds.shape[2] != config.hidden_size:
            raise ValueError(
                f"inputs_embeds must have hidden_size = {config.hidden_size} features, got {list(inputs_embeds.shape)}"
            )
        if input_ids is not None and input_ids.numel():
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        mask = token_mask(attention_mask)
        cache = past_key_values
        if use_cache and cache is None:
            cache = new_cache(config)
        if cache is not None:
            check_cache(cache, config, batch, self.training)
        continuing = cache is not None and not cache.is_empty
        if continuing and output_attentions:
            raise ValueError("output_attentions: weights are returned for whole texts, not for tokens after a cache")
        original = config.lsh_semantics == "original"
        if original and cache is not None and not continuing and mask is not None:
            return prefill_by_length(
                self,
                cache,
                lambda: new_cache(config),
                mask,
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                position_ids=position_ids,
                num_hashes=num_hashes,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )

        arrangement = None
        if not original and not continuing and Arrangement.needed(mask):
            assert mask is not None
            arrangement = Arrangement(mask)
            mask = arrangement.inward(mask)
            input_ids = None if input_ids is None else arrangement.inward(input_ids)
            inputs_embeds = None if inputs_embeds is None else arrangement.inward(inputs_embeds)
        past = cache if continuing else None
        device = (input_ids if input_ids is not None else inputs_embeds).device  # type: ignore[union-attr]
        position_ids = self._positions(position_ids, batch, length, mask, arrangement, past, device)
        hidden = self.embeddings(input_ids, inputs_embeds, position_ids)
        if original and not continuing:
            hidden, mask = self._pad(hidden, mask)

        states: list[Tensor] | None = [] if output_hidden_states else None
        call = AttentionCall(mask, num_hashes, cache, length, [] if output_attentions else None)
        features = self.encoder(hidden, call, states)

        def placed(x: Tensor, *dims: int) -> Tensor:
            """As the caller's tokens stand: without the padding of ``_pad``, and rearranged."""
            for dim in dims:
                x = x if x.shape[dim] == length else x.narrow(dim, 0, length)
                x = x if arrangement is None else arrangement.outward(x, dim)
            return x

        return ReformerOutput(
            last_hidden_state=placed(features, 1),
            hidden_states=None if states is None else tuple(placed(state, 1) for state in states),
            attentions=None if call.attentions is None else tuple(placed(x, 2, 3) for x in call.attentions),
            buckets=None if call.attentions is None else tuple(b if b is None else placed(b, 3) for b in call.buckets),
            past_key_values=cache,
        )

    def _positions(self, given, batch: int, length: int, mask, arrangement, cache, device) -> Tensor:
        """Checked position ids, ``[B, T]`` or ``[1, T]``; those of padding are in range."""
        limit = self.config.max_tokens
        if given is not None:
            if given.dim() > 2 or given.shape[-1] != length or (given.dim() == 2 and given.shape[0] not in (1, batch)):
                raise ValueError(f"position_ids must be [batch, tokens] = [{batch}, {length}], got {list(given.shape)}")
            position_ids = given if given.dim() == 2 else given[None]
            if arrangement is not None:
                position_ids = arrangement.inward(position_ids.expand(batch, -1))
        elif cache is not None:
            position_ids = cache.next_positions(mask, length)
        else:
            position_ids = torch.arange(length, device=device)[None]
            if length <= limit:
                return position_ids
        if can_inspect(position_ids) and position_ids.numel():
            real = position_ids if mask is None else position_ids.expand(batch, -1)[mask]
            low, high = bounds(real) if real.numel() else (0, 0)
            if low < 0 or high >= limit:
                names = ("axial_pos_shape", "max_position_embeddings")
                name = names[0] if self.config.axial_pos_embds else names[1]
                raise ValueError(
                    f"position_ids reach from {low} to {high}, but this model takes texts of up to {limit} tokens "
                    f"({name} = {getattr(self.config, name)}): cut the text into windows, or train with more positions"
                )
        return position_ids if mask is None else position_ids.clamp(0, limit - 1)

    def _pad(self, hidden: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The original semantics depend on the length that the original code pads texts to."""
        length, multiple = hidden.shape[1], self.config.padded_multiple
        shortest = min(self.config.options_of(layer)["chunk_length"] for layer in self.config.attn_layers)
        more = -length % multiple
        if length <= shortest or more == 0:
            return hidden, mask
        if mask is None:
            mask = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        return F.pad(hidden, (0, 0, 0, more)), F.pad(mask, (0, more))


class _ReformerWithHead(ReformerPreTrainedModel):
    backbone_class = ReformerModel
    reformer: ReformerModel


class ReformerModelWithLMHead(ReformerGenerationMixin, CausalLMHead, _ReformerWithHead):
    """Causal Reformer that scores the next word, and generates."""

    def build_head(self, config: ReformerConfig) -> None:
        if not config.is_decoder:
            raise ValueError("a causal language model needs is_decoder = True in its configuration, got False")
        for layer in sorted(set(config.attn_layers)):
            if config.options_of(layer)["chunks_after"]:
                raise ValueError(
                    f"a causal language model needs {layer}_num_chunks_after = 0, "
                    f"got {config.options_of(layer)['chunks_after']}"
                )
        super().build_head(config)


ReformerForCausalLM = ReformerModelWithLMHead  # the name that other causal models would have


class ReformerForMaskedLM(MaskedLMHead, _ReformerWithHead):
    """Bidirectional Reformer that fills in masked words."""

    def build_head(self, config: ReformerConfig) -> None:
        if config.is_decoder:
            raise ValueError("a masked language model needs is_decoder = False in its configuration, got True")
        self.lm_head = LinearLanguageModelHead(config.feature_size, config.vocab_size)


class ReformerForSequenceClassification(SequenceClassificationHead, _ReformerWithHead):
    """Reformer that labels texts, read at their first token: which sees the text in bidirectional models alone."""


class ReformerForTokenClassification(TokenClassificationHead, _ReformerWithHead):
    """Reformer that labels tokens."""


class ReformerForQuestionAnswering(QuestionAnsweringHead, _ReformerWithHead):
    """Reformer that finds answers."""


class ReformerForMultipleChoice(MultipleChoiceHead, _ReformerWithHead):
    """Reformer that chooses among texts, each read at its first token."""
