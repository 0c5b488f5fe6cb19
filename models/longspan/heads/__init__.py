"""Task heads over any backbone: logits and losses, nothing about text.

A head class is a mixin over an architecture's ``LongspanPreTrainedModel``, e.g.

    class LongformerForTokenClassification(TokenClassificationHead, LongformerPreTrainedModel):
        ...

It builds the architecture's ``backbone_class`` under ``base_model_prefix`` and passes it what it is given: an argument
that the architecture does not know (token types, global tokens, hash rounds) fails there, unless it is None.
"""

from longspan.heads.base import Head, LogitsOutput, SpanOutput
from longspan.heads.language_models import (
    CausalLMHead,
    CausalLMOutput,
    LanguageModelHead,
    LinearLanguageModelHead,
    MaskedLMHead,
    WordHead,
    check_words,
)
from longspan.heads.sequence_to_sequence import SequenceToSequenceHead, SequenceToSequenceOutput
from longspan.heads.tasks import (
    ClassificationHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)

__all__ = [
    "CausalLMHead",
    "CausalLMOutput",
    "ClassificationHead",
    "Head",
    "LanguageModelHead",
    "LinearLanguageModelHead",
    "LogitsOutput",
    "MaskedLMHead",
    "MultipleChoiceHead",
    "QuestionAnsweringHead",
    "SequenceClassificationHead",
    "SequenceToSequenceHead",
    "SequenceToSequenceOutput",
    "SpanOutput",
    "TokenClassificationHead",
    "WordHead",
    "check_words",
]
