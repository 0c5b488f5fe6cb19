"""LSH attention against explicit multiplicities in float64, on every shape, mode and instruction set."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, lsh_attention
from longspan.ops.dropout import keep_mask
from longspan.testing import CPU_ISAS, LSH_SHAPES, has_kernel, limited_cpu_isa, lsh_shape_id

from .brute_force import largest
from .brute_force_lsh import lsh_counts, results

lsh_shapes = pytest.mark.parametrize("shape", LSH_SHAPES, ids=lsh_shape_id)
needs_extension = pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")

MODES: dict[str, dict[str, Any]] = {
    "plain": dict(),
    "causal": dict(causal=True),
    "wrap": dict(wrap=True),
    "mask": dict(key_mask=True),
    "wrap-causal-mask": dict(wrap=True, causal=True, key_mask=True),
    "same-bucket-causal": dict(same_bucket=True, causal=True),
    "same-bucket-wrap-mask": dict(same_bucket=True, wrap=True, key_mask=True),
    "deduplicate-mask": dict(deduplicate=True, key_mask=True),
    "deduplicate-wrap": dict(deduplicate=True, wrap=True),
    "everything": dict(deduplicate=True, wrap=True, same_bucket=True, causal=True, key_mask=True),
}
modes = pytest.mark.parametrize("mode", MODES)
every_mode_once = dict(causal=True, wrap=True, key_mask=True, deduplicate=True)


def run(query_key, value, grad_out, grad_lse, buckets, **options):
    """Output, lse and the two gradients of one call."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (query_key, value)]
    out, lse = lsh_attention(*inputs, buckets, return_lse=True, **options)
    loss = (out.double() * grad_out).sum() + (lse * grad_lse).masked_fill(lse == -torch.inf, 0).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)


def brute_force(query_key, value, grad_out, grad_lse, buckets, *, keep=None, **options):
    return results(query_key, value, lsh_counts(buckets, **options), grad_out, grad_lse, keep)


def assert_all_close(got, wanted, tolerance):
    for name, ours, theirs in zip(("out", "lse", "dx", "dv"), got, wanted, strict=True):
        assert ours.shape == theirs.shape, name
        finite = theirs != -torch.inf
        assert torch.equal(ours != -torch.inf, finite), name
        gap = largest((ours.double() - theirs.double())[finite])
        assert gap <= tolerance * max(1.0, largest(theirs[finite])), f"{name}: off by {gap:.1e}"


def case(shape, dtype, mode=None, num_buckets=4):
    """``(query_key, value, grad_out, grad_lse, buckets), options``; the share of masked keys differs by row."""
    B, H, T, D, R, chunk, before, after = shape
    query_key, value, grad_out = (torch.randn(B, H, T, D, dtype=torch.float64) for _ in range(3))
    buckets = torch.randint(num_buckets, (B, H, R, T))
    options = dict(chunk_size=chunk, chunks_before=before, chunks_after=after) | (MODES[mode] if mode else {})
    if options.get("key_mask"):
        options["key_mask"] = torch.rand(B, T) > torch.linspace(0.3, 0.8, B)[:, None]
    grad_lse = torch.randn(B, H, T, dtype=torch.float64)
    return (query_key.to(dtype), value.to(dtype), grad_out, grad_lse, buckets), options


@lsh_shapes
@modes
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
    ids=str,
)
def test_matches_brute_force(shape, mode, dtype, tolerance):
    inputs, options = case(shape, dtype, mode)
    assert_all_close(run(*inputs, **options), brute_force(*inputs, **options), tolerance)


@needs_extension
@lsh_shapes
@pytest.mark.parametrize("mode", ["wrap-causal-mask", "everything"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("isa", CPU_ISAS)
def test_every_instruction_set(shape, isa, mode, dtype, tolerance):
    inputs, options = case(shape, dtype, mode)
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        assert_all_close(run(*inputs, **options), brute_force(*inputs, **options), tolerance)


@lsh_shapes
@pytest.mark.parametrize("mode", ["plain", "wrap-causal-mask", "deduplicate-mask"])
def test_dropout_draws_what_the_definition_draws(shape, mode):
    B, H, T, *_ = shape
    inputs, options = case(shape, torch.float32, mode)
    seed = torch.tensor(0x123456789ABCDEF)
    keep = keep_mask(seed, 0.3, B, list(range(H)), torch.arange(T), torch.arange(T)) / 0.7
    got = run(*inputs, dropout_p=0.3, dropout_seed=seed, **options)
    assert_all_close(got, brute_force(*inputs, keep=keep, **options), 3e-5)


BUCKETS = {
    "all equal": lambda shape: torch.zeros(shape, dtype=torch.int64),
    "all different": lambda shape: torch.rand(shape).argsort(-1),
    "descending": lambda shape: torch.arange(shape[-1]).flip(0).expand(shape),
    "uneven": lambda shape: torch.randint(1, 1000, shape) // torch.randint(1, 1000, shape),
    "huge": lambda shape: torch.randint(3, shape) + (2**63 - 10),
    "negative": lambda shape: torch.randint(-(2**62), 2**62, shape),
    "one far apart": lambda shape: (torch.rand(shape) > 0.9) * (2**40 + 1),
}


@pytest.mark.parametrize("kind", BUCKETS)
@pytest.mark.parametrize("mode", ["causal", "same-bucket-wrap-mask", "everything"])
def test_any_buckets(kind, mode):
    (*inputs, buckets), options = case((2, 2, 61, 8, 3, 8, 1, 1), torch.float32, mode)
    buckets = BUCKETS[kind](buckets.shape)
    got, wanted = run(*inputs, buckets, **options), brute_force(*inputs, buckets, **options)
    assert_all_close(got, wanted, 2e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("mode", ["causal", "everything"])
def test_any_integer_dtype_with_or_without_round_offsets(dtype, mode):
    (*inputs, buckets), options = case((2, 2, 61, 8, 3, 8, 1, 0), torch.float32, mode)
    wanted = run(*inputs, buckets, **options)
    offsets = 5 * torch.arange(3)[:, None]
    for same in (buckets, buckets + offsets, buckets.transpose(2, 3).contiguous().transpose(2, 3)):
        got = run(*inputs, same.to(dtype), **options)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_any_strides():
    inputs, options = case((2, 3, 45, 16, 2, 8, 1, 0), torch.float32, "wrap-causal-mask")
    wanted = run(*inputs, **options)
    layouts = {
        "tokens before heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "strided last dimension": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        "sliced": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        "every other token": lambda x: torch.stack([x, x], 3).flatten(2, 3)[:, :, ::2],
    }
    for name, change in layouts.items():
        changed = [change(tensor) for tensor in inputs[:3]]
        got = run(*changed, *inputs[3:], **options)
        assert_all_close(got, wanted, 1e-6)
        assert got[0].stride() == torch.empty_like(changed[0]).stride(), name


def test_expanded_inputs_and_gradients():
    (query_key, value, _, _, buckets), options = case((1, 2, 20, 8, 2, 4, 1, 0), torch.float32)
    query_key = query_key.requires_grad_()
    grad = torch.autograd.grad(lsh_attention(query_key, value, buckets, **options).sum(), query_key)[0]  # strides 0
    out = lsh_attention(query_key, value, buckets, **options)
    assert_close(grad, torch.autograd.grad((out * torch.ones_like(out)).sum(), query_key)[0])
    shared, number = value[:, :1].expand(-1, 2, -1, -1), buckets[:, :1].expand(-1, 2, -1, -1)
    assert_close(
        lsh_attention(query_key, shared, number, **options),
        lsh_attention(query_key, shared.contiguous(), number.contiguous(), **options),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("heads", [1, 3])
def test_second_run_and_any_thread_count_are_bit_equal(dtype, dropout_p, heads):
    inputs, options = case((1, heads, 900, 64, 3, 32, 1, 0), dtype, "wrap-causal-mask", num_buckets=20)
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


@pytest.mark.parametrize("mode", ["plain", "wrap-causal-mask", "everything"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_gradcheck(mode, dropout_p):
    (query_key, value, _, _, buckets), options = case((2, 2, 11, 3, 2, 4, 1, 0), torch.float64, mode, num_buckets=2)

    def function(query_key, value):
        out, lse = lsh_attention(
            query_key, value, buckets, return_lse=True, dropout_p=dropout_p, dropout_seed=3, **options
        )
        return out, lse.exp()  # exp: rows that see nothing have lse -inf

    assert torch.autograd.gradcheck(function, (query_key.requires_grad_(), value.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    (query_key, value, _, _, buckets), _ = case((2, 2, 11, 4, 2, 4, 1, 0), dtype)
    order, first = torch.ops.longspan.lsh_order(buckets, None)
    torch.library.opcheck(torch.ops.longspan.lsh_order.default, (buckets, None))
    torch.library.opcheck(
        torch.ops.longspan.lsh_attention.default,
        opcheck_arguments(query_key.requires_grad_(), value.requires_grad_(), order, first),
    )


def opcheck_arguments(query_key, value, order, first):
    mask = torch.rand(query_key.shape[0], query_key.shape[2]) > 0.2
    return (query_key, value, order, first, mask, torch.tensor(1), 0.1, 4, 1, 0, True, True, False, False)


def test_second_derivatives_are_refused():
    (query_key, value, _, _, buckets), options = case((1, 1, 8, 4, 1, 4, 1, 0), torch.float64)
    query_key.requires_grad_()
    out = lsh_attention(query_key, value, buckets, **options)
    (grad,) = torch.autograd.grad(out.square().sum(), query_key, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(grad.sum(), query_key)


def test_a_query_with_nothing_to_see_takes_its_own_value():
    inputs, options = case((2, 2, 12, 8, 2, 4, 1, 0), torch.float32)
    options["key_mask"] = torch.tensor([[True] * 12, [False] * 12])
    out, lse, dx, dv = run(*inputs, **options)
    assert (lse[1] == -torch.inf).all() and torch.isfinite(lse[0]).all()
    assert torch.equal(out[1], inputs[1][1]) and (dx[1] == 0).all()
    assert_close(dv[1].double(), inputs[2][1])
    assert torch.isfinite(dx).all() and torch.isfinite(dv).all()
    dropped = run(*inputs, dropout_p=0.5, dropout_seed=1, **options)
    assert torch.equal(dropped[0][1], inputs[1][1]), "its own value is no attention weight and is never dropped"


def test_only_the_gradients_that_are_wanted():
    (query_key, value, grad_out, _, buckets), options = case((1, 2, 20, 8, 2, 4, 1, 0), torch.float64, "causal")
    wanted = run(query_key, value, grad_out, torch.zeros(1, 2, 20), buckets, **options)
    for which, name in ((0, "dx"), (1, "dv")):
        inputs = [query_key.detach().clone(), value.detach().clone()]
        inputs[which].requires_grad_()
        out = lsh_attention(*inputs, buckets, **options)
        (grad,) = torch.autograd.grad((out * grad_out).sum(), inputs[which])
        assert_close(grad, wanted[2 + which], msg=name)
    query_key.requires_grad_()
    _, lse = lsh_attention(query_key, value, buckets, return_lse=True, **options)  # lse alone in the loss
    (grad,) = torch.autograd.grad(lse[lse != -torch.inf].sum(), query_key)
    zeros, ones = torch.zeros_like(grad_out), torch.ones(1, 2, 20)
    assert_close(grad, brute_force(query_key, value, zeros, ones, buckets, **options)[2])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)], ids=str)
def test_zero_vectors(dtype, tolerance):
    """The epsilon of the key's length: a zero key is zero, and its gradient is large but finite."""
    inputs, options = case((1, 2, 40, 16, 2, 8, 1, 0), dtype)
    inputs[0][:, :, ::3] = 0
    got, wanted = run(*inputs, **options), brute_force(*inputs, **options)
    assert_all_close(got, wanted, tolerance)
    assert all(torch.isfinite(tensor).all() for tensor in got)


@pytest.mark.parametrize("factor", [1e-4, 30.0, 1e4, 1e15])
def test_small_and_large_scores_stay_finite(factor):
    """Scores are as long as the query; from 1e4 on float32 rounds them to a thousandth and more."""
    inputs, options = case((1, 2, 150, 16, 2, 32, 1, 1), torch.float32, "wrap-causal-mask")
    inputs = (inputs[0] * factor, *inputs[1:])
    got, wanted = run(*inputs, **options), brute_force(*inputs, **options)
    assert all((torch.isfinite(tensor) | (tensor == -torch.inf)).all() for tensor in got)
    if factor <= 30.0:
        assert_all_close(got, wanted, 2e-4)
    elif factor <= 1e4:
        assert largest(got[0]) <= largest(inputs[1]) * 1.01


@pytest.mark.parametrize("mode", ["causal", "everything"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(mode, dynamic):
    def function(query_key, value, buckets, mask):
        chosen = options | (dict(key_mask=mask) if "key_mask" in options else {})
        out, lse = lsh_attention(query_key * 2, value, buckets, return_lse=True, **chosen)
        return (out * out).sum() + lse.exp().sum()

    _, options = case((1, 2, 17, 8, 2, 4, 1, 0), torch.float32, mode)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for T in (17, 24):
        (query_key, value, _, _, buckets), _ = case((1, 2, T, 8, 2, 4, 1, 0), torch.float32)
        inputs, mask = (query_key.requires_grad_(), value.requires_grad_()), torch.rand(1, T) > 0.2
        wanted = torch.autograd.grad(function(*inputs, buckets, mask), inputs)
        assert_close(torch.autograd.grad(compiled(*inputs, buckets, mask), inputs), wanted)


def test_exports():
    class Module(torch.nn.Module):
        def forward(self, query_key, value, buckets):
            return lsh_attention(query_key, value, buckets, chunk_size=4, causal=True)

    def inputs(T):
        (query_key, value, _, _, buckets), _ = case((1, 2, T, 8, 2, 4, 1, 0), torch.float32)
        return query_key, value, buckets

    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(Module(), inputs(17), dynamic_shapes=({2: length}, {2: length}, {3: length}))
    longer = inputs(41)
    assert_close(exported.module()(*longer), Module()(*longer))


def test_autocast_computes_in_its_dtype():
    (query_key, value, _, _, buckets), options = case((1, 2, 20, 8, 2, 4, 1, 0), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = lsh_attention(query_key, value.bfloat16(), buckets, **options)
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), lsh_attention(query_key, value, buckets, **options), atol=3e-2, rtol=0)


def test_the_extension_is_what_ran():
    """Else a green run could be the reference compared with itself."""
    for operator in ("lsh_attention", "lsh_attention_backward"):
        assert has_kernel(operator, "CPU") == HAS_EXTENSION


X, BUCKET = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 3, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(chunk_size=0), "chunk_size must be at least 1, got 0"),
        (dict(chunks_before=-1), "chunks_before must be at least 0, got -1"),
        (dict(chunks_after=-2), "chunks_after must be at least 0, got -2"),
        (dict(buckets=BUCKET.float()), "buckets"),
        (dict(buckets=BUCKET.bool()), "buckets"),
        (dict(buckets=BUCKET[:, :1]), "buckets"),
        (dict(buckets=BUCKET[..., :4]), "buckets"),
        (dict(buckets=BUCKET[:, :, 0]), "buckets"),
        (dict(buckets=BUCKET[:, :, :0]), "buckets"),
        (dict(value=X[:, :, :4]), "value"),
        (dict(value=X.double()), "one dtype"),
        (dict(query_key=X.long(), value=X.long()), "floating point"),
        (dict(query_key=X[0], value=X[0]), "query_key"),
        (dict(query_key=X[..., :0], value=X[..., :0]), "head size"),
        (dict(key_mask=torch.ones(1, 5)), "key_mask must be bool"),
        (dict(key_mask=torch.ones(1, 4, dtype=torch.bool)), "key_mask must be bool"),
        (dict(dropout_p=1.0, dropout_seed=1), "dropout_p must lie in"),
        (dict(dropout_p=0.1), "needs dropout_seed"),
        (dict(dropout_p=0.1, dropout_seed=torch.ones(2)), "0-dim int64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    call = dict(query_key=X, value=X, buckets=BUCKET, chunk_size=2) | arguments
    with pytest.raises(ValueError, match=message) as error:
        lsh_attention(call.pop("query_key"), call.pop("value"), call.pop("buckets"), **call)
    assert "lsh_attention" in str(error.value)
