"""Batches of pairs of texts, and of sentences with a question; a model reads them as it reads single examples."""

import pytest
import torch

from longspan.biblosan import (
    BiBloSanConfig,
    BiBloSanForSentencePairClassification,
    BiBloSanForSentenceSelection,
)
from longspan.data.text_collators import RandomWindowCollator, SentenceSelectionCollator, TextPairCollator

PAIRS = [
    {"input_ids": [5, 6, 7], "pair_input_ids": [8], "labels": 1, "id": "left out"},
    {"input_ids": [9], "pair_input_ids": [2, 3, 4, 5], "labels": 0, "id": "left out"},
]
QUESTIONS = [
    {"sentences": [[4, 5], [6]], "question_input_ids": [7, 8, 9], "labels": 1},
    {"sentences": [[3], [2, 9, 9], [8]], "question_input_ids": [6], "labels": 0},
]


@pytest.fixture(scope="module")
def config():
    return BiBloSanConfig(block_length=2, vocab_size=12, embedding_size=6, hidden_size=5, num_labels=2)


def test_each_text_in_a_row_of_its_own():
    batch = TextPairCollator(pad_id=0)(PAIRS)
    assert set(batch) == {"input_ids", "attention_mask", "pair_input_ids", "pair_attention_mask", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["pair_input_ids"].tolist() == [[8, 0, 0, 0], [2, 3, 4, 5]]
    assert batch["labels"].tolist() == [1, 0]
    assert "labels" not in TextPairCollator()([{"input_ids": [1], "pair_input_ids": []}])


def test_sentences_and_questions():
    batch = SentenceSelectionCollator(pad_id=11)(QUESTIONS)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, 3)
    assert batch["input_ids"][0].tolist() == [[4, 5, 11], [6, 11, 11], [11, 11, 11]]
    assert batch["attention_mask"].sum(-1).tolist() == [[2, 1, 0], [1, 3, 1]]
    assert batch["question_input_ids"].tolist() == [[7, 8, 9], [6, 11, 11]]


@pytest.mark.parametrize(
    ("model_class", "collate", "examples"),
    [
        (BiBloSanForSentencePairClassification, TextPairCollator(), PAIRS),
        (BiBloSanForSentenceSelection, SentenceSelectionCollator(), QUESTIONS),
    ],
)
def test_a_batch_says_what_its_examples_say(model_class, collate, examples, config):
    torch.manual_seed(0)
    model = model_class(config).eval()
    together = model(**collate(examples))
    assert torch.isfinite(together.loss)
    for number, example in enumerate(examples):
        alone = model(**collate([example])).logits[0]
        torch.testing.assert_close(together.logits[number, : len(alone)], alone, atol=1e-6, rtol=1e-5)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one example"):
        TextPairCollator()([])
    with pytest.raises(ValueError, match="example 1 has no pair_input_ids"):
        TextPairCollator()([PAIRS[0], {"input_ids": [1]}])
    with pytest.raises(ValueError, match="labels of example 0 is 2: it must name one of its 2 sentences"):
        SentenceSelectionCollator()([QUESTIONS[0] | {"labels": 2}])


def test_windows_from_anywhere_of_one_size_in_a_batch():
    texts = [{"input_ids": list(range(100 * n, 100 * n + 60)), "labels": n} for n in range(1, 4)]
    collate = RandomWindowCollator(4, 40, seed=1)
    sizes, starts = set(), set()
    for _ in range(200):
        batch = collate(texts)
        assert batch["attention_mask"].all() and batch["labels"].tolist() == [1, 2, 3]
        for number, window in enumerate(batch["input_ids"].tolist(), 1):
            assert window == list(range(window[0], window[0] + len(window)))
            assert 100 * number <= window[0] and window[-1] < 100 * number + 60
            starts.add(window[0] - 100 * number)
        sizes.add(batch["input_ids"].shape[1])
    assert min(sizes) <= 5 and max(sizes) >= 37 and max(starts) >= 50
    assert sorted(sizes)[len(sizes) // 2] <= 22
    again = RandomWindowCollator(4, 40, seed=1)
    assert torch.equal(again(texts)["input_ids"], RandomWindowCollator(4, 40, seed=1)(texts)["input_ids"])


def test_windows_of_short_texts_are_padded():
    batch = RandomWindowCollator(10, 10, pad_id=9)(
        [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 1}]
    )
    assert batch["input_ids"].tolist() == [[1, 2], [3, 9]] and batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    with pytest.raises(ValueError, match="got 5 and 4"):
        RandomWindowCollator(5, 4)
