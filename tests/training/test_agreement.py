from types import SimpleNamespace

import pytest
import torch
from torch import nn

from longspan.data.subject_verb import VOCAB_SIZE, WORD_IDS, AgreementDataset
from longspan.training.agreement import agreement_accuracy, collate_sentences


class Knows(nn.Module):
    """Gives the word that follows a score above all others; or, told so, always prefers verbs in the singular."""

    def __init__(self, singular=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.singular = singular

    def forward(self, input_ids, attention_mask):
        assert ((input_ids == 0) == (attention_mask == 0)).all()
        scores = nn.functional.one_hot(input_ids.roll(-1, 1), VOCAB_SIZE).float()
        if self.singular:
            scores = torch.zeros_like(scores)
            scores[..., [number for word, number in WORD_IDS.items() if word.endswith("s")]] = 1.0
        return SimpleNamespace(logits=scores)


@pytest.mark.parametrize("batch_size", [7, 100])
def test_counts_at_the_place_before_the_verb(batch_size):
    sentences = AgreementDataset(60, seed=1)
    assert agreement_accuracy(Knows(), sentences, batch_size) == 1
    singular = [sentences.sentence(i).words[sentences.sentence(i).verb].endswith("s") for i in range(60)]
    assert 0 < sum(singular) < 60
    assert agreement_accuracy(Knows(singular=True), sentences, batch_size) == pytest.approx(sum(singular) / 60)


def test_batches_ignore_padding():
    sentences = AgreementDataset(5, seed=2)
    batch = collate_sentences([sentences[i] for i in range(5)])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()
    assert (batch["labels"] == batch["input_ids"])[batch["attention_mask"] == 1].all()
    assert batch["attention_mask"].sum(1).tolist() == [len(sentences[i]["input_ids"]) for i in range(5)]
