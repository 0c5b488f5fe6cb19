"""Heads that label tokens and texts, find answers and choose among texts.

B batch, T tokens, L labels, C choices.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import can_return_tuple, logging

from longspan.base import BackboneOutput, text_token
from longspan.heads.base import Head, LogitsOutput, SpanOutput, with_auxiliary

logger = logging.get_logger(__name__)


class TokenClassificationHead(Head):
    """A label for every token."""

    accepts_loss_kwargs = True

    def build_head(self, config) -> None:
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.feature_size, config.num_labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        max_recurrent_steps: int | None = None,
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
            num_hashes=num_hashes,
            max_recurrent_steps=max_recurrent_steps,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        loss = with_auxiliary(loss, outputs, labels, num_items_in_batch)
        return self.answer(outputs, loss=loss, logits=logits)


class QuestionAnsweringHead(Head):
    """Where in the text the answer begins and ends."""

    output_class = SpanOutput

    def build_head(self, config) -> None:
        self.qa_outputs = nn.Linear(config.feature_size, 2)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        max_recurrent_steps: int | None = None,
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
            num_hashes=num_hashes,
            max_recurrent_steps=max_recurrent_steps,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        start_logits, end_logits = (x.contiguous() for x in self.qa_outputs(outputs.last_hidden_state).unbind(-1))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        loss = with_auxiliary(loss, outputs)
        return self.answer(outputs, loss=loss, start_logits=start_logits, end_logits=end_logits)


def warn_of_blind_token(config) -> None:
    """Where a head reads a token that has seen nothing but itself, say so when it is built."""
    if getattr(config, "is_decoder", False) and config.text_token == "first":
        logger.warning(
            "this model is causal and its head reads the first token, which sees no other: its logits will not depend "
            "on the text. Set is_decoder=False to read it in both directions"
        )


class ClassificationHead(nn.Module):
    """Dense, tanh and scores of the labels, from one vector per text (RoBERTa's head)."""

    def __init__(self, feature_size: int, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(feature_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(hidden_size, num_labels)

    def forward(self, text: Tensor) -> Tensor:
        """``[B, E]`` -> ``[B, L]``."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(text)))))


class SequenceClassificationHead(Head):
    """One label, several labels or a number for a whole text, read at its first token; in causal models at its last."""

    def build_head(self, config) -> None:
        warn_of_blind_token(config)
        self.classifier = ClassificationHead(
            config.feature_size, config.hidden_size, config.num_labels, config.head_dropout
        )

    def rate(self, outputs: BackboneOutput, attention_mask: Tensor | None) -> Tensor:
        """Scores of the labels, ``[B, L]``; an architecture that reads texts elsewhere says so here."""
        return self.classifier(text_token(outputs.last_hidden_state, attention_mask, self.config.text_token))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        max_recurrent_steps: int | None = None,
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
            num_hashes=num_hashes,
            max_recurrent_steps=max_recurrent_steps,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.rate(outputs, attention_mask)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return self.answer(outputs, loss=with_auxiliary(loss, outputs), logits=logits)


class MultipleChoiceHead(Head):
    """Which of C texts fits."""

    needs_pooler = True

    def build_head(self, config) -> None:
        warn_of_blind_token(config)
        if self.has_pooler:
            self.dropout = nn.Dropout(config.head_dropout)
            self.classifier = nn.Linear(config.hidden_size, 1)
        else:
            self.classifier = ClassificationHead(config.feature_size, config.hidden_size, 1, config.head_dropout)

    def rate(self, outputs: BackboneOutput, attention_mask: Tensor | None) -> Tensor:
        """How well each text fits: ``[B * C, 1]``."""
        if self.has_pooler:
            return self.classifier(self.dropout(outputs.pooler_output))
        return self.classifier(text_token(outputs.last_hidden_state, attention_mask, self.config.text_token))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        num_hashes: int | None = None,
        max_recurrent_steps: int | None = None,
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
            num_hashes=num_hashes,
            max_recurrent_steps=max_recurrent_steps,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        mask = None if attention_mask is None else attention_mask.flatten(0, 1)
        logits = self.rate(outputs, mask).view(-1, choices.pop())
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device))
        return self.answer(outputs, loss=with_auxiliary(loss, outputs), logits=logits)
