"""Adaptive computation time: bookkeeping against a loop over single tokens, the unit, costs and summaries."""

import itertools

import pytest
import torch

from longspan.layers.halting import HaltingState, HaltingUnit, mix, ponder_cost, ponder_summary


def alone(p, epsilon, steps, force):
    """One token, in plain numbers: weights, number of updates, remainder and sum, as the paper's appendix has them."""
    held, remainder, count, weights = 0.0, 0.0, 0, []
    for step in range(steps):
        weight = 0.0
        if held < 1:
            count += 1
            if held + p[step] > 1 - epsilon or (force and step == steps - 1):
                remainder = weight = 1 - held
                held = 1.0
            else:
                weight = p[step]
                held += p[step]
        weights.append(weight)
    return weights, count, remainder, held


def run(p, epsilon, force=False, running=None):
    held = HaltingState.begin(torch.ones(p.shape[1:], dtype=torch.bool) if running is None else running, p.dtype)
    weights = []
    for step in range(len(p)):
        held, weight = held.advance(p[step], epsilon, force and step == len(p) - 1)
        weights.append(weight)
    return held, torch.stack(weights)


@pytest.mark.parametrize(("epsilon", "force"), [(0.0, False), (0.0, True), (0.01, False), (0.2, True)])
def test_bookkeeping_equals_that_of_single_tokens(epsilon, force):
    p = torch.rand(7, 4, 9, dtype=torch.float64) ** 2
    held, weights = run(p, epsilon, force)
    for index in itertools.product(range(4), range(9)):
        expected, count, remainder, total = alone(p[(slice(None), *index)].tolist(), epsilon, 7, force)
        assert weights[(slice(None), *index)].tolist() == pytest.approx(expected, abs=1e-12)
        assert held.n_updates[index] == count
        assert held.remainders[index].item() == pytest.approx(remainder, abs=1e-12)
        assert held.probability[index].item() == pytest.approx(total, abs=1e-12)
    assert len(set(held.n_updates.flatten().tolist())) > 2


def test_weights_sum_to_one_when_the_last_step_halts():
    p = torch.rand(6, 50) * 0.2
    assert not torch.allclose(run(p, 0.01)[1].sum(0), torch.ones(50))
    held, weights = run(p, 0.01, force=True)
    torch.testing.assert_close(weights.sum(0), torch.ones(50))
    assert not held.running.any() and (held.probability == 1).all()


def test_a_sum_just_at_the_threshold_neither_halts_nor_goes_on():
    held, _ = run(torch.tensor([[0.5], [0.25]]), 0.25)
    assert held.running.all() and held.remainders == 0
    assert not held.undecided(0.25).any()


def test_padding_takes_no_part():
    running = torch.tensor([True, False])
    held, weights = run(torch.full((3, 2), 0.4), 0.01, force=True, running=running)
    assert held.n_updates.tolist() == [3, 0] and weights[:, 1].sum() == 0 and held.remainders[1] == 0


def test_gradient_of_remainders():
    """-1 for each probability before the halting one, 0 after; a token that never halts has none, unless forced."""
    p = torch.tensor([[0.3, 0.1], [0.3, 0.1], [0.9, 0.1], [0.9, 0.1]], requires_grad=True)
    held, _ = run(p, 0.01)
    (grad,) = torch.autograd.grad(ponder_cost(held.n_updates, held.remainders), p)
    assert (2 * grad[:, 0]).tolist() == [-1, -1, 0, 0] and (2 * grad[:, 1]).tolist() == [0, 0, 0, 0]
    held, _ = run(p, 0.01, force=True)
    (grad,) = torch.autograd.grad(ponder_cost(held.n_updates, held.remainders), p)
    assert (2 * grad[:, 1]).tolist() == [-1, -1, -1, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_kept_wide(dtype):
    """Ten small probabilities vanish in a bfloat16 sum; and halting is exact."""
    unit = HaltingUnit(8, -6.0).to(dtype)
    p = unit(torch.zeros(3, 5, 8, dtype=dtype))
    wide = torch.promote_types(dtype, torch.float32)
    assert p.dtype == wide and p.shape == (3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert unit(torch.zeros(3, 5, 8, dtype=dtype)).dtype == wide
    held = HaltingState.begin(torch.ones(3, 5, dtype=torch.bool), dtype)
    for step in range(400):
        held, weight = held.advance(p, 0.01, step == 399)
        assert weight.dtype == held.probability.dtype == wide
    assert (held.probability == 1).all()


def test_the_unit_starts_at_its_bias():
    unit = HaltingUnit(8, 1.0)
    torch.testing.assert_close(unit(torch.zeros(2, 8)), torch.full((2,), 0.7310586))


def test_mixing():
    output, state = torch.full((2, 3), 10.0), torch.full((2, 3), 2.0)
    weight = torch.tensor([0.25, 0.0])
    assert mix(output, state, weight, "sum").tolist() == [[10.5] * 3, [10.0] * 3]
    assert mix(output, state, weight, "interpolate").tolist() == [[8.0] * 3, [10.0] * 3]


def test_cost_is_a_mean_over_what_counts():
    n_updates, remainders = torch.tensor([[1.0, 3.0], [5.0, 7.0]]), torch.tensor([[0.5, 0.0], [0.0, 0.5]])
    assert ponder_cost(n_updates, remainders) == 17 / 4
    assert ponder_cost(n_updates, remainders, torch.tensor([[True, False], [True, False]])) == 6.5 / 2
    assert ponder_cost(n_updates, remainders, torch.zeros(2, 2, dtype=torch.bool)) == 0
    assert ponder_cost(n_updates[:, :0], remainders[:, :0]) == 0


def test_summary_per_text():
    n_updates = torch.tensor([[1.0, 3.0, 8.0], [2.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    summary = ponder_summary(n_updates, mask)
    assert summary.mean.tolist() == [2, 2, 0] and summary.std.tolist() == [1, 0, 0]
    assert summary.largest.tolist() == [3, 2, 0]
    assert ponder_summary(n_updates).mean[0] == 4
    assert ponder_summary(torch.tensor([3.0, 4.0])).mean.tolist() == [3, 4]  # texts that halt as a whole
