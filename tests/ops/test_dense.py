import pytest
import torch
from torch.testing import assert_close

from longspan.ops import dense, dense_attention
from longspan.ops.dropout import keep_mask

from .brute_force import masked_attention, random_inputs

# batch, heads, queries, keys, head size: few queries, few keys, nothing, and one of everything
SHAPES = [(2, 3, 3, 70, 8), (2, 3, 70, 3, 8), (1, 2, 0, 5, 4), (1, 2, 5, 0, 4), (0, 2, 5, 5, 4), (1, 1, 1, 1, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(params=[False, True], ids=["one-tile", "many-tiles"])
def tiles(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(dense, "_TILE_ELEMENTS", 64)
        monkeypatch.setattr(dense, "KEY_BLOCK", 7)


def options_of(shape, causal, masked):
    B, _, T, S, _ = shape
    options = {}
    visible = torch.ones(B, 1, T, S, dtype=torch.bool)
    if masked:
        options["key_mask"] = torch.rand(B, S) > 0.4
        visible = visible & options["key_mask"][:, None, None]
    if causal:
        options["query_position"], options["key_position"] = torch.randint(0, 50, (B, T)), torch.randint(0, 50, (S,))
        visible = visible & (options["key_position"] <= options["query_position"][..., None])[:, None]
    return options, visible


@shapes
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
def test_matches_brute_force(shape, causal, masked, tiles):
    options, visible = options_of(shape, causal, masked)
    ours = random_inputs(*shape, requires_grad=True)
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    out, lse = dense_attention(*ours, return_lse=True, **options)
    wanted, wanted_lse = masked_attention(*theirs, visible)
    assert_close(out, wanted)
    assert_close(lse, wanted_lse)
    weight = torch.randn_like(out)
    hidden = lse == -torch.inf
    grads = torch.autograd.grad((out * weight).sum() + lse.masked_fill(hidden, 0).sum(), ours)
    loss = (wanted * weight).sum() + wanted_lse.masked_fill(hidden, 0).sum()
    for got, wanted in zip(grads, torch.autograd.grad(loss, theirs), strict=True):
        assert_close(got, wanted.nan_to_num(0))


def test_one_key_head_serves_all_heads(tiles):
    query, _, _ = random_inputs(2, 3, 4, 4, 8, requires_grad=True)
    _, key, value = random_inputs(2, 1, 30, 30, 8, requires_grad=True)
    expanded = [tensor.expand(-1, 3, -1, -1) for tensor in (key, value)]
    weight = torch.randn(2, 3, 4, 8).double()
    shared = torch.autograd.grad((dense_attention(query, key, value) * weight).sum(), (query, key, value))
    copied = torch.autograd.grad((dense_attention(query, *expanded) * weight).sum(), (query, key, value))
    for got, wanted in zip(shared, copied, strict=True):
        assert_close(got, wanted)


def test_dropout(tiles):
    inputs = random_inputs(2, 2, 5, 40, 8)
    keep = keep_mask(torch.tensor(9), 0.4, 2, [0, 1], torch.arange(5), torch.arange(40)) / 0.6
    out = dense_attention(*inputs, dropout_p=0.4, dropout_seed=9)
    assert_close(out, masked_attention(*inputs, torch.ones(1, dtype=torch.bool), keep=keep)[0])


def test_gradcheck_and_opcheck():
    inputs = random_inputs(2, 2, 3, 6, 4, requires_grad=True)
    mask, positions = torch.rand(2, 6) > 0.3, (torch.arange(3) + 3, torch.arange(6))

    def function(*inputs):
        out, lse = dense_attention(
            *inputs, key_mask=mask, query_position=positions[0], key_position=positions[1], dropout_p=0.1,
            dropout_seed=1, return_lse=True,
        )  # fmt: skip
        return out, lse.exp()

    assert torch.autograd.gradcheck(function, inputs)
    arguments = (*inputs, mask, torch.tensor(1), 0.5, 0.1)
    torch.library.opcheck(torch.ops.longspan.dense_attention.default, arguments)
    causal = torch.ops.longspan.dense_causal_attention.default
    torch.library.opcheck(causal, (*arguments, positions[0][None], positions[1][None]))


@pytest.mark.parametrize("shape", [(2, 3, 200, 1, 64), (1, 2, 3, 500, 40), (1, 2, 130, 70, 16)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_kernels(shape, dtype, tolerance):
    options, visible = options_of(shape, causal=False, masked=True)
    ours = random_inputs(*shape, dtype, requires_grad=True)
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    out, lse = dense_attention(*ours, return_lse=True, **options)
    wanted, wanted_lse = masked_attention(*theirs, visible)
    assert_close(out.double(), wanted.nan_to_num(0), atol=tolerance, rtol=tolerance)
    assert_close(lse.double(), wanted_lse, atol=tolerance, rtol=tolerance)
    grads = torch.autograd.grad(out.double().square().sum(), ours)
    for got, grad in zip(grads, torch.autograd.grad(wanted.square().sum(), theirs), strict=True):
        grad = grad.nan_to_num(0)
        # A lone key has gradient 0, the difference of two products as large as those of the values.
        assert (got.double() - grad).abs().max() <= 10 * tolerance * grad.abs().max().clamp(min=1)


def test_errors_teach():
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 5, 8)
    with pytest.raises(ValueError, match="2 heads, wanted 1 or 4"):
        dense_attention(query, key, key)
    with pytest.raises(ValueError, match="go together"):
        dense_attention(query, query, query, query_position=torch.arange(3))
    with pytest.raises(ValueError, match=r"key_position must be \[3\] or \[1, 3\]"):
        dense_attention(query, query, query, query_position=torch.arange(3), key_position=torch.arange(4))
