"""The smoothed loss: against its definition, 0 for a perfect model, and nothing from what is not scored."""

import math

import pytest
import torch
from torch.nn import functional as F

from longspan.layers.label_smoothing import smoothed_cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_definition(smoothing):
    logits = torch.randn(3, 4, 7, dtype=torch.float64)
    labels = torch.randint(7, (3, 4))
    labels[0, 2:] = -100
    wanted = torch.full((3, 4, 7), smoothing / 6, dtype=torch.float64)
    wanted.scatter_(-1, labels.clamp(min=0)[..., None], 1 - smoothing)
    entropy = -(torch.special.xlogy(wanted, wanted)).sum(-1)
    losses = -(wanted * logits.log_softmax(-1)).sum(-1) - entropy
    expected = losses[labels != -100].mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, smoothing), expected)
    total = smoothed_cross_entropy(logits, labels, smoothing, num_items_in_batch=20)
    torch.testing.assert_close(total, expected * 10 / 20)
    if smoothing == 0:
        torch.testing.assert_close(expected, F.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def test_a_perfect_model_has_no_loss():
    logits = torch.full((5, 9), math.log(0.1 / 8)).scatter(1, torch.arange(5)[:, None], math.log(0.9))
    assert abs(smoothed_cross_entropy(logits, torch.arange(5), 0.1).item()) < 1e-6


def test_half_precision_is_summed_in_float32():
    logits = torch.randn(50, 7).bfloat16()
    loss = smoothed_cross_entropy(logits, torch.randint(7, (50,)), 0.1)
    assert loss.dtype == torch.float32
