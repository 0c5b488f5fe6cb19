"""The one list of architectures: Auto classes, documentation and the common tests derive from it."""

from dataclasses import dataclass

import transformers
from transformers import AutoConfig, AutoTokenizer

from longspan import adaptive_span, biblosan, longformer, reformer, universal_transformer
from longspan.adaptive_span.tokenization_adaptive_span import LongspanAdaptiveSpanTokenizer
from longspan.base import LongspanConfig, LongspanPreTrainedModel
from longspan.biblosan.tokenization_biblosan import LongspanBiBloSanTokenizer
from longspan.longformer.tokenization_longformer import LongspanLongformerTokenizer
from longspan.reformer.tokenization_reformer import LongspanReformerTokenizer
from longspan.universal_transformer.tokenization_universal_transformer import LongspanUniversalTransformerTokenizer


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Args:
        name: its folder below ``longspan/``, ``configs/`` and ``tests/``.
        config_class: its configuration.
        model_classes: the backbone first, then the classes with a head.
        tokenizer_class: what ``AutoTokenizer`` makes for it, or None where any tokenizer of transformers serves.
    """

    name: str
    config_class: type[LongspanConfig]
    model_classes: tuple[type[LongspanPreTrainedModel], ...]
    tokenizer_class: type | None = None

    def auto_classes(self) -> dict[str, type[LongspanPreTrainedModel]]:
        """Name of transformers' Auto class -> our class: AutoModel, AutoModelForMaskedLM, ...

        Heads for tasks that transformers has no Auto class for are loaded by their own.
        """
        backbone, *heads = self.model_classes
        architecture = backbone.__name__.removesuffix("Model")
        tasks = {head.__name__.removeprefix(architecture): head for head in heads}
        names = {
            "ModelWithLMHead": "ForCausalLM",
            "ForConditionalGeneration": "ForSeq2SeqLM",
            "EncoderModel": "ForTextEncoding",
        }
        classes = {"AutoModel" + names.get(task, task): head for task, head in tasks.items()}
        return {"AutoModel": backbone} | {name: head for name, head in classes.items() if hasattr(transformers, name)}


ARCHITECTURES = (
    Architecture(
        "longformer",
        longformer.LongformerConfig,
        (
            longformer.LongformerModel,
            longformer.LongformerForMaskedLM,
            longformer.LongformerForSequenceClassification,
            longformer.LongformerForTokenClassification,
            longformer.LongformerForQuestionAnswering,
            longformer.LongformerForMultipleChoice,
        ),
        LongspanLongformerTokenizer,
    ),
    Architecture(
        "reformer",
        reformer.ReformerConfig,
        (
            reformer.ReformerModel,
            reformer.ReformerModelWithLMHead,
            reformer.ReformerForMaskedLM,
            reformer.ReformerForSequenceClassification,
            reformer.ReformerForTokenClassification,
            reformer.ReformerForQuestionAnswering,
            reformer.ReformerForMultipleChoice,
        ),
        LongspanReformerTokenizer,
    ),
    Architecture(
        "biblosan",
        biblosan.BiBloSanConfig,
        (
            biblosan.BiBloSanModel,
            biblosan.BiBloSanForSequenceClassification,
            biblosan.BiBloSanForSentencePairClassification,
            biblosan.BiBloSanForSentencePairRegression,
            biblosan.BiBloSanForSentenceSelection,
            biblosan.BiBloSanForTokenClassification,
            biblosan.BiBloSanForQuestionAnswering,
            biblosan.BiBloSanForMultipleChoice,
        ),
        LongspanBiBloSanTokenizer,
    ),
    Architecture(
        "adaptive_span",
        adaptive_span.AdaptiveSpanConfig,
        (
            adaptive_span.AdaptiveSpanModel,
            adaptive_span.AdaptiveSpanForCausalLM,
            adaptive_span.AdaptiveSpanForMaskedLM,
            adaptive_span.AdaptiveSpanForSequenceClassification,
            adaptive_span.AdaptiveSpanForTokenClassification,
            adaptive_span.AdaptiveSpanForQuestionAnswering,
            adaptive_span.AdaptiveSpanForMultipleChoice,
        ),
        LongspanAdaptiveSpanTokenizer,
    ),
    Architecture(
        "universal_transformer",
        universal_transformer.UniversalTransformerConfig,
        (
            universal_transformer.UniversalTransformerModel,
            universal_transformer.UniversalTransformerEncoderModel,
            universal_transformer.UniversalTransformerForConditionalGeneration,
            universal_transformer.UniversalTransformerForCausalLM,
            universal_transformer.UniversalTransformerForMaskedLM,
            universal_transformer.UniversalTransformerForSequenceClassification,
            universal_transformer.UniversalTransformerForTokenClassification,
            universal_transformer.UniversalTransformerForQuestionAnswering,
            universal_transformer.UniversalTransformerForMultipleChoice,
        ),
        LongspanUniversalTransformerTokenizer,
    ),
)


def register_auto_classes() -> None:
    """Make transformers' Auto classes find every architecture. Called when longspan is imported."""
    for architecture in ARCHITECTURES:
        config_class = architecture.config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        for auto_class, model_class in architecture.auto_classes().items():
            getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
        if architecture.tokenizer_class is not None:
            AutoTokenizer.register(config_class, tokenizer_class=architecture.tokenizer_class, exist_ok=True)
