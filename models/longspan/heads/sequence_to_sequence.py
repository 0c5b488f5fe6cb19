"""The head that writes a text for a text: what a decoder scores, given what an encoder read.

B batch, S tokens of the source, T tokens of the target, E hidden size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput, can_return_tuple

from longspan.heads.base import IGNORED, with_auxiliary
from longspan.heads.language_models import LinearLanguageModelHead, WordHead, check_words


@dataclass
class SequenceToSequenceOutput(ModelOutput):
    """``loss`` (with labels; ``auxiliary_loss`` is in it), ``logits [B, T, V]``, and what the backbone returned."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


def shift_right(labels: Tensor, start: int | None, pad: int | None) -> Tensor:
    """What a decoder reads to predict ``labels [B, T]``: the start token, then all labels but the last.

    Raises:
        ValueError: where the configuration names no start or padding token.
    """
    if start is None:
        raise ValueError("labels without decoder_input_ids need decoder_start_token_id in the configuration, got None")
    shifted = F.pad(labels[:, :-1], (1, 0), value=start)
    if pad is not None:
        return shifted.masked_fill(shifted == IGNORED, pad)
    if bool((shifted == IGNORED).any()):
        raise ValueError(f"labels with {IGNORED} (not scored) need pad_token_id in the configuration, got None")
    return shifted


class SequenceToSequenceHead(WordHead):
    """Scores of all words to come next in the target, at each of its tokens."""

    output_class = SequenceToSequenceOutput

    def build_head(self, config) -> None:
        self.lm_head = LinearLanguageModelHead(config.feature_size, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"  # which takes labels that are shifted already

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """``[B, T]`` -> ``[B, T]``; collators of transformers call it."""
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        max_recurrent_steps: int | None = None,
        target_space_id: int | Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Score the words of the target: ``logits [B, T, V]``.

        Args:
            input_ids: ``[B, S]``, the source.
            attention_mask: ``[B, S]``, 1 = a token, 0 = padding.
            decoder_input_ids: ``[B, T]``; by default ``labels`` behind the start token.
            decoder_attention_mask: ``[B, T]``; by default the padding behind ``labels`` is left out.
            inputs_embeds: ``[B, S, E]`` in place of ``input_ids``.
            decoder_inputs_embeds: ``[B, T, E]`` in place of ``decoder_input_ids``.
            encoder_outputs: what the encoder made of the source, in place of the source.
            past_key_values: the cache of earlier tokens of the target, which takes in these.
            use_cache: keep a cache and return it; by default only where one is given.
            max_recurrent_steps: steps of this call, in both parts; for architectures that are recurrent in depth.
            target_space_id: what is asked of the source, an integer or ``[B]``; for architectures that know spaces.
            labels: ``[B, T]``, the words of the target (not shifted), -100: not scored.
            logits_to_keep: score only the last so many tokens, or those of these indices; 0: all. Not with labels.
            output_attentions: also return attention weights.
            output_hidden_states: also return the hidden states of all layers.
            num_items_in_batch: what the loss is divided by, where a batch is one of several of a step.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            check_words(labels, labels.shape, self.config.vocab_size)  # before they are the decoder's words
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if decoder_attention_mask is None:
                decoder_attention_mask = self.label_mask(labels)
        outputs: Any = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            max_recurrent_steps=max_recurrent_steps,
            target_space_id=target_space_id,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        hidden_states = outputs.last_hidden_state
        if labels is None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            hidden_states = hidden_states[:, keep]
        loss, logits = self.score(hidden_states, labels, num_items_in_batch)
        loss = with_auxiliary(loss, outputs, labels, num_items_in_batch)
        return self.answer(outputs, loss=loss, logits=logits)

    def label_mask(self, labels: Tensor) -> Tensor | None:
        """Which tokens of the target are no padding behind ``labels [B, T]``; None: the architecture need not know."""
        counted = labels != IGNORED
        return counted.flip(1).cumsum(1).flip(1) > 0
