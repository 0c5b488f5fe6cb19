"""Reformer: The Efficient Transformer (Kitaev et al. 2020)."""

from longspan.reformer.configuration_reformer import ReformerConfig
from longspan.reformer.modeling_reformer import (
    ReformerForCausalLM,
    ReformerForMaskedLM,
    ReformerForMultipleChoice,
    ReformerForQuestionAnswering,
    ReformerForSequenceClassification,
    ReformerForTokenClassification,
    ReformerModel,
    ReformerModelWithLMHead,
    ReformerPreTrainedModel,
)

__all__ = [
    "ReformerConfig",
    "ReformerForCausalLM",
    "ReformerForMaskedLM",
    "ReformerForMultipleChoice",
    "ReformerForQuestionAnswering",
    "ReformerForSequenceClassification",
    "ReformerForTokenClassification",
    "ReformerModel",
    "ReformerModelWithLMHead",
    "ReformerPreTrainedModel",
]
