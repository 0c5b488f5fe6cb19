"""Training small text classifiers: they learn, the best epoch is kept, and nothing is lost in batches."""

import numpy as np
import pytest
import torch

from longspan.biblosan import BiBloSanForSequenceClassification
from longspan.data.text_collators import pad_rows
from longspan.training.text_baselines import build_model
from longspan.training.text_classification import TextRecipe, accuracy, logits_of, train_classifier

FIELDS = {"vocab_size": 30, "embedding_size": 16, "hidden_size": 12, "num_labels": 2, "hidden_dropout_prob": 0.0}


def collate(rows):
    ids, mask = pad_rows([row["input_ids"] for row in rows], 0)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([row["labels"] for row in rows])}


def texts(count, seed):
    """Does word 2 stand before word 3? Nothing but their order tells."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, 12, (1,), generator=generator))
        ids = torch.randint(4, 30, (length,), generator=generator)
        places = torch.randperm(length, generator=generator)[:2].sort().values
        label = int(torch.randint(0, 2, (1,), generator=generator))
        ids[places] = torch.tensor([2, 3] if label else [3, 2])
        rows.append({"input_ids": ids.tolist(), "labels": label})
    return rows


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("Bi-BloSAN", BiBloSanForSequenceClassification, block_length=3, **FIELDS)


def test_it_learns_what_only_the_order_of_words_tells(model, tmp_path):
    recipe = TextRecipe(epochs=8, batch_size=16, rate=1e-2, seed=1)
    trained = train_classifier(model, texts(400, 1), texts(64, 2), collate, recipe, folder=tmp_path)
    assert len(trained.accuracy) == len(trained.seconds) == 8 and trained.seconds_per_epoch > 0
    test = texts(100, 3)
    assert accuracy(logits_of(model, test, collate, 16), [row["labels"] for row in test]) > 0.9
    assert list(tmp_path.iterdir()) == []


def test_the_best_epoch_is_kept(model, tmp_path, monkeypatch):
    """The second epoch is said to be best: the model ends with its weights, not with the last ones."""
    said = iter([0.5, 0.9, 0.6])
    kept = []
    from longspan.training import text_classification

    def score(*_):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(said)

    monkeypatch.setattr(text_classification, "accuracy", score)
    trained = train_classifier(model, texts(40, 1), texts(8, 2), collate, TextRecipe(epochs=3), folder=tmp_path)
    assert trained.best_epoch == 2 and trained.accuracy == [0.5, 0.9, 0.6]
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[1][name])
    assert any(not torch.equal(kept[1][name], kept[2][name]) for name in kept[1])


def test_logits_in_the_order_of_the_examples(model):
    rows = texts(23, 4)
    together = logits_of(model, rows, collate, 5)
    alone = torch.cat([logits_of(model, [row], collate, 1) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_accuracy():
    assert accuracy(np.array([[0.1, 0.9], [3.0, 1.0], [0.0, 1.0]]), [1, 0, 0]) == pytest.approx(2 / 3)
