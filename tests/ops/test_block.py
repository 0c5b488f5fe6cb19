"""Attention to whole blocks against an explicit mask, or, where blocks are met several times, multiplicities."""

import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, block_attention
from longspan.ops.dropout import keep_mask
from longspan.testing import CPU_ISAS, has_kernel, limited_cpu_isa

from .brute_force import largest, masked_attention, random_inputs
from .brute_force_lsh import neighbour_counts

# batch, heads, tokens, head size, block, before, after
SHAPES = [
    (1, 1, 0, 4, 6, 1, 0),
    (0, 2, 5, 4, 2, 1, 0),
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 5, 4, 6, 1, 0),
    (2, 2, 24, 4, 6, 1, 1),
    (2, 1, 31, 5, 6, 2, 0),
    (1, 3, 10, 8, 5, 3, 3),
    (1, 2, 12, 8, 5, 7, 5),
    (1, 1, 37, 33, 1, 2, 1),
    (1, 2, 150, 64, 64, 1, 0),
    (1, 1, 213, 130, 50, 0, 1),
    (1, 2, 97, 80, 100, 1, 0),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "B{}-H{}-T{}-D{}-c{}-{}+{}".format(*shape))
wraps = pytest.mark.parametrize("wrap", [False, True], ids=["ends", "wrap"])
causals = pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])


def block_counts(T, size, before, after, causal, wrap):
    """How often each query sees each key, ``[T, T]``."""
    near = neighbour_counts(1, -(-T // size), before, after, wrap)
    block = torch.arange(T) // size
    counts = near[block[:, None], block] if T else near.new_zeros(0, 0)
    return counts.tril() if causal else counts


def case(shape, dtype, causal, wrap):
    B, H, T, D, size, before, after = shape
    grads = torch.randn(B, H, T, D, dtype=torch.float64), torch.randn(B, H, T, dtype=torch.float64)
    options = dict(
        block_size=size, before=before, after=after, causal=causal, wrap=wrap, key_mask=torch.rand(B, T) > 0.2
    )
    counts = block_counts(T, size, before, after, causal, wrap) * options["key_mask"][:, None, None]
    return random_inputs(B, H, T, T, D, dtype), grads, counts, options


def run(inputs, grads, **options):
    ours = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out, lse = block_attention(*ours, return_lse=True, **options)
    loss = (out.double() * grads[0]).sum() + (lse * grads[1]).masked_fill(lse == -torch.inf, 0).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, ours)


def brute_force(inputs, grads, counts, keep=None):
    theirs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    out, lse = masked_attention(*theirs, counts, keep=keep)
    loss = (out * grads[0]).sum() + (lse * grads[1]).masked_fill(lse == -torch.inf, 0).sum()
    return out.detach(), lse.detach(), *(grad.nan_to_num(0) for grad in torch.autograd.grad(loss, theirs))


def assert_all_close(got, wanted, tolerance):
    for name, ours, theirs in zip(("out", "lse", "dq", "dk", "dv"), got, wanted, strict=True):
        finite = theirs != -torch.inf
        assert ours.shape == theirs.shape and torch.equal(ours != -torch.inf, finite), name
        gap = largest((ours.double() - theirs.double())[finite])
        assert gap <= tolerance * max(1.0, largest(theirs[finite])), f"{name}: off by {gap:.1e}"


@shapes
@causals
@wraps
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str
)
def test_matches_brute_force(shape, causal, wrap, dtype, tolerance):
    inputs, grads, counts, options = case(shape, dtype, causal, wrap)
    assert_all_close(run(inputs, grads, **options), brute_force(inputs, grads, counts), tolerance)


@pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")
@shapes
@wraps
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("isa", CPU_ISAS)
def test_every_instruction_set(shape, isa, wrap, dtype, tolerance):
    inputs, grads, counts, options = case(shape, dtype, causal=shape[6] == 0, wrap=wrap)
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        assert_all_close(run(inputs, grads, **options), brute_force(inputs, grads, counts), tolerance)


@shapes
@wraps
def test_dropout_draws_what_the_definition_draws(shape, wrap):
    """One draw for each pair, however often the block is met."""
    B, H, T, *_ = shape
    inputs, grads, counts, options = case(shape, torch.float32, causal=False, wrap=wrap)
    keep = keep_mask(torch.tensor(9), 0.3, B, list(range(H)), torch.arange(T), torch.arange(T)) / 0.7
    got = run(inputs, grads, dropout_p=0.3, dropout_seed=9, **options)
    assert_all_close(got, brute_force(inputs, grads, counts, keep), 3e-5)


def test_wrapping_round_counts_a_block_as_often_as_it_is_met():
    inputs = random_inputs(1, 1, 10, 10, 4)
    counts = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).repeat_interleave(5, 0).repeat_interleave(5, 1)
    wanted = masked_attention(*inputs, counts)
    got = block_attention(*inputs, block_size=5, before=1, after=1, wrap=True, return_lse=True)
    assert_close(got, wanted)


def test_an_offset_beyond_the_number_of_blocks_is_the_own_block():
    """Three blocks, four back: offsets -4 and 0 and -3 are the own block, -2 and -1 the others."""
    inputs = random_inputs(1, 1, 6, 6, 4)
    counts = (torch.ones(3, 3) + 2 * torch.eye(3)).repeat_interleave(2, 0).repeat_interleave(2, 1).double()
    wanted = masked_attention(*inputs, counts)
    assert_close(block_attention(*inputs, block_size=2, before=4, wrap=True, return_lse=True), wanted)


def test_any_strides():
    inputs, grads, _, options = case((2, 3, 45, 16, 8, 1, 0), torch.float32, causal=True, wrap=True)
    wanted = run(inputs, grads, **options)
    for change in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    ):
        changed = [change(tensor) for tensor in inputs]
        got = run(changed, grads, **options)
        assert_all_close(got, wanted, 1e-6)
        assert got[0].stride() == torch.empty_like(changed[0]).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_run_and_any_thread_count_are_bit_equal(dtype):
    inputs, grads, _, options = case((1, 2, 700, 64, 32, 1, 1), dtype, causal=False, wrap=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 8):
            torch.set_num_threads(count)
            results.append(run(inputs, grads, dropout_p=0.1, dropout_seed=5, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck_opcheck_and_errors():
    inputs = random_inputs(1, 2, 7, 7, 3, requires_grad=True)
    options = dict(block_size=3, causal=True, dropout_p=0.2, dropout_seed=4)
    assert torch.autograd.gradcheck(lambda *inputs: block_attention(*inputs, **options), inputs)
    options = dict(block_size=3, before=3, after=1, wrap=True, return_lse=True)
    assert torch.autograd.gradcheck(lambda *inputs: block_attention(*inputs, **options), inputs)
    op = torch.ops.longspan.block_attention.default
    torch.library.opcheck(op, (*inputs, None, torch.tensor(1), 0.5, 0.1, 3, 1, 0, True, False))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        block_attention(*inputs, block_size=0)
    with pytest.raises(ValueError, match="same tokens"):
        block_attention(inputs[0], inputs[1][:, :, :5], inputs[2][:, :, :5], block_size=3)


@wraps
def test_compiles_whole_and_exports(wrap):
    class Module(torch.nn.Module):
        def forward(self, query, key, value, mask):
            return block_attention(query, key, value, block_size=5, causal=True, wrap=wrap, key_mask=mask)

    def inputs(T):
        return *random_inputs(1, 2, T, T, 8, torch.float32, requires_grad=True), torch.rand(1, T) > 0.2

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    length = torch.export.Dim("length", min=2, max=4096)
    dims = ({2: length}, {2: length}, {2: length}, {1: length})
    exported = torch.export.export(Module(), inputs(17), dynamic_shapes=dims).module()
    for T in (17, 41):
        given = inputs(T)
        wanted = torch.autograd.grad(Module()(*given).square().sum(), given[:3])
        assert_close(torch.autograd.grad(compiled(*given).square().sum(), given[:3]), wanted)
        assert_close(exported(*given), Module()(*given))


def test_the_extension_is_what_ran():
    """Else a green run could be the reference compared with itself."""
    for operator in ("block_attention", "block_attention_backward"):
        assert has_kernel(operator, "CPU") == HAS_EXTENSION
