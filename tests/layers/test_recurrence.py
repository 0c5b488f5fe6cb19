"""Ways to recur: each against its equations, written out, and the options that each takes."""

import pytest
import torch
from torch import nn

from longspan.layers.recurrence import RECURRENCES, ActRecurrence, make_recurrence, option_names
from longspan.layers.step_tokens import StepTokens

WIDTH, STEPS = 6, 4


@pytest.fixture
def block():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double()


@pytest.fixture
def hidden():
    return torch.randn(3, 5, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def make(kind, **options):
    torch.manual_seed(2)
    recurrence = make_recurrence(kind, WIDTH, STEPS, options).double()
    for parameter in recurrence.parameters():
        nn.init.normal_(parameter, std=0.5)
    return recurrence


def signal(step):
    """Stands in for the signals of place and step."""
    return 0.1 * (step + 1)


def run(recurrence, hidden, block, mask=None, steps=STEPS, packed=False):
    tokens = StepTokens(mask, torch.arange(hidden.shape[1])[None], frozen=recurrence.frozen, packed=packed)
    return recurrence(hidden, tokens, lambda x, at: x + signal(at.step), lambda x, at: block(x), steps)


def test_fixed_steps(block, hidden):
    outcome, state = run(make("basic"), hidden, block), hidden
    for step in range(STEPS):
        state = block(state + signal(step))
        torch.testing.assert_close(outcome.states[step], state)
    torch.testing.assert_close(outcome.output, state)


@pytest.mark.parametrize("inputs", ["s", "i", "st", "ti", "sti"])
@pytest.mark.parametrize("couple", [True, False])
@pytest.mark.parametrize("kind", ["highway", "skip"])
def test_gates(kind, couple, inputs, block, hidden):
    recurrence, state = make(kind, gates_inputs=inputs[::-1], couple_gates=couple), hidden
    outcome = run(recurrence, hidden, block)
    for step in range(STEPS):
        new = block(state + signal(step))
        seen = {"s": state, "t": new, "i": hidden}
        seen = torch.cat([norm(seen[x]) for norm, x in zip(recurrence.gate_norms, inputs, strict=True)], -1)
        taken = torch.sigmoid(recurrence.transform(seen))
        kept = 1 - taken if couple else torch.sigmoid(recurrence.carry(seen))
        state = new * taken + (state if kind == "highway" else hidden) * kept
    torch.testing.assert_close(outcome.output, state)


def test_gru(block, hidden):
    recurrence, state = make("gru"), hidden
    outcome = run(recurrence, hidden, block)
    for step in range(STEPS):
        a = recurrence.input_norm(block(state + signal(step)))
        update = torch.sigmoid(recurrence.update(torch.cat([a, state], -1)))
        reset = torch.sigmoid(recurrence.reset(torch.cat([a, state], -1)))
        candidate = torch.tanh(recurrence.candidate(torch.cat([a, reset * state], -1)))
        state = recurrence.output_norm((1 - update) * a + update * candidate)
    torch.testing.assert_close(outcome.output, state)


@pytest.mark.parametrize("memory_as_output", [True, False])
def test_lstm(memory_as_output, block, hidden):
    recurrence = make("lstm", forget_bias=0.5, memory_as_output=memory_as_output)
    outcome, state, memory = run(recurrence, hidden, block), hidden, torch.zeros_like(hidden)
    for step in range(STEPS):
        both = torch.cat([recurrence.input_norm(block(state + signal(step))), state], -1)
        taken = torch.sigmoid(recurrence.input(both)) * torch.tanh(recurrence.modulation(both))
        memory = torch.sigmoid(recurrence.forget(both) + 0.5) * memory + taken
        state = recurrence.output_norm(torch.sigmoid(recurrence.output(both)) * torch.tanh(memory))
    torch.testing.assert_close(outcome.output, memory if memory_as_output else state)


@pytest.mark.parametrize("depth_embedding", [True, False])
@pytest.mark.parametrize("per_feature", [True, False])
def test_reading_all_earlier_states(depth_embedding, per_feature, block, hidden):
    recurrence = make("dwa", depth_embedding=depth_embedding, per_feature=per_feature)
    outcome, slots = run(recurrence, hidden, block), [hidden]
    for step in range(STEPS):
        read = torch.zeros_like(hidden)
        for depth in range(step):  # one less than there are: as the original
            slot = slots[depth]
            if depth_embedding:
                slot = slot + recurrence.depth_embedding.weight[depth] * WIDTH**0.5  # pyright: ignore
            read += slot * recurrence.weigh(slot).softmax(-1)
        slots.append(block(read + signal(step)))
    torch.testing.assert_close(outcome.output, slots[-1])
    assert recurrence.max_steps == (STEPS if depth_embedding else None)


def act_by_token(recurrence, hidden, block, mask, copy, how, force):
    """Halting written out for a block that sees single tokens alone."""
    output, counts = torch.zeros_like(hidden), torch.zeros(hidden.shape[:2])
    for b, t in torch.cartesian_prod(torch.arange(hidden.shape[0]), torch.arange(hidden.shape[1])).tolist():
        if mask is not None and not mask[b, t]:
            continue
        state, held = hidden[b, t], 0.0
        for step in range(STEPS):
            timed = state + signal(step)
            p, weight = recurrence.halting(timed), 0.0
            if held < 1:
                counts[b, t] += 1
                halts = held + p > 0.99 or (force and step == STEPS - 1)
                weight = 1 - held if halts else p
                held = 1.0 if halts else held + p
            if not (copy and counts[b, t] < step + 1):
                state = block(timed)
            output[b, t] = (output[b, t] if how == "sum" else (1 - weight) * output[b, t]) + weight * state
    return output, counts


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("how", ["sum", "interpolate"])
@pytest.mark.parametrize("state", ["continue", "copy"])
def test_halting(state, how, force, block, hidden):
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    recurrence = make("act", mix=how, halted_state=state, force_halt_at_max=force)
    nn.init.normal_(recurrence.halting.weight, std=1.5)
    outcome = run(recurrence, hidden, block, mask)
    output, counts = act_by_token(recurrence, hidden, block, mask, state == "copy", how, force)
    assert torch.equal(outcome.halting.n_updates[mask], counts[mask].double())
    torch.testing.assert_close(outcome.output[mask], output[mask])
    assert (outcome.output[~mask] == 0).all() and outcome.halting.n_updates[1, 3:].sum() == 0
    assert len(set(counts[mask].tolist())) > 1


@pytest.mark.parametrize("skip", [True, False])
def test_texts_that_halt_as_a_whole(skip, block, hidden):
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, 3:] = False
    recurrence = make("act", variant="global", skip_padding=skip)
    outcome = run(recurrence, hidden, block, mask)
    first = recurrence.halting(hidden + signal(0))
    where = mask if skip else torch.ones_like(mask)
    expected = torch.stack([row[tokens].mean() for row, tokens in zip(first, where, strict=True)])
    torch.testing.assert_close(outcome.halting_steps[0].probability, expected)
    assert outcome.halting.n_updates.shape == (3,)


def test_random_halting_draws_from_the_default_generator(block, hidden):
    recurrence = make("act", variant="random")
    counts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        counts.append(run(recurrence, hidden, block).halting.n_updates)
    assert torch.equal(counts[0], counts[1]) and not torch.equal(counts[0], counts[2])
    assert not list(recurrence.parameters())


def test_the_loop_stops_when_all_have_halted(block, hidden):
    recurrence = make("act")
    nn.init.zeros_(recurrence.halting.weight)
    nn.init.constant_(recurrence.halting.bias, 9.0)
    outcome = run(recurrence, hidden, block, steps=50)
    assert len(outcome.states) == 1 and (outcome.halting.n_updates == 1).all()
    torch.testing.assert_close(outcome.output, outcome.states[0])
    assert (outcome.halting.remainders == 1).all()


def test_options_are_checked():
    assert option_names("basic") == set() and "mix" in option_names("act")
    assert {"gates_inputs", "couple_gates", "transform_bias"} == option_names("highway")
    assert {"with_transition", "forget_bias", "memory_as_output"} == option_names("lstm")
    with pytest.raises(ValueError, match=r"recurrence = 'act' has no option 'epsilom'; did you mean 'epsilon'\?"):
        make_recurrence("act", 4, 2, {"epsilom": 0.1})
    with pytest.raises(ValueError, match=r"recurrence = 'basic' has no option 'mix' \(it has none"):
        make_recurrence("basic", 4, 2, {"mix": "sum"})
    for options, message in [
        ({"mix": "mean"}, "mix must be one of None, 'interpolate', 'sum', got 'mean'"),
        ({"variant": "each"}, "variant must be one of"),
        ({"epsilon": 1.0}, r"epsilon must lie in \[0, 1\), got 1.0"),
        ({"epsilon": "small"}, "epsilon must be a number, got 'small'"),
        ({"force_halt_at_max": "yes"}, "force_halt_at_max must be True or False, got 'yes'"),
        ({"loss_weight": -1}, "loss_weight must not be negative"),
        ({"variant": "accumulated", "mix": "interpolate"}, "sums: mix must be 'sum'"),
        ({"halted_kv": "reuse"}, "needs halted_state = 'copy'"),
        ({"packed": True, "halted_state": "copy"}, "packed = True needs"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_recurrence("act", 4, 2, options)
    with pytest.raises(ValueError, match="gates_inputs must name"):
        make_recurrence("highway", 4, 2, {"gates_inputs": "x"})
    assert ActRecurrence(4, 2, variant="accumulated").mix == "sum"
    assert set(RECURRENCES) == {"basic", "act", "highway", "skip", "gru", "lstm", "dwa"}
