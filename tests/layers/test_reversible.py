"""Gradients of a stack that keeps no activations are those of the stack that keeps them all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from longspan.layers.reversible import reversible

from .toy_stack import SIZE, loss_of, stack

ROOT = Path(__file__).parents[2]
F64 = torch.float64


def differentiate(blocks, hidden, *args, wanted=(), seed=7, **options):
    """Both streams and the gradients of hidden, parameters and ``wanted``; draws as ``seed`` says."""
    torch.manual_seed(seed)
    hidden = hidden.detach().requires_grad_()
    streams = reversible(blocks, hidden, *args, **options)
    wanted = [hidden, *wanted, *(p for p in blocks.parameters() if p.requires_grad)]
    state = torch.get_rng_state()
    grads = torch.autograd.grad(loss_of(streams), wanted, allow_unused=True)
    assert torch.equal(torch.get_rng_state(), state), "backward moved the default generator"
    return streams, grads


def assert_same(actual, expected, tolerance=1e-6):
    """Relative to the largest entry of each."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a is None) == (e is None)
        if e is not None:
            assert (a - e).abs().max() <= tolerance * e.abs().max(), (a - e).abs().max() / e.abs().max()


def assert_like_autograd(blocks, hidden, *args, tolerance=1e-6, **options):
    streams, grads = differentiate(blocks, hidden, *args, **options)
    kept, expected = differentiate(blocks, hidden, *args, keep_activations=True, **options)
    assert type(streams[0].grad_fn).__name__ == "_ReversibleBackward"
    assert all(torch.equal(a, b) for a, b in zip(streams, kept, strict=True))
    assert_same(grads, expected, tolerance)
    return grads


@pytest.mark.parametrize("rows", [0, 1, 4, 100])
@pytest.mark.parametrize("foreign", [0.0, 0.4])
def test_gradients_with_dropout(rows, foreign):
    blocks = stack(4, foreign=foreign)
    mask = torch.tensor([[1.0] * 11, [1.0] * 6 + [0.0] * 5])
    grads = assert_like_autograd(blocks, torch.randn(2, 11, SIZE), mask, rows=rows)
    assert all(grad.abs().max() > 0 for grad in grads)


def test_dropout_makes_the_difference():
    """Else the test above would show little."""
    blocks, hidden = stack(), torch.randn(2, 11, SIZE)
    first, second = (differentiate(blocks, hidden, seed=seed)[1] for seed in (1, 2))
    assert (first[0] - second[0]).abs().max() > 0.1 * first[0].abs().max()
    again = differentiate(blocks, hidden, seed=1)[1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "torch.manual_seed fixes a step"


def test_gradients_in_eval():
    assert_like_autograd(stack().eval(), torch.randn(2, 5, SIZE))


@pytest.mark.parametrize("shape", [(1, 0, SIZE), (0, 3, SIZE), (1, 1, SIZE)])
def test_odd_shapes(shape):
    blocks = stack()
    hidden = torch.randn(shape, requires_grad=True)
    streams = reversible(blocks, hidden, rows=2)
    loss_of(streams).backward()
    assert streams[0].shape == shape and hidden.grad is not None and hidden.grad.shape == shape


def test_gradcheck():
    blocks = stack(2, foreign=0.2).double()
    hidden, bias = torch.randn(1, 3, SIZE, dtype=F64), torch.randn(SIZE, dtype=F64)
    parameters = [p for name, p in blocks.named_parameters() if p.dim() == 1 or name == "1.values.weight"]

    def function(hidden, bias, *parameters):
        torch.manual_seed(0)
        return loss_of(reversible(blocks, hidden, None, bias, rows=2))

    assert torch.autograd.gradcheck(function, [hidden.requires_grad_(), bias.requires_grad_(), *parameters])


def test_tensor_arguments_get_gradients_and_others_pass_through():
    blocks = stack().double()
    hidden, mask = torch.randn(2, 5, SIZE, dtype=F64), torch.ones(2, 5, dtype=torch.bool)
    bias = torch.randn(SIZE, dtype=F64, requires_grad=True)
    with_bias = assert_like_autograd(blocks, hidden, mask, bias, 0.5, wanted=[bias], tolerance=1e-12)
    assert with_bias[1].abs().max() > 0
    only_bias = torch.randn(SIZE, dtype=F64, requires_grad=True)
    for parameter in blocks.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(0)
    loss_of(reversible(blocks, hidden, mask, only_bias)).backward()
    torch.manual_seed(0)
    loss = loss_of(reversible(blocks, hidden, mask, only_bias, keep_activations=True))
    assert_same([only_bias.grad], torch.autograd.grad(loss, only_bias), 1e-12)


def test_only_one_stream_in_use():
    blocks = stack().double()
    hidden = torch.randn(2, 5, SIZE, dtype=F64, requires_grad=True)
    results = []
    for keep in (False, True):
        torch.manual_seed(0)
        _, x2 = reversible(blocks, hidden, keep_activations=keep)
        results.append(torch.autograd.grad(x2.sin().sum(), hidden))
    assert_same(*results, 1e-12)


def test_frozen_parameters_and_inputs():
    blocks, hidden = stack(), torch.randn(2, 5, SIZE)
    for parameter in [*blocks[0].parameters(), *blocks[1].values.parameters()]:
        parameter.requires_grad_(False)
    assert_like_autograd(blocks, hidden)
    for block in blocks:
        block.calls = 0
    loss_of(reversible(blocks, hidden)).backward()
    assert all(p.grad is None for p in blocks[0].parameters())
    assert [block.calls for block in blocks] == [1, 2, 2], "nothing below the lowest trained layer is computed again"


def test_nothing_to_train_is_a_plain_loop():
    blocks, hidden = stack(), torch.randn(1, 5, SIZE)
    with torch.no_grad():
        assert reversible(blocks, hidden)[0].grad_fn is None
    for parameter in blocks.parameters():
        parameter.requires_grad_(False)
    assert reversible(blocks, hidden)[0].grad_fn is None
    x1, x2 = reversible([], hidden.half().requires_grad_())
    assert x1.dtype == torch.float32 and torch.equal(x1, hidden.half().float()) and torch.equal(x1, x2)


def test_shared_and_unused_parameters():
    blocks = stack()
    blocks[2] = blocks[0]
    blocks[1].outer.weight = blocks[0].outer.weight
    blocks[1].idle = nn.Linear(2, 2)
    grads = assert_like_autograd(blocks, torch.randn(2, 5, SIZE))
    assert sum(grad is None for grad in grads) == 2


def test_a_parameter_that_is_used_outside_too():
    blocks = stack()
    weight = blocks.get_parameter("0.values.weight")
    results = []
    for keep in (False, True):
        blocks.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = torch.randn(2, 5, SIZE) @ weight
            x1, x2 = reversible(blocks, hidden, keep_activations=keep)
            loss = loss_of((x1 @ weight, blocks[1].values(x2))).float()
        loss.backward()
        results.append([p.grad for p in blocks.parameters()])
    assert_same(*results, 0.02)


def test_autocast_keeps_streams_in_float32():
    blocks, hidden = stack(6), torch.randn(2, 11, SIZE)
    dtypes = []
    blocks[0].values.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        streams = reversible(blocks, hidden.requires_grad_(), rows=4)
        torch.manual_seed(0)
        kept = reversible(blocks, hidden, rows=4, keep_activations=True)
    assert streams[0].dtype == streams[1].dtype == torch.float32
    wanted = [hidden, *blocks.parameters()]
    grads = torch.autograd.grad(loss_of(streams), wanted)  # outside autocast, as it is done
    assert dtypes == [torch.bfloat16] * 3, "computed again in the dtype of the forward pass"
    assert_same(grads, torch.autograd.grad(loss_of(kept), wanted), 0.02)


def test_a_model_in_bfloat16():
    blocks = stack(6).bfloat16()
    hidden = torch.randn(2, 5, SIZE).bfloat16()
    streams, grads = differentiate(blocks, hidden, rows=2)
    assert streams[0].dtype == torch.float32 and all(grad.dtype == torch.bfloat16 for grad in grads)
    assert_same(grads, differentiate(blocks, hidden, rows=2, keep_activations=True)[1], 0.03)


def test_scaled_losses():
    blocks, hidden = stack(), torch.randn(2, 5, SIZE)
    optimizer = torch.optim.SGD(blocks.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    torch.manual_seed(0)
    scaler.scale(loss_of(reversible(blocks, hidden))).backward()
    scaler.unscale_(optimizer)
    torch.manual_seed(0)
    loss = loss_of(reversible(blocks, hidden, keep_activations=True))
    assert_same([p.grad for p in blocks.parameters()], torch.autograd.grad(loss, list(blocks.parameters())))


@pytest.mark.slow
def test_two_processes_under_ddp_and_fsdp(tmp_path):
    program = [sys.executable, "-m", "tests.layers.distributed_stack"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*program, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for process in running:
            out, _ = process.communicate(timeout=120)
            assert process.returncode == 0 and "equal" in out, out
    finally:
        for process in running:
            process.kill()


def test_gradients_accumulate_over_passes_and_calls():
    blocks, hidden = stack(), torch.randn(2, 5, SIZE)
    grads = []
    for keep in (False, True):
        blocks.zero_grad()
        torch.manual_seed(0)
        for _ in range(2):
            twice = reversible(blocks, reversible(blocks, hidden, keep_activations=keep)[1], keep_activations=keep)
            loss_of(twice).backward()
        grads.append([p.grad for p in blocks.parameters()])
    assert_same(*grads)


def test_hooks_on_parameters_see_the_whole_gradient_once():
    blocks, hidden = stack(), torch.randn(2, 9, SIZE)
    weight, seen = blocks.get_parameter("0.inner.weight"), []
    hook = weight.register_hook(lambda grad: seen.append(grad) or grad * 2)
    after = []
    weight.register_post_accumulate_grad_hook(after.append)
    torch.manual_seed(7)
    loss_of(reversible(blocks, hidden, rows=2)).backward()
    assert len(seen) == len(after) == 1
    assert weight._backward_hooks, "and the hook is still there"
    hook.remove()
    expected = differentiate(blocks, hidden, rows=2, keep_activations=True)[1]
    place = 1 + next(i for i, p in enumerate(blocks.parameters()) if p is weight)
    assert_same([weight.grad], [2 * expected[place]])


class Adapted(nn.Module):
    """Stands in for nn.Linear and has no weight."""

    def __init__(self, linear):
        super().__init__()
        self.base, self.down, self.up = linear, nn.Linear(SIZE, 2), nn.Linear(2, SIZE)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.base(x) + self.up(self.dropout(self.down(x)))


def test_adapters():
    blocks = stack(p=0.0)
    for parameter in blocks.parameters():
        parameter.requires_grad_(False)
    for block in blocks:
        block.values = Adapted(block.values)
    grads = assert_like_autograd(blocks, torch.randn(2, 9, SIZE))
    assert len(grads) == 1 + 6 + 6


def test_parametrized_weights():
    blocks = stack()
    nn.utils.parametrizations.weight_norm(blocks[1].inner)
    assert_like_autograd(blocks, torch.randn(2, 5, SIZE), tolerance=1e-5)


def test_states_are_the_second_stream_around_every_layer():
    blocks, hidden, states = stack().eval(), torch.randn(2, 5, SIZE), []
    torch.manual_seed(0)
    _, x2 = reversible(blocks, hidden, states=states)
    assert len(states) == 4 and torch.equal(states[0], hidden) and states[-1] is x2
    torch.manual_seed(0)
    assert torch.equal(reversible(blocks[:2], hidden)[1], states[2])
    assert torch.autograd.grad(states[1].sum(), blocks[0].inner.weight)[0].abs().max() > 0


def test_checkpointing_around_it():
    blocks, hidden = stack(foreign=0.2), torch.randn(2, 5, SIZE, requires_grad=True)
    bias = torch.zeros(SIZE, requires_grad=True)
    results = []
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        if reentrant is None:
            streams = reversible(blocks, hidden, None, bias)
        else:
            streams = checkpoint(reversible, blocks, hidden, None, bias, use_reentrant=reentrant)
        hidden.grad = bias.grad = None
        blocks.zero_grad()
        loss_of(streams).backward()
        results.append([hidden.grad, bias.grad, *(p.grad for p in blocks.parameters())])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


def test_compilation():
    blocks, hidden = stack(p=0.0).eval(), torch.randn(2, 6, SIZE, requires_grad=True)
    for block in blocks:
        nn.init.zeros_(block.get_parameter("table.weight"))  # hashes are drawn in another order when compiled

    def run(hidden):
        return loss_of(reversible(blocks, hidden, rows=4))

    whole = torch.compile(run, backend="aot_eager", fullgraph=True)
    assert_same(torch.autograd.grad(whole(hidden), hidden), torch.autograd.grad(run(hidden), hidden))


def test_copies_of_data_parallel_keep_activations():
    """Their parameters are tensors with a history, which no list of parameters names."""

    def copy_of(module):
        copy = module._replicate_for_data_parallel()
        copy._parameters = {}
        for name, parameter in module.named_parameters(recurse=False):
            setattr(copy, name, parameter * 1.0)
        for name, child in module.named_children():
            setattr(copy, name, copy_of(child))
        return copy

    block = stack(1)[0]
    copy = copy_of(block)
    assert not list(copy.parameters())
    loss_of(reversible([copy], torch.randn(1, 3, SIZE))).backward()
    assert all(p.grad is not None for p in block.parameters())


def test_the_graph_can_be_retained():
    blocks, hidden = stack(), torch.randn(2, 5, SIZE, requires_grad=True)
    loss = sum(x.sum() for x in reversible(blocks, hidden))
    first = torch.autograd.grad(loss, hidden, retain_graph=True)
    second = torch.autograd.grad(loss, hidden)
    assert torch.equal(first[0], second[0])
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, hidden)


def test_backward_lets_go_of_streams_and_decisions():
    """A training loop holds its loss, and the graph with it, until the next step."""
    blocks, hidden = stack(), torch.randn(2, 5, SIZE, requires_grad=True)
    x1, x2 = reversible(blocks, hidden)
    call = getattr(x1.grad_fn, "call")  # noqa: B009
    assert call.streams[0].data_ptr() == x1.data_ptr()
    (x1 + x2).sum().backward()
    assert call.streams is None and call.decisions is None


def test_differentiating_twice_is_refused_with_the_way_out():
    blocks, hidden = stack(), torch.randn(2, 5, SIZE, requires_grad=True)
    with pytest.raises(RuntimeError, match="keep_activations=True"):
        torch.autograd.grad(loss_of(reversible(blocks, hidden)), hidden, create_graph=True)
    (grad,) = torch.autograd.grad(loss_of(reversible(blocks, hidden, keep_activations=True)), hidden, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), hidden)[0].abs().max() > 0


def change_weight(blocks, streams):
    with torch.no_grad():
        blocks[1].inner.weight.mul_(2)


def replace_weight(blocks, streams):
    blocks[1].inner.weight = nn.Parameter(blocks[1].inner.weight.detach())


def switch_off_training(blocks, streams):
    blocks.eval()


def change_stream(blocks, streams):
    with torch.no_grad():
        streams[1].add_(1)


@pytest.mark.parametrize("change", [change_weight, replace_weight, switch_off_training, change_stream])
def test_what_would_make_gradients_wrong_is_an_error(change):
    blocks, hidden = stack(), torch.randn(2, 5, SIZE, requires_grad=True)
    streams = reversible(blocks, hidden)
    loss = streams[0].sum() + streams[1].sum()
    change(blocks, streams)
    with pytest.raises(RuntimeError, match="of reversible layers w"):
        loss.backward()


def test_an_argument_that_was_changed_is_an_error():
    blocks, mask = stack(), torch.ones(2, 5)
    loss = loss_of(reversible(blocks, torch.randn(2, 5, SIZE), mask))
    mask.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_rows_must_not_be_negative():
    with pytest.raises(ValueError, match=r"rows must be .* got -1"):
        reversible(stack(), torch.randn(1, 3, SIZE), rows=-1)


def test_outputs_of_the_forward_pass_are_left_alone():
    """Backward reconstructs into memory of its own: the caller may still hold the streams."""
    blocks, hidden = stack(), torch.randn(2, 5, SIZE, requires_grad=True)
    streams = reversible(blocks, hidden, rows=2)
    before = [x.detach().clone() for x in (*streams, hidden)]
    loss_of(streams).backward()
    assert all(torch.equal(a, b) for a, b in zip((*streams, hidden), before, strict=True))
