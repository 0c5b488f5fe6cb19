"""longspan: long-document transformers for Hugging Face transformers 5.

Importing it registers the architectures with transformers' Auto classes and the pipelines with ``pipeline``.
"""

from longspan import ops
from longspan.adaptive_span import (
    AdaptiveSpanConfig,
    AdaptiveSpanForCausalLM,
    AdaptiveSpanForMaskedLM,
    AdaptiveSpanForMultipleChoice,
    AdaptiveSpanForQuestionAnswering,
    AdaptiveSpanForSequenceClassification,
    AdaptiveSpanForTokenClassification,
    AdaptiveSpanModel,
    AdaptiveSpanPreTrainedModel,
)
from longspan.adaptive_span.tokenization_adaptive_span import AdaptiveSpanTokenizer
from longspan.biblosan import (
    BiBloSanConfig,
    BiBloSanForMultipleChoice,
    BiBloSanForQuestionAnswering,
    BiBloSanForSentencePairClassification,
    BiBloSanForSentencePairRegression,
    BiBloSanForSentenceSelection,
    BiBloSanForSequenceClassification,
    BiBloSanForTokenClassification,
    BiBloSanModel,
    BiBloSanPreTrainedModel,
)
from longspan.biblosan.tokenization_biblosan import BiBloSanTokenizer
from longspan.convert_to_long import convert_to_long
from longspan.data.collators import LongDocumentCollator
from longspan.longformer import (
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForMultipleChoice,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerForTokenClassification,
    LongformerModel,
    LongformerPreTrainedModel,
)
from longspan.longformer.tokenization_longformer import LongformerTokenizer
from longspan.pipelines import LongQuestionAnsweringPipeline, LongTextClassificationPipeline
from longspan.reformer import (
    ReformerConfig,
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
from longspan.reformer.tokenization_reformer import ReformerTokenizer
from longspan.registry import register_auto_classes
from longspan.universal_transformer import (
    UniversalTransformerConfig,
    UniversalTransformerEncoderModel,
    UniversalTransformerForCausalLM,
    UniversalTransformerForConditionalGeneration,
    UniversalTransformerForMaskedLM,
    UniversalTransformerForMultipleChoice,
    UniversalTransformerForQuestionAnswering,
    UniversalTransformerForSequenceClassification,
    UniversalTransformerForTokenClassification,
    UniversalTransformerModel,
    UniversalTransformerPreTrainedModel,
)
from longspan.universal_transformer.tokenization_universal_transformer import UniversalTransformerTokenizer

__version__ = "0.1.0"

register_auto_classes()

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
    "AdaptiveSpanTokenizer",
    "BiBloSanConfig",
    "BiBloSanForMultipleChoice",
    "BiBloSanForQuestionAnswering",
    "BiBloSanForSentencePairClassification",
    "BiBloSanForSentencePairRegression",
    "BiBloSanForSentenceSelection",
    "BiBloSanForSequenceClassification",
    "BiBloSanForTokenClassification",
    "BiBloSanModel",
    "BiBloSanPreTrainedModel",
    "BiBloSanTokenizer",
    "LongDocumentCollator",
    "LongQuestionAnsweringPipeline",
    "LongTextClassificationPipeline",
    "LongformerConfig",
    "LongformerForMaskedLM",
    "LongformerForMultipleChoice",
    "LongformerForQuestionAnswering",
    "LongformerForSequenceClassification",
    "LongformerForTokenClassification",
    "LongformerModel",
    "LongformerPreTrainedModel",
    "LongformerTokenizer",
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
    "ReformerTokenizer",
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
    "UniversalTransformerTokenizer",
    "convert_to_long",
    "ops",
]
