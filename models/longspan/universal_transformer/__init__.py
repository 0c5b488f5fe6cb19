"""Universal Transformers (Dehghani et al. 2019), with adaptive computation time."""

from longspan.universal_transformer.configuration_universal_transformer import UniversalTransformerConfig
from longspan.universal_transformer.heads_universal_transformer import (
    UniversalTransformerForCausalLM,
    UniversalTransformerForConditionalGeneration,
    UniversalTransformerForMaskedLM,
    UniversalTransformerForMultipleChoice,
    UniversalTransformerForQuestionAnswering,
    UniversalTransformerForSequenceClassification,
    UniversalTransformerForTokenClassification,
)
from longspan.universal_transformer.modeling_universal_transformer import (
    UniversalTransformerEncoderModel,
    UniversalTransformerModel,
    UniversalTransformerPreTrainedModel,
)

__all__ = [
    "UniversalTransformerConfig",
    "UniversalTransformerEncoderModel",
    "UniversalTransformerForCausalLM",
    "UniversalTransformerForConditionalGeneration",
    "UniversalTransformerForMaskedLM",
    "UniversalTransformerForMultipleChoice",
    "UniversalTransformerForQuestionAnswering",
    "UniversalTransformerForSequenceClassification",
    "UniversalTransformerForTokenClassification",
    "UniversalTransformerModel",
    "UniversalTransformerPreTrainedModel",
]
