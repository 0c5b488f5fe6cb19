"""Universal Transformer's heads. Each takes the part it needs: encoder, decoder or both.

B batch, T tokens, E hidden size.
"""

from typing import ClassVar

from torch import Tensor

from longspan.base import BackboneOutput
from longspan.heads import (
    CausalLMHead,
    LinearLanguageModelHead,
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    SequenceToSequenceHead,
    TokenClassificationHead,
)
from longspan.heads.base import Head
from longspan.layers.recurrence import ActRecurrence
from longspan.universal_transformer.configuration_universal_transformer import UniversalTransformerConfig
from longspan.universal_transformer.generation_universal_transformer import UniversalTransformerGenerationMixin
from longspan.universal_transformer.modeling_universal_transformer import (
    UniversalTransformerModel,
    UniversalTransformerPreTrainedModel,
    part_of,
)
from longspan.universal_transformer.outputs_universal_transformer import (
    PonderingCausalLMOutput,
    PonderingLogitsOutput,
    PonderingSequenceToSequenceOutput,
    PonderingSpanOutput,
)


class _WithHead(Head, UniversalTransformerPreTrainedModel):
    backbone_class = UniversalTransformerModel
    output_class = PonderingLogitsOutput
    part: ClassVar[str] = "encoder"  # what of a model with both parts the head reads
    universal_transformer: UniversalTransformerModel

    def __init__(self, config: UniversalTransformerConfig):
        super().__init__(config if self.part == "both" else part_of(config, self.part))  # type: ignore[arg-type]


class UniversalTransformerForConditionalGeneration(
    UniversalTransformerGenerationMixin, SequenceToSequenceHead, _WithHead
):
    """Encoder and decoder that write a text for a text."""

    part = "both"
    output_class = PonderingSequenceToSequenceOutput

    def build_head(self, config: UniversalTransformerConfig) -> None:
        if not config.is_encoder_decoder:
            raise ValueError("conditional generation needs is_encoder_decoder = True in its configuration, got False")
        super().build_head(config)
        table = "embeddings" if config.share_embeddings else "target_embeddings"
        self._tied_weights_keys = {"lm_head.decoder.weight": f"universal_transformer.{table}.word_embeddings.weight"}

    def get_encoder(self, *args, **kwargs):
        return self.universal_transformer.get_encoder()

    def label_mask(self, labels: Tensor) -> Tensor | None:
        """Padding behind labels is nothing to a causal model, but where it would be pondered over."""
        recurrence = self.universal_transformer.decoder.recurrence
        skips = isinstance(recurrence, ActRecurrence) and recurrence.skip_padding
        return super().label_mask(labels) if skips else None


class _WithWordHead(_WithHead):
    _tied_weights_keys: ClassVar = {"lm_head.decoder.weight": "universal_transformer.embeddings.word_embeddings.weight"}

    def build_head(self, config: UniversalTransformerConfig) -> None:
        causal = self.part == "decoder"
        if config.is_decoder != causal:
            kind = "causal" if causal else "masked"
            raise ValueError(
                f"a {kind} language model needs is_decoder = {causal} in its configuration, got {not causal}"
            )
        super().build_head(config)
        self.lm_head = LinearLanguageModelHead(config.feature_size, config.vocab_size, bias=False)


class UniversalTransformerForCausalLM(UniversalTransformerGenerationMixin, _WithWordHead, CausalLMHead):
    """Decoder alone that scores the next word, and generates."""

    part = "decoder"
    output_class = PonderingCausalLMOutput


class UniversalTransformerForMaskedLM(_WithWordHead, MaskedLMHead):
    """Encoder that fills in masked words."""


class _ReadsTexts(_WithHead):
    def rate(self, outputs: BackboneOutput, attention_mask: Tensor | None) -> Tensor:
        if self.config.text_token != "mean":
            return super().rate(outputs, attention_mask)  # type: ignore[misc]
        hidden = outputs.last_hidden_state
        if attention_mask is None:
            return self.classifier(hidden.mean(1))  # pyright: ignore
        tokens = (attention_mask != 0)[..., None].to(hidden.dtype)
        return self.classifier((hidden * tokens).sum(1) / tokens.sum(1).clamp(min=1))  # pyright: ignore


class UniversalTransformerForSequenceClassification(_ReadsTexts, SequenceClassificationHead):
    """Universal Transformer that labels texts; ``text_reading`` says where they are read."""


class UniversalTransformerForTokenClassification(_WithHead, TokenClassificationHead):
    """Universal Transformer that labels tokens."""


class UniversalTransformerForQuestionAnswering(_WithHead, QuestionAnsweringHead):
    """Universal Transformer that finds answers."""

    output_class = PonderingSpanOutput


class UniversalTransformerForMultipleChoice(_ReadsTexts, MultipleChoiceHead):
    """Universal Transformer that chooses among texts; ``text_reading`` says where they are read."""
