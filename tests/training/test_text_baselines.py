"""Encoders to compare with: what they know of order and padding; linear baselines: what they can tell."""

import numpy as np
import pytest
import torch
from torch import nn

from longspan.biblosan import BiBloSanForSentencePairClassification, BiBloSanForSequenceClassification
from longspan.training.text_baselines import (
    ENCODERS,
    LinearBaseline,
    WordOverlapBaseline,
    build_model,
    count_parameters,
    freeze_fixed_words,
)

FIELDS = {"vocab_size": 20, "embedding_size": 8, "hidden_size": 6, "num_labels": 3}


@pytest.fixture(params=ENCODERS)
def model(request):
    torch.manual_seed(0)
    model = build_model(request.param, BiBloSanForSequenceClassification, block_length=3, **FIELDS)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_padding_on_either_side_changes_nothing(model):
    torch.manual_seed(1)
    text = torch.randint(2, 20, (1, 7))
    alone = model(input_ids=text).logits
    for side in (0, 1):
        padded = torch.zeros(2, 11, dtype=torch.int64)
        padded[1] = torch.randint(2, 20, (11,))
        mask = torch.ones(2, 11, dtype=torch.int64)
        where = slice(4, 11) if side else slice(0, 7)
        padded[0, where] = text[0]
        mask[0] = 0
        mask[0, where] = 1
        torch.testing.assert_close(model(input_ids=padded, attention_mask=mask).logits[:1], alone)


def test_a_text_without_words(model):
    ids, mask = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
    assert torch.isfinite(model(input_ids=ids, attention_mask=mask).logits).all()


def test_only_the_mean_of_words_ignores_their_order():
    text = torch.tensor([[2, 3, 4, 5, 6]])
    for encoder in ENCODERS:
        torch.manual_seed(0)
        model = build_model(encoder, BiBloSanForSequenceClassification, block_length=3, **FIELDS).eval()
        nn.init.normal_(model.get_input_embeddings().weight)
        same = torch.allclose(model(input_ids=text).logits, model(input_ids=text.flip(1)).logits, atol=1e-6)
        assert same == (encoder == "mean of words"), encoder


def test_they_take_pairs_too_and_all_of_them_learn():
    batch = {"input_ids": torch.randint(2, 20, (4, 5)), "pair_input_ids": torch.randint(2, 20, (4, 3))}
    for encoder in ENCODERS:
        model = build_model(encoder, BiBloSanForSentencePairClassification, block_length=2, **FIELDS)
        model(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters()), encoder


def test_numbers_of_parameters_are_those_without_words():
    fields = {"vocab_size": 1000, "embedding_size": 300, "hidden_size": 240}
    model = build_model("Bi-BloSAN", BiBloSanForSentencePairClassification, block_length=5, num_labels=3, **fields)
    assert count_parameters(model) == 2_800_803  # the published SNLI model
    with pytest.raises(ValueError, match="one of mean of words, Bi-LSTM, DiSAN, Bi-BloSAN, got 'CNN'"):
        build_model("CNN", BiBloSanForSequenceClassification, block_length=5)


def test_words_are_frozen_where_all_are_fixed():
    for fixed, trained in ((20, False), (19, True)):
        fields = FIELDS | {"num_fixed_embeddings": fixed}
        model = build_model("Bi-BloSAN", BiBloSanForSequenceClassification, block_length=3, **fields)
        freeze_fixed_words(model)
        assert model.get_input_embeddings().weight.requires_grad == trained


def test_linear_baseline_chooses_and_predicts():
    pytest.importorskip("sklearn")
    texts = [
        "who wrote it ?",
        "who is she ?",
        "when was it ?",
        "when did he go ?",
        "where is it ?",
        "where did she go ?",
    ]
    labels = [0, 0, 1, 1, 2, 2]
    baseline = LinearBaseline().fit(texts * 3, labels * 3, texts, labels)
    assert baseline.cost in baseline.costs
    assert baseline.predict(["who went ?", "when ?", "where was she ?"]) == [0, 1, 2]


def test_word_overlap_with_and_without_learning():
    pytest.importorskip("sklearn")
    first = [f"common words about thing{n} here" for n in range(40)]
    same = [f"some words on thing{n} there" for n in range(40)]
    other = same[1:] + same[:1]
    pairs = (first + first, same + other, [1] * 40 + [0] * 40)
    for learns in (False, True):
        scores = WordOverlapBaseline(learns=learns).fit(pairs, pairs).scores(*pairs[:2])
        assert ((scores > 0) == np.asarray(pairs[2])).mean() > 0.95, learns
