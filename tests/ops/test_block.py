import pytest
import torch
from torch.testing import assert_close

from longspan.ops import block_attention

from .brute_force import masked_attention, random_inputs


def block_mask(T, size, before, after, causal, wrap):
    mask = torch.zeros(T, T, dtype=torch.bool)
    count = -(-T // size)
    for t in range(T):
        for s in range(T):
            gap = s // size - t // size
            near = any(gap == reach or (wrap and (gap - reach) % count == 0) for reach in range(-before, after + 1))
            mask[t, s] = near and not (causal and s > t)
    return mask


@pytest.mark.parametrize("T", [0, 1, 5, 24, 31])
@pytest.mark.parametrize(("before", "after", "causal"), [(1, 0, True), (1, 1, False), (0, 0, False), (2, 0, True)])
@pytest.mark.parametrize("wrap", [False, True], ids=["ends", "wrap"])
def test_matches_brute_force(T, before, after, causal, wrap):
    ours = random_inputs(2, 2, T, T, 4, requires_grad=True)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    key_mask = torch.rand(2, T) > 0.2
    visible = block_mask(T, 6, before, after, causal, wrap) & key_mask[:, None, None]
    out, lse = block_attention(
        *ours, block_size=6, before=before, after=after, causal=causal, wrap=wrap, key_mask=key_mask, return_lse=True
    )
    wanted, wanted_lse = masked_attention(*theirs, visible)
    assert_close(out, wanted)
    assert_close(lse, wanted_lse)
    for got, grad in zip(
        torch.autograd.grad((out**2).sum(), ours), torch.autograd.grad((wanted**2).sum(), theirs), strict=True
    ):
        assert_close(got, grad.nan_to_num(0))


def test_wrapping_round_meets_each_block_once():
    inputs = random_inputs(1, 1, 10, 10, 4)
    everything = masked_attention(*inputs, torch.ones(1, dtype=torch.bool))[0]
    assert_close(block_attention(*inputs, block_size=5, before=3, after=3, wrap=True), everything)


def test_gradcheck_opcheck_and_errors():
    inputs = random_inputs(1, 2, 7, 7, 3, requires_grad=True)
    options = dict(block_size=3, causal=True, dropout_p=0.2, dropout_seed=4)
    assert torch.autograd.gradcheck(lambda *inputs: block_attention(*inputs, **options), inputs)
    op = torch.ops.longspan.block_attention.default
    torch.library.opcheck(op, (*inputs, None, torch.tensor(1), 0.5, 0.1, 3, 1, 0, True, False))
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        block_attention(*inputs, block_size=0)
    with pytest.raises(ValueError, match="same tokens"):
        block_attention(inputs[0], inputs[1][:, :, :5], inputs[2][:, :, :5], block_size=3)
