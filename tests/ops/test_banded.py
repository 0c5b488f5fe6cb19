import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, banded_attention, banded_scores
from longspan.ops.dropout import keep_mask
from longspan.testing import BANDED_SHAPES, CPU_ISAS, has_kernel, limited_cpu_isa, shape_id

from .brute_force import band_mask, largest, masked_attention, random_inputs

banded_shapes = pytest.mark.parametrize("shape", BANDED_SHAPES, ids=shape_id)
needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")


def run(query, key, value, grad_out, grad_lse, **options):
    """Output, lse and the three gradients of one call."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (query, key, value)]
    out, lse = banded_attention(*inputs, return_lse=True, **options)
    seen = lse != -torch.inf
    loss = (out.to(grad_out.dtype) * grad_out).sum() + (lse * grad_lse).masked_fill(~seen, 0).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)


def brute_force(query, key, value, grad_out, grad_lse, *, window, dilation=1, key_mask=None, keep=None):
    inputs = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    visible = band_mask(query.shape[1], query.shape[2], key.shape[2], window, dilation)[None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None]
    out, lse = masked_attention(*inputs, visible, keep=keep)
    loss = (out * grad_out).sum() + (lse * grad_lse).masked_fill(lse == -torch.inf, 0).sum()
    grads = torch.autograd.grad(loss, inputs)
    return out.detach(), lse.detach(), *(grad.nan_to_num(0) for grad in grads)


def assert_all_close(got, wanted, tolerance):
    for name, ours, theirs in zip(("out", "lse", "dq", "dk", "dv"), got, wanted, strict=True):
        assert ours.shape == theirs.shape, name
        finite = theirs != -torch.inf
        assert torch.equal(ours != -torch.inf, finite), name
        gap = largest((ours.double() - theirs.double())[finite])
        assert gap <= tolerance * max(1.0, largest(theirs[finite])), f"{name}: off by {gap:.1e}"


def case(shape, dtype, masked):
    B, H, T, S, D, window, dilation = shape
    query, key, value = random_inputs(B, H, T, S, D, dtype)
    grad_out, grad_lse = torch.randn(B, H, T, D, dtype=torch.float64), torch.randn(B, H, T, dtype=torch.float64)
    key_mask = None
    if masked:
        key_mask = torch.rand(B, S) > 0.3
        key_mask[:, S // 2 :] &= torch.rand(B, 1) > 0.5  # some rows lose half their keys in one piece
    return (query, key, value, grad_out, grad_lse), dict(window=window, dilation=dilation, key_mask=key_mask)


@banded_shapes
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
    ids=str,
)
def test_matches_brute_force(shape, masked, dtype, tolerance):
    inputs, options = case(shape, dtype, masked)
    assert_all_close(run(*inputs, **options), brute_force(*inputs, **options), tolerance)


@needs_extension
@banded_shapes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("isa", CPU_ISAS)
def test_every_instruction_set(shape, isa, dtype, tolerance):
    inputs, options = case(shape, dtype, masked=True)
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        assert_all_close(run(*inputs, **options), brute_force(*inputs, **options), tolerance)


@banded_shapes
def test_dropout_draws_what_the_definition_draws(shape):
    B, H, T, S, *_ = shape
    inputs, options = case(shape, torch.float32, masked=False)
    seed = torch.tensor(0x123456789ABCDEF)
    keep = keep_mask(seed, 0.3, B, list(range(H)), torch.arange(T), torch.arange(S)) / 0.7
    got = run(*inputs, dropout_p=0.3, dropout_seed=seed, **options)
    assert_all_close(got, brute_force(*inputs, keep=keep, **options), 3e-5)


def test_dropout_keeps_the_wanted_share_of_pairs_independently():
    keep = keep_mask(torch.tensor(1), 0.25, 2, [0, 1, 2], torch.arange(300), torch.arange(300)).double()
    assert keep.mean().item() == pytest.approx(0.75, abs=2e-3)  # sigma is 6e-4
    centred = keep - keep.mean()
    for dim in range(4):  # neighbours along batch, head, query and key are uncorrelated
        size = centred.shape[dim] - 1
        product = (centred.narrow(dim, 0, size) * centred.narrow(dim, 1, size)).mean() / centred.var()
        assert abs(product.item()) < 6e-3
    other = keep_mask(torch.tensor(2), 0.25, 2, [0, 1, 2], torch.arange(300), torch.arange(300)).double()
    assert abs(((other - other.mean()) * centred).mean().item()) < 2e-3


@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
def test_gradcheck(masked):
    shape = (2, 2, 9, 11, 3, [(3, 1), (2, 2)], [1, 2])
    (query, key, value, *_), options = case(shape, torch.float64, masked)

    def function(query, key, value):
        out, lse = banded_attention(query, key, value, return_lse=True, dropout_p=0.2, dropout_seed=3, **options)
        return out, lse.exp()  # exp: rows that see nothing have lse -inf

    assert torch.autograd.gradcheck(function, [tensor.requires_grad_() for tensor in (query, key, value)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    inputs = random_inputs(2, 2, 10, 12, 4, dtype, requires_grad=True)
    mask = torch.rand(2, 12) > 0.2
    torch.library.opcheck(
        torch.ops.longspan.banded_attention.default,
        (*inputs, mask, torch.tensor(1), 0.5, 0.1, [3, 2], [0, 1], [1, 2]),
    )


def test_any_strides():
    shape = (2, 3, 40, 40, 16, (5, 5), 1)
    inputs, options = case(shape, torch.float32, masked=True)
    wanted = run(*inputs, **options)
    layouts = {
        "tokens before heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "strided last dimension": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    }
    for name, change in layouts.items():
        changed = [change(tensor) for tensor in inputs[:4]] + [inputs[4]]
        got = run(*changed, **options)
        assert_all_close(got, wanted, 1e-6)
        assert got[0].stride() == torch.empty_like(changed[0]).stride(), name


def test_expanded_gradient():
    query, key, value = random_inputs(1, 2, 20, 20, 8, torch.float32, requires_grad=True)
    grad = torch.autograd.grad(banded_attention(query, key, value, window=(3, 3)).sum(), query)[0]  # strides 0
    twin = torch.autograd.grad((banded_attention(query, key, value, window=(3, 3)) * torch.ones(1)).sum(), query)[0]
    assert_close(grad, twin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_second_run_and_any_thread_count_are_bit_equal(dtype, dropout_p):
    shape = (1, 2, 1500, 1500, 64, [(40, 40), (100, 0)], [1, 2])
    inputs, options = case(shape, dtype, masked=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 8):
            torch.set_num_threads(count)
            results.append(run(*inputs, dropout_p=dropout_p, dropout_seed=5, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("dtype", "head_size"), [(torch.bfloat16, 64), (torch.float32, 1024)], ids=str)
def test_residue_classes_of_unequal_length(dtype, head_size):
    """With one cached key, the second class of a dilation of 2 is longer than the first."""
    query, key, value = random_inputs(1, 24, 257, 258, head_size, dtype)
    out = banded_attention(query, key, value, window=(0, 0), dilation=2)
    assert_close(out, value[:, :, 1:])


@pytest.mark.parametrize("scale", [0.0, -0.3, 1.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str)
def test_any_scale(scale, dtype, tolerance):
    query, key, value = random_inputs(1, 2, 80, 80, 16, dtype)
    visible = band_mask(2, 80, 80, (5, 5), 1)
    wanted, _ = masked_attention(query.double(), key.double(), value.double(), visible, scale=scale)
    assert_close(
        banded_attention(query, key, value, window=(5, 5), scale=scale).double(), wanted, atol=tolerance, rtol=0
    )


def test_second_derivatives_are_refused():
    query, key, value = random_inputs(1, 1, 8, 8, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(
        banded_attention(query, key, value, window=(2, 2)).square().sum(), query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(grad.sum(), key)


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    inputs, options = case((2, 2, 12, 12, 8, (2, 2), 1), torch.float32, masked=False)
    options["key_mask"] = torch.tensor([[True] * 12, [False] * 12])
    out, lse, dq, dk, dv = run(*inputs, **options)
    assert (lse[1] == -torch.inf).all() and torch.isfinite(lse[0]).all()
    for tensor in (out, dq, dk, dv):
        assert torch.isfinite(tensor).all() and (tensor[1] == 0).all() and (tensor[0] != 0).any()


def test_large_scores_stay_finite():
    query, key, value = random_inputs(1, 1, 300, 300, 16, torch.float32)
    inputs = (query * 100, key * 100, value, torch.randn(1, 1, 300, 16).double(), torch.zeros(1, 1, 300).double())
    got, wanted = run(*inputs, window=(150, 150)), brute_force(*inputs, window=(150, 150))
    assert all(torch.isfinite(tensor).all() for tensor in got)
    assert_close(got[0].double(), wanted[0], atol=2e-2, rtol=0)  # scores near 1e5 carry 8e-3 of rounding in float32


@pytest.mark.parametrize("dilation", [1, [1, 3]], ids=str)
def test_scores_are_the_band(dilation):
    query, key, value = random_inputs(2, 2, 23, 29, 6)
    mask = torch.rand(2, 29) > 0.2
    scores = banded_scores(query, key, window=(4, 2), dilation=dilation, key_mask=mask)
    assert scores.shape == (2, 2, 23, 7)
    _, lse = banded_attention(query, key, value, window=(4, 2), dilation=dilation, key_mask=mask, return_lse=True)
    assert_close(scores.logsumexp(-1).exp(), lse.exp())
    steps = [dilation] * 2 if isinstance(dilation, int) else dilation
    for head, step in enumerate(steps):
        for t in range(23):
            for column in range(7):
                s = t + 6 + step * (column - 4)
                wanted = query[0, head, t] @ key[0, head, s] * 6**-0.5 if 0 <= s < 29 and mask[0, s] else -torch.inf
                assert scores[0, head, t, column].item() == pytest.approx(float(wanted))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic):
    def function(query, key, value, mask):
        out, lse = banded_attention(query * 2, key, value, window=(3, 2), key_mask=mask, return_lse=True)
        return (out * out).sum() + lse.sum()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (17, 24):
        inputs = random_inputs(1, 2, T, T, 8, torch.float32, requires_grad=True)
        mask = torch.ones(1, T, dtype=torch.bool)
        wanted = torch.autograd.grad(function(*inputs, mask), inputs)
        assert_close(torch.autograd.grad(compiled(*inputs, mask), inputs), wanted)


def test_exports():
    class Module(torch.nn.Module):
        def forward(self, query, key, value):
            return banded_attention(query, key, value, window=(3, 2), dilation=2)

    inputs = random_inputs(1, 2, 17, 17, 8, torch.float32)
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(Module(), inputs, dynamic_shapes=({2: length},) * 3)
    longer = random_inputs(1, 2, 40, 40, 8, torch.float32)
    assert_close(exported.module()(*longer), Module()(*longer))


def test_autocast_computes_in_its_dtype():
    query, key, value = random_inputs(1, 2, 20, 20, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = banded_attention(query, key.bfloat16(), value, window=(3, 3))
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), banded_attention(query, key, value, window=(3, 3)), atol=3e-2, rtol=0)


def test_the_extension_is_what_ran():
    """Else a green run could be the reference compared with itself."""
    for operator in ("banded_attention", "banded_attention_backward"):
        assert has_kernel(operator, "CPU") == HAS_EXTENSION


QUERY, KEY = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 6, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(window=3), "window"),
        (dict(window=(3, 2.5)), "window"),
        (dict(window=(-1, 2)), "left >= 0"),
        (dict(window=(1, -2)), "right >= -1"),
        (dict(window=[(1, 1)] * 3), "3 entries for 2 heads"),
        (dict(window=(1, 1), dilation=0), "dilation"),
        (dict(window=(1, 1), dilation=[1, 2, 3]), "3 entries for 2 heads"),
        (dict(window=(1, 1), key_mask=torch.ones(1, 5, dtype=torch.bool)), r"key_mask must be bool \[1, 6\]"),
        (dict(window=(1, 1), key_mask=torch.ones(1, 6)), "key_mask must be bool"),
        (dict(window=(1, 1), dropout_p=1.0, dropout_seed=1), r"dropout_p must lie in \[0, 1\)"),
        (dict(window=(1, 1), dropout_p=0.1), "needs dropout_seed"),
        (dict(window=(1, 1), query=torch.zeros(2, 5, 4)), "query must be"),
        (dict(window=(1, 1), query=torch.zeros(1, 3, 5, 4)), "3 heads"),
        (dict(window=(1, 1), query=torch.zeros(1, 2, 7, 4)), "6 keys for 7 queries"),
        (dict(window=(1, 1), query=QUERY.double()), "one dtype"),
        (dict(window=(1, 1), query=QUERY.long()), "floating point"),
        (dict(window=(1, 1), value=KEY[..., :2]), "one shape"),
        (dict(window=(1, 1), query=QUERY[..., :0], key=KEY[..., :0], value=KEY[..., :0]), "head size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    call = dict(query=QUERY, key=KEY, value=KEY) | arguments
    with pytest.raises(ValueError, match=message):
        banded_attention(call.pop("query"), call.pop("key"), call.pop("value"), **call)
