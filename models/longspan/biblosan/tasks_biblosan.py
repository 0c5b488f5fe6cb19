"""Bi-BloSAN with its heads: which texts they read, and their losses. What they compute is in ``heads_biblosan``.

B batch, T tokens, S sentences, C choices, E width of word vectors, D features of one direction, L labels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput, can_return_tuple

from longspan.base import BackboneOutput, check_range, check_token_inputs, token_mask
from longspan.biblosan.configuration_biblosan import BiBloSanConfig
from longspan.biblosan.heads_biblosan import (
    PairClassifier,
    RelatednessRegressor,
    SentenceSelector,
    SpanScorer,
    TextClassifier,
    expected_scores,
    relatedness_loss,
)
from longspan.biblosan.modeling_biblosan import BiBloSanModel, BiBloSanPreTrainedModel
from longspan.heads import (
    Head,
    LogitsOutput,
    MultipleChoiceHead,
    SequenceClassificationHead,
    SpanOutput,
    TokenClassificationHead,
)
from longspan.layers.segments import Segments


def _num_labels(config: BiBloSanConfig) -> int:
    assert config.num_labels is not None
    return config.num_labels


class _BiBloSanWithHead(BiBloSanPreTrainedModel):
    backbone_class = BiBloSanModel
    biblosan: BiBloSanModel


class BiBloSanForSequenceClassification(SequenceClassificationHead, _BiBloSanWithHead):
    """Bi-BloSAN that labels texts, by the vector of the whole text."""

    needs_pooler = True

    def build_head(self, config: BiBloSanConfig) -> None:
        self.classifier = TextClassifier(config, _num_labels(config))

    def rate(self, outputs: BackboneOutput, attention_mask: Tensor | None) -> Tensor:
        return self.classifier(outputs.pooler_output)


class BiBloSanForTokenClassification(TokenClassificationHead, _BiBloSanWithHead):
    """Bi-BloSAN that labels tokens."""


class _ReadsTwoTexts(Head, _BiBloSanWithHead):
    """Two texts in one row, told apart by token types, each encoded as if it stood alone."""

    needs_pooler = True

    def encode_both(self, overlap: bool = False, **inputs: Any) -> tuple[Tensor, Tensor, BackboneOutput]:
        """Vectors of the first texts (type 0) and of the second ones, ``[B, 2 D]`` each, and what the encoder returned.

        Args:
            overlap: where a row has no second text, take the first for it.
            inputs: of the backbone.
        """
        given = {name: inputs.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask", "token_type_ids")}
        input_ids, embeds, attention_mask, types = given.values()
        shape = check_token_inputs(
            input_ids, embeds, self.config.vocab_size, attention_mask=attention_mask, token_type_ids=types
        )
        device = input_ids.device if embeds is None else embeds.device  # type: ignore[union-attr]
        tokens = torch.ones(shape, dtype=torch.bool, device=device)
        mask = token_mask(attention_mask)
        tokens = tokens if mask is None else mask
        if types is None:
            second = torch.zeros_like(tokens)
        else:
            check_range("token_type_ids", types, 2, "0: the first text, 1: the second")
            second = tokens & (types != 0)
        first = tokens & ~second
        if overlap:
            second = second | (tokens & ~second.any(1, keepdim=True))
        segments = Segments([first, second])
        apart = {
            "input_ids": None if input_ids is None else segments.inward(input_ids),
            "inputs_embeds": None if embeds is None else segments.inward(embeds),
            "attention_mask": segments.mask,
            "token_type_ids": None,
        }
        outputs = super().encode(**inputs | apart)
        pooled = outputs.pooler_output
        outputs.last_hidden_state = segments.outward(outputs.last_hidden_state, 1)
        if outputs.hidden_states is not None:
            outputs.hidden_states = tuple(segments.outward(state, 1) for state in outputs.hidden_states)
        if outputs.attentions is not None:
            outputs.attentions = tuple(segments.outward(weights, 2, 3) for weights in outputs.attentions)
        assert pooled is not None
        first_vectors, second_vectors = pooled.unflatten(0, (2, -1)).unbind(0)
        return first_vectors, second_vectors, outputs


class _SentencePairHead(_ReadsTwoTexts):
    """Two texts, in one row or in two."""

    classifier: nn.Module

    def compare(
        self,
        inputs: dict[str, Any],
        pair_input_ids: Tensor | None,
        pair_attention_mask: Tensor | None,
        pair_inputs_embeds: Tensor | None,
    ) -> tuple[Tensor, BackboneOutput]:
        """Logits ``[B, L]`` and the encoder's outputs; those of the first text where the second came by itself."""
        if pair_input_ids is None and pair_inputs_embeds is None:
            if inputs["token_type_ids"] is None:
                raise ValueError(
                    "the second text is missing: give token_type_ids, 0 in the first text and 1 in the second, as "
                    "tokenizer(first, second) returns them, or the second text as pair_input_ids"
                )
            first, second, outputs = self.encode_both(**inputs)
            return self.classifier(first, second), outputs
        outputs = self.encode(**inputs | {"token_type_ids": None})
        other = self.encode(
            input_ids=pair_input_ids, attention_mask=pair_attention_mask, inputs_embeds=pair_inputs_embeds
        )
        first, second = outputs.pooler_output, other.pooler_output
        assert first is not None and second is not None
        if first.shape != second.shape:
            raise ValueError(f"there must be as many second texts as first, got {len(second)} and {len(first)}")
        return self.classifier(first, second), outputs


class BiBloSanForSentencePairClassification(_SentencePairHead):
    """Bi-BloSAN that labels pairs of texts (SNLI: 0 contradiction, 1 neutral, 2 entailment)."""

    def build_head(self, config: BiBloSanConfig) -> None:
        self.classifier = PairClassifier(config, _num_labels(config))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> LogitsOutput:
        """Label pairs: ``logits [B, L]``.

        Args:
            input_ids: ``[B, T]``: both texts, or the first.
            attention_mask: ``[B, T]``, as in ``BiBloSanModel``.
            token_type_ids: ``[B, T]``, 0 in the first text, 1 in the second.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            pair_input_ids: the second text by itself, ``[B, T']``; then token types do not count.
            pair_attention_mask: ``[B, T']``.
            pair_inputs_embeds: ``[B, T', E]``.
            labels: integers ``[B]``.
            output_attentions: as in ``BiBloSanModel``; weights between blocks ``[2 B, 2 D, m, m]``, those of all
                first texts, then of all second ones.
            output_hidden_states: as there.
        """
        inputs = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits, outputs = self.compare(inputs, pair_input_ids, pair_attention_mask, pair_inputs_embeds)
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device).flatten())
        return self.answer(outputs, loss=loss, logits=logits)


@dataclass
class RelatednessOutput(ModelOutput):
    """``loss`` (with labels), ``logits [B, L]`` of the scores 1 to L, ``scores [B]``, their mean, and traces."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    scores: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    global_attentions: tuple[Tensor, ...] | None = None
    auxiliary_loss: Tensor | None = None


class BiBloSanForSentencePairRegression(_SentencePairHead):
    """Bi-BloSAN that says how related two texts are, from 1 to ``num_labels`` (SICK: 5)."""

    output_class = RelatednessOutput

    def build_head(self, config: BiBloSanConfig) -> None:
        if _num_labels(config) < 2:
            raise ValueError(
                f"scores run from 1 to num_labels: it must be at least 2 (SICK: 5), got {config.num_labels}"
            )
        self.classifier = RelatednessRegressor(config, _num_labels(config))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pair_input_ids: Tensor | None = None,
        pair_attention_mask: Tensor | None = None,
        pair_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> RelatednessOutput:
        """Rate pairs: ``scores [B]``; ``labels`` are scores, ``[B]`` floats from 1 to ``num_labels``.

        The other arguments are those of ``BiBloSanForSentencePairClassification``.
        """
        inputs = dict(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits, outputs = self.compare(inputs, pair_input_ids, pair_attention_mask, pair_inputs_embeds)
        loss = None if labels is None else relatedness_loss(logits, labels)
        return self.answer(outputs, loss=loss, logits=logits, scores=expected_scores(logits))


class BiBloSanForSentenceSelection(Head, _BiBloSanWithHead):
    """Bi-BloSAN that picks the sentence of a document in which the answer to a question stands."""

    needs_pooler = True

    def build_head(self, config: BiBloSanConfig) -> None:
        self.selector = SentenceSelector(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        question_input_ids: Tensor | None = None,
        question_attention_mask: Tensor | None = None,
        question_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> LogitsOutput:
        """Pick sentences: ``logits [B, S]``, the lowest number there is for sentences without a token.

        Args:
            input_ids: the document's sentences, ``[B, S, T]``.
            attention_mask: ``[B, S, T]``, 1 = a token; a sentence without any is padding, and may stand anywhere.
            inputs_embeds: ``[B, S, T, E]`` in place of ``input_ids``.
            question_input_ids: ``[B, Q]``.
            question_attention_mask: ``[B, Q]``.
            question_inputs_embeds: ``[B, Q, E]`` in place of ``question_input_ids``.
            labels: the number of the right sentence, integers ``[B]``.

        Raises:
            ValueError: on inputs that do not fit.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None or given.dim() != (3 if inputs_embeds is None else 4):
            got = "neither" if given is None else list(given.shape)
            raise ValueError(
                "give input_ids [batch, sentences, tokens], or inputs_embeds [batch, sentences, tokens, size]; "
                f"got {got}"
            )
        batch, num_sentences = given.shape[:2]
        if attention_mask is not None and attention_mask.shape != given.shape[:3]:
            raise ValueError(f"attention_mask must be {list(given.shape[:3])}, got {list(attention_mask.shape)}")
        questions, _ = check_token_inputs(
            question_input_ids,
            question_inputs_embeds,
            self.config.vocab_size,
            question_attention_mask=question_attention_mask,
        )
        if questions != batch:
            raise ValueError(f"there must be one question for each document, got {questions} for {batch}")
        outputs = self.encode(
            input_ids=None if input_ids is None else input_ids.flatten(0, 1),
            inputs_embeds=None if inputs_embeds is None else inputs_embeds.flatten(0, 1),
            attention_mask=None if attention_mask is None else attention_mask.flatten(0, 1),
        )
        assert outputs.pooler_output is not None
        logits = self.selector(
            outputs.pooler_output.unflatten(0, (batch, num_sentences)),
            None if attention_mask is None else (attention_mask != 0).any(-1),
            self.biblosan.embeddings(question_input_ids, question_inputs_embeds),
            token_mask(question_attention_mask),
        )
        loss = None if labels is None else F.cross_entropy(logits, labels.to(logits.device).flatten())
        return LogitsOutput(loss=loss, logits=logits)


class BiBloSanForQuestionAnswering(_ReadsTwoTexts):
    """Bi-BloSAN that finds answers: tokens of the document are compared with the vector of the question.

    Token types tell the two apart. Without them everything before the first separator is the question, where the
    configuration names a separator; a single text is question and document in one.
    """

    output_class = SpanOutput

    def build_head(self, config: BiBloSanConfig) -> None:
        self.qa_outputs = SpanScorer(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SpanOutput:
        """Find a span: ``start_logits, end_logits [B, T]``, the lowest number there is at padding.

        Args:
            input_ids: ``[B, T]``, the question and the document.
            attention_mask: ``[B, T]``, as in ``BiBloSanModel``.
            token_type_ids: ``[B, T]``, 0 in the question, 1 in the document.
            inputs_embeds: ``[B, T, E]`` in place of ``input_ids``.
            start_positions: the answer's first token, integers ``[B]`` (T or more: no answer here, ignored).
            end_positions: its last token.
            output_attentions: as in ``BiBloSanForSentencePairClassification``.
            output_hidden_states: as there.
        """
        separator = self.config.sep_token_id
        if token_type_ids is None and input_ids is not None and separator is not None:
            token_type_ids = _types_by_separator(input_ids, attention_mask, separator)
        question, _, outputs = self.encode_both(
            overlap=True,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state, question)
        if attention_mask is not None:
            padding, lowest = attention_mask == 0, torch.finfo(start_logits.dtype).min
            start_logits, end_logits = (x.masked_fill(padding, lowest) for x in (start_logits, end_logits))
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return self.answer(outputs, loss=loss, start_logits=start_logits, end_logits=end_logits)


def _types_by_separator(input_ids: Tensor, attention_mask: Tensor | None, separator: int) -> Tensor:
    """1 behind the first separator; ``[B, T]``."""
    separators = input_ids == separator
    if attention_mask is not None and attention_mask.shape == input_ids.shape:
        separators = separators & (attention_mask != 0)
    seen = separators.long().cumsum(1)
    return ((seen > 0) & ~((seen == 1) & separators)).long()


class BiBloSanForMultipleChoice(MultipleChoiceHead, _ReadsTwoTexts):
    """Bi-BloSAN that chooses among texts. Of two texts (token types), how the second fits the first is rated."""

    def build_head(self, config: BiBloSanConfig) -> None:
        self.classifier = PairClassifier(config, 1)

    def encode(self, **inputs: Any) -> BackboneOutput:
        """As ever, but ``pooler_output`` holds both texts, ``[B * C, 4 D]``; of a single text the second is zero."""
        if inputs.get("token_type_ids") is None:
            outputs = super().encode(**inputs)
            assert outputs.pooler_output is not None
            outputs.pooler_output = F.pad(outputs.pooler_output, (0, outputs.pooler_output.shape[-1]))
            return outputs
        first, second, outputs = self.encode_both(**inputs)
        outputs.pooler_output = torch.cat([first, second], -1)
        return outputs

    def rate(self, outputs: BackboneOutput, attention_mask: Tensor | None) -> Tensor:
        assert outputs.pooler_output is not None
        return self.classifier(*outputs.pooler_output.chunk(2, -1))
