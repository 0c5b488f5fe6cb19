"""What is decided once stays decided; draws by others are repeated in step with it."""

import pytest
import torch
from torch import nn

from longspan.layers.decisions import Decisions, SeededDropout, Seeds


def test_a_decision_is_made_once():
    decisions = Decisions()
    first = decisions.once("a", lambda: torch.tensor([1, 2]))
    assert decisions.once("a", lambda: torch.tensor([3])) is first
    assert decisions.once("b", lambda: 4) == 4


def test_a_seed_follows_the_default_generator_and_moves_it_once():
    torch.manual_seed(3)
    decisions = Decisions()
    seed = decisions.seed("x", torch.device("cpu"))
    state = torch.get_rng_state()
    assert seed.dtype == torch.int64 and seed.dim() == 0
    assert decisions.seed("x", torch.device("cpu")) == seed and torch.equal(torch.get_rng_state(), state)
    assert decisions.seed("y", torch.device("cpu")) != seed
    torch.manual_seed(3)
    assert Decisions().seed("x", torch.device("cpu")) == seed


def test_shared_seeds_are_one_draw_and_all_different():
    seeds, cpu = Seeds(), torch.device("cpu")
    first, second = Decisions(seeds), Decisions(seeds)
    first.seed("x", cpu)
    state = torch.get_rng_state()
    drawn = [decisions.seed(key, cpu).item() for decisions in (second, first) for key in "xyz"]
    assert len(set(drawn)) == 6 and torch.equal(torch.get_rng_state(), state)


def test_dropout_is_repeated_with_the_same_decisions_only():
    dropout, other, x = SeededDropout(0.4), SeededDropout(0.4), torch.ones(4000)
    decisions = Decisions()
    out = dropout(x, decisions)
    assert torch.equal(out, dropout(x, decisions))
    assert not torch.equal(out, other(x, decisions)) and not torch.equal(out, dropout(x, Decisions()))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.6).item()}
    assert 0.55 < (out > 0).float().mean() < 0.65
    assert dropout.eval()(x, decisions) is x and SeededDropout(0.0)(x, decisions) is x
    with pytest.raises(ValueError, match=r"p must be a probability in \[0, 1\), got 1"):
        SeededDropout(1.0)


def test_draws_by_others_are_repeated_in_step():
    def work(decisions):
        parts = [torch.rand(2)]
        parts.append(decisions.once("a", lambda: torch.rand(3)))
        parts.append(torch.rand(2))
        parts.append(decisions.once("a", lambda: torch.rand(3)))
        parts.append(decisions.once("b", lambda: torch.rand(1)))
        parts.append(nn.functional.dropout(torch.ones(50), 0.5))
        return torch.cat(parts)

    decisions = Decisions()
    with decisions.recording(torch.device("cpu")):
        first = work(decisions)
    torch.rand(5)
    state = torch.get_rng_state()
    for _ in range(2):
        with decisions.replaying():
            assert torch.equal(work(decisions), first)
        assert torch.equal(torch.get_rng_state(), state)


def test_states_of_generators_are_kept_only_if_somebody_else_draws():
    decisions = Decisions()
    with decisions.recording(torch.device("cpu")):
        decisions.seed("a", torch.device("cpu"))
        decisions.seed("b", torch.device("cpu"))
    assert decisions._draws is None


def test_a_decision_that_comes_up_only_in_the_repetition_is_an_error():
    decisions = Decisions()
    with decisions.recording(torch.device("cpu")):
        decisions.once("a", lambda: 1)
    with decisions.replaying(), pytest.raises(RuntimeError, match="decides 'b' when it is computed again"):
        decisions.once("b", lambda: 1)
