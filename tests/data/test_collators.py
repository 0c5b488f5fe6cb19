"""Padding of documents: every field, both sides."""

from types import SimpleNamespace

import pytest
import torch

from longspan.data.collators import LongDocumentCollator


def tokenizer(side="right", pad: int | None = 7):
    return SimpleNamespace(padding_side=side, pad_token_id=pad, pad_token_type_id=3)


def example(length, **more):
    return {
        "input_ids": list(range(100, 100 + length)),
        "token_type_ids": [1] * length,
        "position_ids": list(range(40, 40 + length)),
        "global_attention_mask": [1, 1] + [0] * (length - 2),
        **more,
    }


def test_pads_every_field_on_the_right():
    batch = LongDocumentCollator(tokenizer())([example(4), example(2)])
    assert batch["input_ids"].tolist() == [[100, 101, 102, 103], [100, 101, 7, 7]]
    assert batch["token_type_ids"].tolist() == [[1, 1, 1, 1], [1, 1, 3, 3]]
    assert batch["position_ids"].tolist() == [[40, 41, 42, 43], [40, 41, 0, 0]]
    assert batch["global_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_padding_on_the_left_moves_the_answer_with_its_tokens():
    features = [example(5, start_positions=2, end_positions=3), example(3, start_positions=1, end_positions=2)]
    right, left = (LongDocumentCollator(tokenizer(side))(features) for side in ("right", "left"))
    assert left["input_ids"].tolist() == [[100, 101, 102, 103, 104], [7, 7, 100, 101, 102]]
    assert left["attention_mask"].tolist()[1] == [0, 0, 1, 1, 1]
    for name in ("start_positions", "end_positions"):
        answer = [batch["input_ids"][torch.arange(2), batch[name]].tolist() for batch in (right, left)]
        assert answer[0] == answer[1]


def test_labels_of_tokens_are_padded_and_labels_of_documents_stacked():
    tokens = LongDocumentCollator(tokenizer("left"))([example(3, labels=[1, 2, 3]), example(2, labels=[4, 5])])
    assert tokens["labels"].tolist() == [[1, 2, 3], [-100, 4, 5]]
    assert LongDocumentCollator(tokenizer())([example(3, labels=1), example(2, labels=0)])["labels"].tolist() == [1, 0]
    several = LongDocumentCollator(tokenizer())([example(3, labels=[0.0, 1.0]), example(4, labels=[1.0, 1.0])])
    assert several["labels"].tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_rounds_the_length_up_and_takes_tensors():
    features = [{"input_ids": torch.tensor([1, 2, 3])}, {"input_ids": torch.tensor([4])}]
    batch = LongDocumentCollator(tokenizer(), pad_to_multiple_of=8)(features)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum(1).tolist() == [3, 1]


def test_errors_name_the_field():
    collate = LongDocumentCollator(tokenizer(pad=None))
    with pytest.raises(ValueError, match="no padding token"):
        collate([example(3), example(4)])
    assert collate([example(3), example(3)])["input_ids"].shape == (2, 3)  # nothing to pad, nothing wrong
    collate = LongDocumentCollator(tokenizer())
    with pytest.raises(ValueError, match="title"):
        collate([example(3, title="a"), example(3, title="b")])
    with pytest.raises(ValueError, match="example 1 has the fields"):
        collate([example(3, labels=1), example(3)])
    with pytest.raises(ValueError, match=r"global_attention_mask of example 0"):
        collate([example(3, global_attention_mask=[1]), example(3)])
    with pytest.raises(ValueError, match="at least one example"):
        collate([])
    with pytest.raises(ValueError, match="input_ids"):
        collate([{"labels": 1}])
