"""Universal Transformer (Dehghani et al. 2019): recurrent in depth, with adaptive computation time.

B batch, T tokens, S tokens of the source, E hidden size, V vocabulary.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.utils import can_return_tuple

from longspan.base import LongspanPreTrainedModel, check_range, token_mask
from longspan.layers.halting import ponder_cost
from longspan.layers.recurrence import ActRecurrence
from longspan.universal_transformer.configuration_universal_transformer import UniversalTransformerConfig
from longspan.universal_transformer.generation_universal_transformer import (
    begin_cache,
)
from longspan.universal_transformer.inputs_universal_transformer import Text, UniversalTransformerEmbeddings
from longspan.universal_transformer.outputs_universal_transformer import (
    UniversalTransformerOutput,
    UniversalTransformerSequenceToSequenceOutput,
)
from longspan.universal_transformer.stack_universal_transformer import StackCall, UniversalTransformerStack


@dataclass
class _Wanted:
    """What a call wants to see beside its result."""

    attentions: bool
    hidden_states: bool
    halting: bool

    @classmethod
    def of(cls, config: UniversalTransformerConfig, attentions: bool | None, hidden_states: bool | None, halting: bool):
        return cls(
            config.output_attentions if attentions is None else attentions,  # pyright: ignore
            config.output_hidden_states if hidden_states is None else hidden_states,  # pyright: ignore
            halting,
        )


class UniversalTransformerPreTrainedModel(LongspanPreTrainedModel):
    """Base of all Universal Transformer classes: configuration, names, new weights."""

    config_class = UniversalTransformerConfig
    config: UniversalTransformerConfig
    base_model_prefix = "universal_transformer"
    has_pooler = False
    _no_split_modules: ClassVar = ["UniversalTransformerLayer"]
    _supports_sdpa = True

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Any = None, **options: Any):
        """Each layer of each step, never re-entrantly: steps share tensors, which that could not differentiate."""
        given = gradient_checkpointing_func
        keywords = given.keywords if isinstance(given, partial) else {}
        func = partial(checkpoint, **{**keywords, "use_reentrant": False})
        super()._set_gradient_checkpointing(enable, func, **options)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """tensor2tensor's: kernels by Glorot, biases 0, tables with the variance 1 / width."""
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.constant_(module.bias, getattr(module, "initial_bias", 0.0))
        elif isinstance(module, nn.Conv1d):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)


class UniversalTransformerModel(UniversalTransformerPreTrainedModel):
    """Encoder and decoder; by its configuration the decoder alone (``is_decoder``), or the encoder alone."""

    def __init__(self, config: UniversalTransformerConfig):
        super().__init__(config)
        self.has_encoder, self.has_decoder = not config.is_decoder, config.is_encoder_decoder or config.is_decoder
        spaces = config.num_target_spaces if config.is_encoder_decoder else 0
        self.embeddings = UniversalTransformerEmbeddings(config, spaces)
        self.target_embeddings = None
        if config.is_encoder_decoder and not config.share_embeddings:
            self.target_embeddings = UniversalTransformerEmbeddings(config)
        if self.has_encoder:
            self.encoder = UniversalTransformerStack(config)
        if self.has_decoder:
            self.decoder = UniversalTransformerStack(config, causal=True, source=config.is_encoder_decoder)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def get_encoder(self, *args, **kwargs):
        """What encodes a source: called with ``input_ids`` and the rest, as ``generate`` does."""
        return _EncoderOf(self) if self.config.is_encoder_decoder else self

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        max_recurrent_steps: int | None = None,
        target_space_id: int | Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_halting: bool = False,
    ) -> Any:
        """Run over a batch of texts of any length.

        Args:
            input_ids: ``[B, T]``; with both parts the source, ``[B, S]``.
            attention_mask: 1 = a token, 0 = padding, shaped alike. Padding on either side changes nothing, but where
                ``skip_padding`` is off or ``position_offset`` is "step". In a decoder alone with a cache its last T
                columns count.
            decoder_input_ids: ``[B, T]``, the target.
            decoder_attention_mask: ``[B, T]``; with a cache its last T columns count.
            position_ids: ``[B, T]`` of ``input_ids``; by default tokens count from 0.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``, scaled already.
            decoder_inputs_embeds: the same of ``decoder_input_ids``.
            encoder_outputs: what the encoder returned for the source, or a tuple that begins with ``[B, S, E]``.
            past_key_values: the cache of earlier tokens, which takes in these.
            use_cache: keep a cache and return it; by default only where one is given.
            max_recurrent_steps: steps of this call, in place of ``num_recurrent_steps``; more only where no learned
                table of steps ends.
            target_space_id: row of the table of target spaces, an integer or ``[B]``.
            output_attentions: also return attention weights, ``[B, H, T, T]`` for each layer and step done.
            output_hidden_states: also return the embedded text and the state after each layer or step done.
            output_halting: also return each step's halting probabilities.

        Raises:
            ValueError: on inputs that do not fit, before anything runs.
        """
        wanted = _Wanted.of(self.config, output_attentions, output_hidden_states, output_halting)
        numbers = {"past_key_values": past_key_values, "use_cache": use_cache, "steps": max_recurrent_steps}
        if self.config.is_encoder_decoder:
            if position_ids is not None:
                raise ValueError("position_ids are of one text: an encoder with a decoder counts both by itself")
            offset = None
            if encoder_outputs is None:
                text = Text.checked(self.config, input_ids, inputs_embeds, attention_mask)
                offset = self._draw_offset(text)
                encoder_outputs = self._encode(text, offset, target_space_id, max_recurrent_steps, wanted)
            text = Text.checked(
                self.config,
                decoder_input_ids,
                decoder_inputs_embeds,
                decoder_attention_mask,
                prefix="decoder_",
                cached=past_key_values is not None,
            )
            return self._decode_source(encoder_outputs, attention_mask, text, offset, wanted, **numbers)
        given = {"decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask,
                 "decoder_inputs_embeds": decoder_inputs_embeds, "encoder_outputs": encoder_outputs}  # fmt: skip
        if self.has_encoder:
            given |= {"past_key_values": past_key_values, "use_cache": use_cache or None}
        for name, value in given.items():
            if value is not None:
                kind = "an encoder" if self.has_encoder else "a decoder"
                raise ValueError(f"{name} means nothing to {kind} alone (is_encoder_decoder = False)")
        cached = past_key_values is not None
        text = Text.checked(self.config, input_ids, inputs_embeds, attention_mask, position_ids, cached=cached)
        offset = self._draw_offset(text)
        if self.has_encoder:
            return self._encode(text, offset, target_space_id, max_recurrent_steps, wanted)
        return self._decode(text, None, None, offset, wanted, **numbers)[0]

    def _encode(
        self, text: Text, offset: Tensor | None, space: int | Tensor | None, steps: int | None, wanted: _Wanted
    ) -> UniversalTransformerOutput:
        if text.input_ids is not None and text.input_ids.numel():
            self.warn_if_padding_and_no_attention_mask(text.input_ids, text.attention_mask)
        hidden = self.embeddings(text.input_ids, text.inputs_embeds, self._space(space, text))
        call = self._call(self.encoder, text, offset, steps, wanted)
        return self._output(self.encoder, self.encoder(hidden, call)[0], call, wanted)

    def _decode(
        self,
        text: Text,
        source: Tensor | None,
        source_mask: Tensor | None,
        offset: Tensor | None,
        wanted: _Wanted,
        *,
        past_key_values: Any,
        use_cache: bool | None,
        steps: int | None,
    ) -> tuple[UniversalTransformerOutput, StackCall]:
        call = self._call(self.decoder, text, offset, steps, wanted)
        numbers = {"batch": text.batch, "num_steps": call.num_steps, "training": self.training}
        cache = begin_cache(self.config, past_key_values, use_cache, **numbers)
        if cache is not None:
            if wanted.attentions and cache.past.columns:
                raise ValueError(
                    "output_attentions: weights are returned for whole texts, not for tokens after a cache"
                )
            call.past = cache.past
            if text.position_ids is None:
                call.positions = cache.past.next_positions(text.mask, text.batch, text.length, text.device)
        call.source, call.source_mask = source, source_mask
        embeddings = self.embeddings if self.target_embeddings is None else self.target_embeddings
        features, _ = self.decoder(embeddings(text.input_ids, text.inputs_embeds), call)
        outputs = self._output(self.decoder, features, call, wanted)
        outputs.past_key_values = cache
        return outputs, call

    def _decode_source(
        self, encoded: Any, attention_mask: Tensor | None, text: Text, offset: Tensor | None, wanted: _Wanted, **numbers
    ) -> UniversalTransformerSequenceToSequenceOutput:
        source: Tensor = encoded[0]
        width = self.config.hidden_size
        if isinstance(encoded, Tensor) or source.dim() != 3 or source.shape[2] != width:
            raise ValueError(
                "encoder_outputs must be what the encoder returned, or a tuple that begins with "
                f"[batch, source tokens, hidden_size = {width}], got {type(encoded).__name__} with "
                f"{list(source.shape)} first"
            )
        if attention_mask is not None and attention_mask.shape != source.shape[:2]:
            raise ValueError(
                f"attention_mask must be [batch, source tokens] = {list(source.shape[:2])}, "
                f"got {list(attention_mask.shape)}"
            )
        if text.batch != source.shape[0]:
            raise ValueError(f"the source has {source.shape[0]} rows, the target {text.batch}")
        offset = self._draw_offset(text) if offset is None else offset
        decoded, call = self._decode(text, source, token_mask(attention_mask), offset, wanted, **numbers)
        losses = [loss for loss in (getattr(encoded, "ponder_loss", None), decoded.ponder_loss) if loss is not None]
        ponder_loss = sum(losses[1:], losses[0]) if losses else None
        parts = ("n_updates", "remainders", "halting_probabilities", "hidden_states", "attentions")
        return UniversalTransformerSequenceToSequenceOutput(
            last_hidden_state=decoded.last_hidden_state,
            past_key_values=decoded.past_key_values,
            cross_attentions=None if call.source_attentions is None else tuple(call.source_attentions),
            encoder_last_hidden_state=source,
            auxiliary_loss=ponder_loss,
            ponder_loss=ponder_loss,
            **{f"encoder_{name}": getattr(encoded, name, None) for name in parts},
            **{f"decoder_{name}": getattr(decoded, name) for name in parts},
        )

    def _call(
        self, stack: UniversalTransformerStack, text: Text, offset: Tensor | None, steps: int | None, wanted: _Wanted
    ) -> StackCall:
        positions = text.positions() if offset is None else text.positions() + offset
        explicit = self.config._attn_implementation == "eager"
        call = StackCall(text.mask, positions, self._num_steps(stack, steps), explicit=explicit)
        if wanted.attentions:
            call.attentions, call.source_attentions = [], []
        return call

    def _num_steps(self, stack: UniversalTransformerStack, steps: int | None) -> int:
        if steps is None:
            return self.config.num_recurrent_steps
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"max_recurrent_steps must be an integer of at least 1, got {steps!r}")
        limit = stack.max_steps
        if limit is not None and steps > limit:
            raise ValueError(
                f"max_recurrent_steps = {steps}, but this model has learned signals for {limit} steps alone "
                "(step_signal = 'learned', or depth_embedding of 'dwa'): train one with step_signal = 'sinusoid', "
                "which goes on"
            )
        return steps

    def _space(self, space: int | Tensor | None, text: Text) -> Tensor | None:
        table = self.embeddings.target_space
        if table is None:
            if space is not None:
                raise ValueError("target_space_id: this model has no table of target spaces (num_target_spaces = 0)")
            return None
        rows = torch.as_tensor(self.config.target_space_id if space is None else space)  # looked at where it is
        if rows.dim() > 1 or rows.is_floating_point() or (rows.dim() == 1 and len(rows) not in (1, text.batch)):
            raise ValueError(f"target_space_id must be an integer or [{text.batch}] integers, got {space!r}")
        check_range("target_space_id", rows, table.num_embeddings, "num_target_spaces")
        return rows.to(text.device, non_blocking=rows.device.type == "cpu")

    def _draw_offset(self, text: Text) -> Tensor | None:
        """In training, where the places of each text begin, ``[B, 1]``."""
        if self.config.position_offset != "random" or not self.training:
            return None
        end = self.config.max_position_offset or max(1, text.length)
        return torch.randint(end, (text.batch, 1), device=text.device)

    def _output(
        self, stack: UniversalTransformerStack, features: Tensor, call: StackCall, wanted: _Wanted
    ) -> UniversalTransformerOutput:
        outputs = UniversalTransformerOutput(
            last_hidden_state=features,
            hidden_states=tuple(call.states) if wanted.hidden_states else None,
            attentions=None if call.attentions is None else tuple(call.attentions),
        )
        recurrence, halting = stack.recurrence, call.halting
        if isinstance(recurrence, ActRecurrence) and halting is not None:
            mask = call.mask if recurrence.skip_padding else None
            if mask is not None and halting.n_updates.dim() == 1:
                mask = mask.any(1)
            loss = recurrence.loss_weight * ponder_cost(halting.n_updates, halting.remainders, mask)
            outputs.ponder_loss = outputs.auxiliary_loss = loss
            outputs.n_updates, outputs.remainders = halting.n_updates, halting.remainders
            if wanted.halting:
                outputs.halting_probabilities = tuple(step.probability for step in call.halting_steps)
        return outputs


class _EncoderOf(nn.Module):
    """The encoder of a model as something that takes ids: a view, whose parameters are those of the encoder's part."""

    main_input_name = "input_ids"

    def __init__(self, model: UniversalTransformerModel):
        super().__init__()
        object.__setattr__(self, "model", model)  # not as a part: it has the decoder, too
        self.embeddings, self.encoder = model.embeddings, model.encoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        max_recurrent_steps: int | None = None,
        target_space_id: int | Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As ``UniversalTransformerModel.forward``."""
        model: Any = self.model
        wanted = _Wanted.of(model.config, output_attentions, output_hidden_states, False)
        text = Text.checked(model.config, input_ids, inputs_embeds, attention_mask)
        outputs = model._encode(text, model._draw_offset(text), target_space_id, max_recurrent_steps, wanted)
        return outputs if return_dict else outputs.to_tuple()


def part_of(config: UniversalTransformerConfig, part: Literal["encoder", "decoder"]) -> UniversalTransformerConfig:
    """The configuration of one part alone; one that has both gives up the other, one that has the other is refused."""
    if config.is_encoder_decoder:
        config = copy.deepcopy(config)
        config.is_encoder_decoder, config.is_decoder = False, part == "decoder"
    return config


class UniversalTransformerEncoderModel(UniversalTransformerModel):
    """The encoder alone."""

    _keys_to_ignore_on_load_unexpected: ClassVar = [
        r"decoder\.",
        r"lm_head\.",
        r"target_embeddings\.",
        r"target_space\.",
    ]

    def __init__(self, config: UniversalTransformerConfig):
        config = part_of(config, "encoder")
        if config.is_decoder:
            raise ValueError("UniversalTransformerEncoderModel needs is_decoder = False in its configuration, got True")
        super().__init__(config)
