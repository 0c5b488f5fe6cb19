import pytest
import torch
from torch.testing import assert_close

from longspan.ops import banded_attention, dense_attention, merge
from longspan.ops.merge import _merge_pair, _merge_pair_backward

from .brute_force import band_mask, masked_attention, random_inputs


def test_a_window_and_a_few_more_keys_are_one_softmax():
    ours = random_inputs(2, 3, 40, 40, 8, requires_grad=True)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    extra = [0, 7, 30]
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[:, extra] = False
    query, key, value = ours
    window = banded_attention(query, key, value, window=(3, 3), key_mask=mask, return_lse=True)
    few = dense_attention(query, key[:, :, extra], value[:, :, extra], return_lse=True)
    out, lse = merge([window[0], few[0]], [window[1], few[1]])
    visible = band_mask(3, 40, 40, (3, 3), 1)
    visible[:, :, extra] = True
    wanted, wanted_lse = masked_attention(*theirs, visible)
    assert_close(out, wanted)
    assert_close(lse, wanted_lse)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum() + lse.sum(), ours)
    for got, grad in zip(grads, torch.autograd.grad((wanted * weight).sum() + wanted_lse.sum(), theirs), strict=True):
        assert_close(got, grad)


def test_gradcheck():
    outs = [torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *x: merge(x[:3], x[3:]), [*outs, *lses])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_kernel_is_the_reference(dtype):
    a, b, grad = (torch.randn(2, 37, 3, 10).to(dtype).transpose(1, 2) for _ in range(3))
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    a_lse, b_lse, grad_lse = (torch.randn(2, 3, 37, dtype=statistics) * 5 for _ in range(3))
    a_lse[0, 0, :5] = b_lse[0, 0, 3:9] = -torch.inf
    got = torch.ops.longspan.merge_pair(a, a_lse, b, b_lse)
    assert got[0].stride() == a.stride()
    assert_close(got, _merge_pair(a, a_lse, b, b_lse))
    arguments = (grad, grad_lse, a, a_lse, b, b_lse)
    assert_close(torch.ops.longspan.merge_pair_backward(*arguments), _merge_pair_backward(*arguments))
    strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (a, b)]
    assert_close(torch.ops.longspan.merge_pair(strided[0], a_lse, strided[1], b_lse), got, check_stride=False)


def test_opcheck():
    a, b = (torch.randn(1, 2, 5, 3, requires_grad=True) for _ in range(2))
    a_lse, b_lse = (torch.randn(1, 2, 5, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.longspan.merge_pair.default, (a, a_lse, b, b_lse))


def test_rows_without_any_key():
    outs = [torch.randn(1, 1, 3, 2, requires_grad=True) for _ in range(2)]
    lses = [torch.tensor([[[0.0, -torch.inf, -torch.inf]]], requires_grad=True) for _ in range(2)]
    lses[1] = torch.tensor([[[1.0, 2.0, -torch.inf]]], requires_grad=True)
    out, lse = merge(outs, lses)
    assert lse[0, 0, 2] == -torch.inf and (out[0, 0, 2] == 0).all()
    assert_close(out[0, 0, 1], outs[1][0, 0, 1])
    grads = torch.autograd.grad(out.sum() + lse[..., :2].sum(), [*outs, *lses])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert all((grad[0, 0, 2] == 0).all() for grad in grads)


def test_errors_teach():
    with pytest.raises(ValueError, match="at least one; got 0 and 0"):
        merge([], [])
    with pytest.raises(ValueError, match="shape of out"):
        merge([torch.zeros(1, 2, 3, 4)], [torch.zeros(1, 2, 4)])
