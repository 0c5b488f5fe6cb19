from types import SimpleNamespace

import pytest
import torch
from torch import nn

from longspan.data.sequence_pairs import SequencePairCollator
from longspan.training.sequence_accuracy import sequence_accuracy


class Echo(nn.Module):
    """Says what its input says, whatever is asked."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.was_training = []

    def forward(self, input_ids, attention_mask, labels, shift=0):
        self.was_training.append(self.training)
        ids = torch.nn.functional.pad(input_ids, (0, max(0, labels.shape[1] - input_ids.shape[1])))
        logits = torch.nn.functional.one_hot((ids[:, : labels.shape[1]] + shift) % 10, 10).float()
        return SimpleNamespace(logits=logits)


PAIRS = [
    {"input_ids": [3, 4, 5], "labels": [3, 4, 5]},
    {"input_ids": [6], "labels": [7]},
    {"input_ids": [8, 9], "labels": [8, 2]},
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_counts_symbols_and_whole_sequences_without_padding(batch_size):
    model = Echo().train()
    found = sequence_accuracy(model, PAIRS, SequencePairCollator(), batch_size=batch_size)
    assert found == (4 / 6, 1 / 3)
    assert model.training and not any(model.was_training)


def test_passes_inputs_on_and_refuses_nothing_to_count():
    assert sequence_accuracy(Echo(), PAIRS, SequencePairCollator(), shift=1) == (1 / 6, 1 / 3)
    with pytest.raises(ValueError, match="at least one label"):
        sequence_accuracy(Echo(), [], SequencePairCollator())
