"""Exact match and F1 of answers, SQuAD's definition (Rajpurkar et al. 2016, section 6.1), as an `evaluate` metric.

Works without a network: ``evaluate.load(longspan.training.ANSWER_METRIC)``, or directly, ``AnswerMetric()``.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate

_DESCRIPTION = """\
Exact match and F1 between a predicted answer and the accepted answers, both between 0 and 1. Case, punctuation, the
articles a, an, the and extra spaces do not count; F1 is over words; each prediction takes its best accepted answer.
"""
_KWARGS = """\
Args:
    predictions: the predicted answers, one text per question (empty: no answer).
    references: the accepted answers, a list of texts per question.
Returns:
    exact_match: share of questions whose prediction equals an accepted answer.
    f1: mean over the questions.
"""
_CITATION = """\
Rajpurkar, Zhang, Lopyrev, Liang: SQuAD: 100,000+ Questions for Machine Comprehension of Text. EMNLP 2016.
"""


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(prediction: str, accepted: Sequence[str]) -> float:
    """1.0 where the prediction equals one of the accepted answers after normalisation, else 0.0."""
    return float(normalize_answer(prediction) in {normalize_answer(answer) for answer in accepted})


def f1(prediction: str, accepted: Sequence[str]) -> float:
    """Harmonic mean of word precision and recall against the closest accepted answer."""
    return max(_word_f1(normalize_answer(prediction).split(), normalize_answer(a).split()) for a in accepted)


def _word_f1(predicted: list[str], wanted: list[str]) -> float:
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


class AnswerMetric(evaluate.Metric):
    """`exact_match` and `f1` over questions with several accepted answers, see the module."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_KWARGS, features=features
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        for number, accepted in enumerate(references):
            if not accepted:
                raise ValueError(f"references[{number}] must hold at least one accepted answer, got none")
        pairs = list(zip(predictions, references, strict=True))
        return {
            "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
            "f1": sum(f1(*pair) for pair in pairs) / len(pairs),
        }
