"""Names of Longformer's parameters elsewhere: in the original release, and in the short models it can be made of.

Ours are transformers' own. The original release took RoBERTa's class names, so its encoder stands under ``roberta.``;
its question-answering checkpoint was saved by a training module that held the encoder as ``model.``.

A table maps patterns to replacements; the first pattern that matches a name is the one that counts.
"""

import re
from collections.abc import Mapping

from torch import Tensor

Names = Mapping[str, str]

CHECKPOINT_NAMES: Names = {r"^roberta\.": "longformer."}  # understood by every ``from_pretrained``

ORIGINAL_NAMES: Names = {
    r"^model\.": "longformer.",
    r"^roberta\.": "longformer.",
    r"^(?=(embeddings|encoder|pooler)\.)": "longformer.",
}

# Short models by transformers' model_type, then by head: what is not named here keeps its name.
_ROBERTA_HEADS: dict[str, Names] = {
    "Model": {},
    "ForMaskedLM": {},
    "ForSequenceClassification": {},
    "ForTokenClassification": {},
    "ForQuestionAnswering": {},
    "ForMultipleChoice": {},
}
SHORT_MODELS: dict[str, dict[str, Names]] = {
    "roberta": _ROBERTA_HEADS,
    "xlm-roberta": _ROBERTA_HEADS,
    "camembert": _ROBERTA_HEADS,
    "longformer": _ROBERTA_HEADS,
    "longspan_longformer": _ROBERTA_HEADS,
    "bert": {
        **_ROBERTA_HEADS,
        "ForMaskedLM": {
            r"^cls\.predictions\.transform\.LayerNorm\.": "lm_head.layer_norm.",
            r"^cls\.predictions\.(transform\.)?": "lm_head.",
        },
        # tanh(pooler) and a linear layer, which is what ours computes from the first token
        "ForSequenceClassification": {
            r"^longformer\.pooler\.dense\.": "classifier.dense.",
            r"^classifier\.": "classifier.out_proj.",
        },
    },
}


def rename(name: str, names: Names) -> str:
    """``name`` by the first pattern of the table that matches it."""
    for pattern, replacement in names.items():
        if re.search(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def rename_original(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the original release -> names of our classes with a head.

    Pass the result as ``state_dict`` to ``from_pretrained(None, config=..., state_dict=...)``.

    Args:
        state_dict: as saved by the original code; of a training checkpoint its ``"state_dict"`` entry.
    """
    buffers = re.compile(r"(^|\.)embeddings\.position_ids$")  # older files hold it
    return {rename(name, ORIGINAL_NAMES): tensor for name, tensor in state_dict.items() if not buffers.search(name)}
