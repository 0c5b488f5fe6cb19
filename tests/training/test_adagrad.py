"""Adagrad that clips tensor by tensor, against numbers worked out by hand and torch's own."""

import math

import pytest
import torch
from torch import nn

from longspan.training.adagrad import ClippedAdagrad, linear_warmup


def step(optimizer, *gradients):
    for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients, strict=True):
        parameter.grad = None if gradient is None else torch.tensor(gradient)
    optimizer.step()


def test_steps_shrink_but_the_sum_takes_the_whole_gradient():
    weight, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(1))
    optimizer = ClippedAdagrad([weight, other], lr=0.1, clip=0.5)
    step(optimizer, [3.0, 4.0], [0.2])  # norms 5, so a tenth of the step, and 0.2: the whole step
    torch.testing.assert_close(weight.data, torch.tensor([-0.01, -0.01]))
    torch.testing.assert_close(other.data, torch.tensor([0.9]))
    step(optimizer, [0.3, 0.4], None)  # at the limit
    sums = torch.tensor([9.09, 16.16])
    torch.testing.assert_close(optimizer.state[weight]["sum"], sums)
    torch.testing.assert_close(weight.data, -0.01 - 0.1 * torch.tensor([0.3, 0.4]) / sums.sqrt())
    assert other.item() == pytest.approx(0.9)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("clip", [None, 1e6])
def test_without_clipping_is_adagrad(clip, weight_decay):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    optimizers = (
        ClippedAdagrad(ours.parameters(), lr=0.05, clip=clip, weight_decay=weight_decay),
        torch.optim.Adagrad(theirs.parameters(), lr=0.05, weight_decay=weight_decay),
    )
    for _ in range(10):
        x = torch.randn(4, 5, dtype=torch.float64)
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name])


def test_gradients_of_zero_and_of_half_precision():
    weight = nn.Parameter(torch.ones(3))
    step(ClippedAdagrad([weight]), [0.0, 0.0, 0.0])
    assert weight.tolist() == [1.0] * 3
    half = nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    half.grad = torch.full_like(half, 300.0)
    ClippedAdagrad([half], lr=1.0, clip=300.0).step()
    torch.testing.assert_close(half.data.float(), torch.full((4096,), -1 / 64), rtol=0.02, atol=0)


def test_groups_closures_and_saved_states():
    torch.manual_seed(0)
    spans, others = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    groups = [{"params": [spans], "lr": 0.5, "clip": None}, {"params": [others]}]
    optimizer = ClippedAdagrad(groups, lr=0.1, clip=1.0)

    def loss():
        optimizer.zero_grad()
        value = ((spans - 30) ** 2).sum() + ((others - 30) ** 2).sum()
        value.backward()
        return value

    assert optimizer.step(loss).item() == 3600
    torch.testing.assert_close(spans.data, torch.full((2,), 0.5))
    torch.testing.assert_close(others.data, torch.full((2,), 0.1 / math.hypot(60, 60)))
    again = ClippedAdagrad(groups, lr=0.1, clip=1.0)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.state[spans]["sum"], optimizer.state[spans]["sum"])


def test_warm_up_counts_from_one_and_stays():
    optimizer = ClippedAdagrad([nn.Parameter(torch.zeros(1))], lr=0.07)
    schedule = linear_warmup(optimizer, 4)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.0175, 0.035, 0.0525, 0.07, 0.07, 0.07])
    none = linear_warmup(ClippedAdagrad([nn.Parameter(torch.zeros(1))], lr=0.07), 0)
    assert none.get_last_lr() == [0.07]


def test_what_makes_no_sense():
    weight = nn.Parameter(torch.zeros(3, 2))
    for options, message in [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"clip": 0.0}, "clip must be above 0, or None for no clipping, got 0.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ClippedAdagrad([weight], **options)
    with pytest.raises(ValueError, match="steps must not be negative"):
        linear_warmup(ClippedAdagrad([weight]), -1)
    weight.grad = torch.sparse_coo_tensor([[0], [1]], [1.0], (3, 2))
    with pytest.raises(ValueError, match="sparse=False"):
        ClippedAdagrad([weight]).step()
