"""Bi-BloSAN: Bi-Directional Block Self-Attention (Shen et al. 2018), and DiSAN."""

from longspan.biblosan.block_length import block_length_for, block_length_from_statistics, suggest_block_length
from longspan.biblosan.configuration_biblosan import BiBloSanConfig
from longspan.biblosan.modeling_biblosan import BiBloSanModel, BiBloSanPreTrainedModel
from longspan.biblosan.tasks_biblosan import (
    BiBloSanForMultipleChoice,
    BiBloSanForQuestionAnswering,
    BiBloSanForSentencePairClassification,
    BiBloSanForSentencePairRegression,
    BiBloSanForSentenceSelection,
    BiBloSanForSequenceClassification,
    BiBloSanForTokenClassification,
)

__all__ = [
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
    "block_length_for",
    "block_length_from_statistics",
    "suggest_block_length",
]
