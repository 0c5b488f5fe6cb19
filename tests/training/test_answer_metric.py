"""Exact match and F1 by SQuAD's definition, through `evaluate` and directly."""

import evaluate
import pytest

from longspan.training import ANSWER_METRIC
from longspan.training.answer_metric import AnswerMetric, exact_match, f1, normalize_answer


def test_normalisation():
    assert normalize_answer("  The State of  California's, (U.S.) ") == "state of californias us"
    assert normalize_answer("another theory, an a") == "another theory"  # articles are words, not letters


@pytest.mark.parametrize(
    ("prediction", "accepted", "exact", "overlap"),
    [
        ("the State of Texas.", ["state of texas"], 1.0, 1.0),
        ("Texas", ["State of Texas", "Texas"], 1.0, 1.0),  # the best accepted answer counts
        ("State of Utah", ["State of Texas"], 0.0, 2 / 3),
        ("Utah Utah", ["Utah"], 0.0, 2 / 3),  # a word counts as often as it is there
        ("", ["Utah"], 0.0, 0.0),
        ("", [""], 1.0, 1.0),
        ("the", ["a"], 1.0, 1.0),
        ("Norway", ["Japan"], 0.0, 0.0),
    ],
)
def test_scores(prediction, accepted, exact, overlap):
    assert exact_match(prediction, accepted) == exact
    assert f1(prediction, accepted) == pytest.approx(overlap)


@pytest.mark.parametrize("load", [lambda: evaluate.load(ANSWER_METRIC), AnswerMetric], ids=["evaluate.load", "direct"])
def test_metric(load, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = load()
    assert metric.compute(predictions=["a b", "c"], references=[["b"], ["x", "c d"]]) == {
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 2 / 3) / 2),
    }
    metric.add(prediction="x", reference=["x"])
    metric.add_batch(predictions=["y"], references=[["x", "z"]])
    assert metric.compute() == {"exact_match": 0.5, "f1": 0.5}


def test_a_question_without_accepted_answers_is_refused():
    with pytest.raises(ValueError, match=r"references\[1\]"):
        AnswerMetric().compute(predictions=["a", "b"], references=[["a"], []])
