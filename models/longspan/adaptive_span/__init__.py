"""Adaptive Span (Sukhbaatar et al. 2019): attention whose heads learn how far they look."""

from longspan.adaptive_span.configuration_adaptive_span import AdaptiveSpanConfig
from longspan.adaptive_span.modeling_adaptive_span import (
    AdaptiveSpanForCausalLM,
    AdaptiveSpanForMaskedLM,
    AdaptiveSpanForMultipleChoice,
    AdaptiveSpanForQuestionAnswering,
    AdaptiveSpanForSequenceClassification,
    AdaptiveSpanForTokenClassification,
    AdaptiveSpanModel,
    AdaptiveSpanPreTrainedModel,
)

__all__ = [
    "AdaptiveSpanConfig",
    "AdaptiveSpanForCausalLM",
    "AdaptiveSpanForMaskedLM",
    "AdaptiveSpanForMultipleChoice",
    "AdaptiveSpanForQuestionAnswering",
    "AdaptiveSpanForSequenceClassification",
    "AdaptiveSpanForTokenClassification",
    "AdaptiveSpanModel",
    "AdaptiveSpanPreTrainedModel",
]
