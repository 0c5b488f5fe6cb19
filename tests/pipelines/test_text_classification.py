import copy
from typing import Any

import pytest
import torch
import transformers

from longspan.pipelines import LongTextClassificationPipeline

pipeline: Any = transformers.pipeline  # its type knows the tasks of transformers only


@pytest.fixture
def classify(class_model, tokenizer):
    return LongTextClassificationPipeline(model=class_model, tokenizer=tokenizer, device="cpu")


def logits_of(model, ids):
    ids = torch.tensor([[2, *ids, 3]])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids)).logits[0]


def windows_of(tokenizer, text, room, overlap):
    """Token ids of each window and how many they are; the last window is full too."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = [*range(0, len(ids) - room, room - overlap), max(len(ids) - room, 0)]
    return [ids[start : start + room] for start in starts]


def test_one_window_is_the_direct_computation(classify, class_model, tokenizer, document):
    text = document(30)
    scores = logits_of(class_model, tokenizer(text, add_special_tokens=False)["input_ids"]).softmax(0)
    result = classify(text)
    assert result == {"label": f"LABEL_{scores.argmax()}", "score": pytest.approx(float(scores.max()), rel=1e-4)}
    every = classify(text, top_k=None)
    assert [label["label"] for label in every] == [f"LABEL_{index}" for index in scores.argsort(descending=True)]
    assert sum(label["score"] for label in every) == pytest.approx(1.0)
    assert classify(text, top_k=2) == every[:2]


@pytest.mark.parametrize("overlap", [0, 11])
def test_windows_are_pooled_as_logits(classify, class_model, tokenizer, document, overlap):
    text = document(150)
    windows = windows_of(tokenizer, text, 46, overlap)
    logits = torch.stack([logits_of(class_model, ids) for ids in windows])
    assert len(windows) >= 4
    for pooling, pooled in (("mean", logits.mean(0)), ("max", logits.amax(0))):
        results = classify(text, pooling=pooling, stride=overlap, top_k=None, function_to_apply="none")
        found = {result["label"]: result["score"] for result in results}
        assert [found[f"LABEL_{index}"] for index in range(4)] == pytest.approx(pooled.tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batching_and_padding_side_do_not_change_labels(class_model, tokenizer, document, side):
    padded = copy.deepcopy(tokenizer)
    padded.padding_side = side
    classify = LongTextClassificationPipeline(model=class_model, tokenizer=padded, device="cpu", top_k=None)
    texts = [document(length, length) for length in (3, 120, 45, 20)]
    alone = [classify(text) for text in texts]
    for one, other in zip(alone, classify(texts, batch_size=3), strict=True):
        assert [label["label"] for label in one] == [label["label"] for label in other]
        assert [label["score"] for label in one] == pytest.approx([label["score"] for label in other], rel=1e-4)


def test_function_follows_the_config_unless_named(classify, class_model, document):
    text = document(20)
    raw = classify(text, function_to_apply="none", top_k=None)
    logits = torch.tensor([label["score"] for label in raw])
    config = class_model.config
    for problem, wanted in (
        ("single_label_classification", logits.softmax(0)),
        ("multi_label_classification", logits.sigmoid()),
        ("regression", logits),
        (None, logits.softmax(0)),
    ):
        config.problem_type = problem
        scores = [label["score"] for label in classify(text, top_k=None)]
        assert scores == pytest.approx(wanted.tolist(), rel=1e-4)
    named = classify(text, function_to_apply="sigmoid", top_k=None)
    assert [label["score"] for label in named] == pytest.approx(logits.sigmoid().tolist(), rel=1e-4)


def test_labels_of_the_config_and_ways_to_ask(classify, class_model, document):
    class_model.config.id2label = dict(enumerate(["MIT", "GPL", "BSD", "EULA"]))
    texts = [document(10, seed) for seed in range(3)]
    results = classify(texts)
    assert [classify(text) for text in texts] == results
    assert {result["label"] for result in results} <= {"MIT", "GPL", "BSD", "EULA"}
    assert list(classify(text for text in texts)) == results
    assert classify([]) == []


def test_made_by_name_from_a_saved_folder(classify, long_tokenizer, document, tmp_path):
    text = document(100)
    wanted = classify(text)
    classify.tokenizer = long_tokenizer
    classify.save_pretrained(tmp_path)
    again = pipeline("long-text-classification", model=str(tmp_path), device="cpu", top_k=1)
    assert type(again) is LongTextClassificationPipeline
    assert again(text)["label"] == wanted["label"]
    assert again(text)["score"] == pytest.approx(wanted["score"], rel=1e-4)


BAD = {
    "empty": (" \n", {}, r"inputs must hold some text, got ' \\n'"),
    "wrong type": (5, {}, "inputs must be a str, got int"),
    "a dict": ({"text": "law"}, {}, "inputs must be a str, got dict"),
    "item of a list": (["law", None], {}, r"inputs\[1\] must be a str, got NoneType"),
    "only dropped characters": ("\u200b\u0000", {}, "the text holds nothing but spaces"),
    "pooling": ("law", {"pooling": "sum"}, r"pooling must be one of \['mean', 'max'\], got 'sum'"),
    "function": ("law", {"function_to_apply": "tanh"}, "function_to_apply must be one of .* got 'tanh'"),
    "top_k": ("law", {"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
    "max_seq_len": ("law", {"max_seq_len": 500}, "max_seq_len must be at most 48"),
    "stride": ("law " * 99, {"stride": 46}, "stride must be smaller than the 46 document tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(classify, name):
    inputs, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        classify(inputs, **options)
