"""Task heads over any backbone: logits and losses, nothing about text.

A head class is a mixin over an architecture's ``LongspanPreTrainedModel``, e.g.

    class LongformerForTokenClassification(TokenClassificationHead, LongformerPreTrainedModel):
        ...

It builds the architecture's ``backbone_class`` under ``base_model_prefix`` and passes it what it is given: an argument
that the architecture does not know (token types, global tokens) fails there, unless it is None.

B batch, T tokens, E hidden size, V vocabulary, L labels, C choices.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from longspan.base import BackboneOutput, LongspanPreTrainedModel, first_token


@dataclass
class LogitsOutput(ModelOutput):
    """``loss`` (with labels), ``logits``, and what the backbone was asked to return (see ``BackboneOutput``)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


@dataclass
class SpanOutput(ModelOutput):
    """``loss`` (with positions), ``start_logits`` and ``end_logits [B, T]``, and what the backbone was asked for."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None


class _Head(LongspanPreTrainedModel):
    needs_pooler = False

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(self, self.base_model_prefix, self.backbone_class(config, add_pooling_layer=self.needs_pooler))
        self.build_head(config)
        self.post_init()

    def build_head(self, config) -> None:
        raise NotImplementedError

    def encode(self, **inputs: Any) -> BackboneOutput:
        """Run the backbone on those inputs that are given, and on the architecture's defaults."""
        inputs = self.complete_inputs(inputs)
        return self.base_model(**{name: value for name, value in inputs.items() if value is not None}, return_dict=True)


def _traces(outputs: BackboneOutput) -> dict[str, Any]:
    return {name: getattr(outputs, name) for name in ("hidden_states", "attentions", "global_attentions")}


class LanguageModelHead(nn.Module):
    """Dense, GELU, LayerNorm, and scores of all words by weights that may be the word embeddings (RoBERTa's head)."""

    def __init__(self, hidden_size: int, vocab_size: int, layer_norm_eps: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.decoder = nn.Linear(hidden_size, vocab_size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., E]`` -> ``[..., V]``."""
        return self.decoder(self.layer_norm(F.gelu(self.dense(hidden_states))))


class MaskedLMHead(_Head):
    """Scores of all words at every token."""

    accepts_loss_kwargs = True

    def build_head(self, config) -> None:
        self.lm_head = LanguageModelHead(config.hidden_size, config.vocab_size, config.layer_norm_eps)

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LanguageModelHead):
            init.zeros_(module.bias)

    def get_output_embeddings(self):
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings):
        self.lm_head.decoder = new_embeddings
        self.lm_head.bias = new_embeddings.bias

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> LogitsOutput:
        """Score all words: ``logits [B, T, V]``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 = a token, 0 = padding.
            global_attention_mask: ``[B, T]``, 1 = a global token; for architectures that have them.
            token_type_ids: ``[B, T]``, which text a token belongs to.
            position_ids: ``[B, T]``, where the model's own count is not wanted.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            labels: ``[B, T]``, the word at each masked token, -100 elsewhere.
            output_attentions: also return attention weights.
            output_hidden_states: also return the hidden states of all layers.
            num_items_in_batch: what the loss is divided by, where a batch is one of several of a step.
        """
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch
            )
        return LogitsOutput(loss=loss, logits=logits, **_traces(outputs))


class TokenClassificationHead(_Head):
    """A label for every token."""

    accepts_loss_kwargs = True

    def build_head(self, config) -> None:
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | None = None,
    ) -> LogitsOutput:
        """Label tokens: ``logits [B, T, L]``; ``labels [B, T]``, -100: ignored; the rest as in ``MaskedLMHead``."""
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return LogitsOutput(loss=loss, logits=logits, **_traces(outputs))


class QuestionAnsweringHead(_Head):
    """Where in the text the answer begins and ends."""

    def build_head(self, config) -> None:
        self.qa_outputs = nn.Linear(config.hidden_size, 2)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SpanOutput:
        """Find a span: ``start_logits, end_logits [B, T]``.

        ``start_positions [B]`` and ``end_positions [B]`` are the answer's first and last token (T or more: no answer
        here, ignored); the other arguments are those of ``MaskedLMHead``.
        """
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        start_logits, end_logits = (x.contiguous() for x in self.qa_outputs(outputs.last_hidden_state).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return SpanOutput(loss=loss, start_logits=start_logits, end_logits=end_logits, **_traces(outputs))


class ClassificationHead(nn.Module):
    """Dense, tanh and scores of the labels, from one vector per text (RoBERTa's head)."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, E]`` -> ``[B, L]``."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(text)))))


class SequenceClassificationHead(_Head):
    """One label, several labels or a number for a whole text, read at its first token."""

    def build_head(self, config) -> None:
        self.classifier = ClassificationHead(config.hidden_size, config.num_labels, config.hidden_dropout_prob)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> LogitsOutput:
        """Label texts: ``logits [B, L]``.

        ``labels``: ``[B]`` integers (one of L labels), ``[B, L]`` floats (several labels) or ``[B]`` floats with L = 1
        (a number); ``config.problem_type`` decides, or, unset, their type. The rest as in ``MaskedLMHead``.
        """
        outputs = self.encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(first_token(outputs.last_hidden_state, attention_mask))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return LogitsOutput(loss=loss, logits=logits, **_traces(outputs))


class MultipleChoiceHead(_Head):
    """Which of C texts fits."""

    needs_pooler = True

    def build_head(self, config) -> None:
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> LogitsOutput:
        """Choose: ``logits [B, C]`` from inputs ``[B, C, T]`` (``inputs_embeds [B, C, T, E]``).

        ``labels [B]`` is the number of the right choice; the rest as in ``MaskedLMHead``, with a dimension C more.
        """
        per_token = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "global_attention_mask": global_attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
        }
        for name, tensor in per_token.items():
            if tensor is not None and tensor.dim() != 3:
                raise ValueError(f"{name} must be [batch, choices, tokens], got {list(tensor.shape)}")
        if inputs_embeds is not None and inputs_embeds.dim() != 4:
            raise ValueError(
                f"inputs_embeds must be [batch, choices, tokens, hidden size], got {list(inputs_embeds.shape)}"
            )
        per_token["inputs_embeds"] = inputs_embeds
        choices = {tensor.shape[1] for tensor in per_token.values() if tensor is not None}
        if len(choices) != 1:
            raise ValueError(f"all inputs must have the same number of choices, got {sorted(choices)}")
        outputs = self.encode(
            **{name: None if tensor is None else tensor.flatten(0, 1) for name, tensor in per_token.items()},
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, choices.pop())
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        return LogitsOutput(loss=loss, logits=logits, **_traces(outputs))
