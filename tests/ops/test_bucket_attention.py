"""Strictly causal bucket attention against explicit multiplicities in float64, and what makes it strictly causal."""

import pytest
import torch
from torch.testing import assert_close

from longspan.ops import HAS_EXTENSION, bucket_attention, lsh_attention
from longspan.ops.dropout import keep_mask
from longspan.testing import CPU_ISAS, has_kernel, limited_cpu_isa

from .brute_force_lsh import bucket_counts, results
from .test_lsh import BUCKETS, assert_all_close

# batch, heads, tokens, head size, rounds, window, number of buckets
SHAPES = [
    (1, 1, 0, 4, 2, 3, 4),
    (0, 2, 5, 4, 2, 3, 4),
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 2, 5, 2, 1, 1),
    (1, 2, 37, 16, 1, 100, 3),
    (2, 2, 53, 8, 8, 2, 2),
    (1, 3, 61, 33, 2, 1, 5),
    (1, 2, 64, 64, 2, 64, 1),
    (1, 1, 97, 80, 2, 96, 1),
    (1, 2, 130, 130, 2, 16, 2),
    (1, 1, 211, 128, 1, 128, 2),
    (1, 1, 301, 64, 3, 30, 6),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "B{}-H{}-T{}-D{}-R{}-w{}-n{}".format(*shape))


def run(query_key, value, grad_out, grad_lse, buckets, **options):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (query_key, value)]
    out, lse = bucket_attention(*inputs, buckets, return_lse=True, **options)
    loss = (out.double() * grad_out).sum() + (lse * grad_lse).masked_fill(lse == -torch.inf, 0).sum()
    return out.detach(), lse.detach(), *torch.autograd.grad(loss, inputs)


def brute_force(query_key, value, grad_out, grad_lse, buckets, *, keep=None, **options):
    return results(query_key, value, bucket_counts(buckets, **options), grad_out, grad_lse, keep)


def case(shape, dtype, masked=False):
    B, H, T, D, R, window, num_buckets = shape
    query_key, value, grad_out = (torch.randn(B, H, T, D, dtype=torch.float64) for _ in range(3))
    grad_lse, buckets = torch.randn(B, H, T, dtype=torch.float64), torch.randint(num_buckets, (B, H, R, T))
    options = dict(window=window)
    if masked:
        options["key_mask"] = torch.rand(B, T) > torch.linspace(0.2, 0.8, B)[:, None]
    return (query_key.to(dtype), value.to(dtype), grad_out, grad_lse, buckets), options


@shapes
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)],
    ids=str,
)
def test_matches_brute_force(shape, masked, dtype, tolerance):
    inputs, options = case(shape, dtype, masked)
    assert_all_close(run(*inputs, **options), brute_force(*inputs, **options), tolerance)


@pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")
@shapes
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)], ids=str)
@pytest.mark.parametrize("isa", CPU_ISAS)
def test_every_instruction_set(shape, isa, dtype, tolerance):
    inputs, options = case(shape, dtype, masked=True)
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        assert_all_close(run(*inputs, **options), brute_force(*inputs, **options), tolerance)


@shapes
def test_dropout_draws_what_the_definition_draws(shape):
    B, H, T, *_ = shape
    inputs, options = case(shape, torch.float32, masked=True)
    keep = keep_mask(torch.tensor(77), 0.3, B, list(range(H)), torch.arange(T), torch.arange(T)) / 0.7
    got = run(*inputs, dropout_p=0.3, dropout_seed=77, **options)
    assert_all_close(got, brute_force(*inputs, keep=keep, **options), 3e-5)


@pytest.mark.parametrize("kind", BUCKETS)
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
def test_any_buckets(kind, masked):
    (*inputs, buckets), options = case((2, 2, 61, 8, 3, 5, 2), torch.float32, masked)
    buckets = BUCKETS[kind](buckets.shape)
    assert_all_close(run(*inputs, buckets, **options), brute_force(*inputs, buckets, **options), 2e-5)
    if kind == "uneven":  # as narrow a type as fits, and rounds that share no number
        wanted = run(*inputs, buckets, **options)
        for same in (buckets.to(torch.int16), (buckets + 1000 * torch.arange(3)[:, None]).int()):
            assert all(torch.equal(a, b) for a, b in zip(run(*inputs, same, **options), wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("length", [1, 20, 63, 64, 99])
def test_the_past_does_not_know_the_future(dtype, length):
    """Every prefix gives the outputs of the whole: what step-by-step decoding relies on."""
    (query_key, value, _, _, buckets), options = case((2, 2, 100, 16, 3, 7, 4), dtype)
    whole, whole_lse = bucket_attention(query_key, value, buckets, return_lse=True, **options)
    part, part_lse = bucket_attention(
        query_key[:, :, :length], value[:, :, :length], buckets[..., :length], return_lse=True, **options
    )
    assert_close(part, whole[:, :, :length])
    assert_close(part_lse, whole_lse[:, :, :length])
    inputs = [query_key.clone().requires_grad_(), value.clone().requires_grad_()]
    out = bucket_attention(*inputs, buckets, **options)
    grads = torch.autograd.grad(out[:, :, :length].sum(), inputs)
    assert all((grad[:, :, length:] == 0).all() for grad in grads) and (grads[1][:, :, :length] != 0).any()


@pytest.mark.parametrize(("left", "right"), [(13, 0), (0, 13), (5, 9)])
def test_padding_anywhere_changes_nothing(left, right):
    (query_key, value, _, _, buckets), options = case((2, 2, 40, 16, 2, 6, 3), torch.float64)
    wanted = bucket_attention(query_key, value, buckets, **options)
    pad = torch.nn.functional.pad
    longer = [pad(x, (0, 0, left, right), value=3.0) for x in (query_key, value)]
    mask = pad(torch.ones(2, 40, dtype=torch.bool), (left, right), value=False)
    for number in (0, 1, 50):  # whatever bucket the padding has
        out = bucket_attention(*longer, pad(buckets, (left, right), value=number), key_mask=mask, **options)
        assert_close(out[:, :, left : left + 40], wanted)
        assert torch.equal(out[:, :, :left], longer[1][:, :, :left]), "padding takes its own value"


def test_masked_keys_take_no_place_in_the_window():
    (query_key, value, _, _, buckets), _ = case((1, 2, 30, 8, 2, 3, 2), torch.float64)
    seen = torch.rand(1, 30) > 0.5
    kept = seen[0].nonzero()[:, 0]
    out = bucket_attention(query_key, value, buckets, window=3, key_mask=seen)
    alone = bucket_attention(query_key[:, :, kept], value[:, :, kept], buckets[..., kept], window=3)
    assert_close(out[:, :, kept], alone)


def test_a_wide_window_is_one_chunk_of_the_same_bucket():
    (query_key, value, _, _, buckets), _ = case((2, 2, 50, 8, 3, 50, 4), torch.float64)
    got = bucket_attention(query_key, value, buckets, window=10**9, return_lse=True)
    wanted = lsh_attention(query_key, value, buckets, chunk_size=50, same_bucket=True, causal=True, return_lse=True)
    assert_close(got, wanted)


def test_a_window_of_one_in_one_bucket_is_the_token_before():
    (query_key, value, *_), _ = case((1, 2, 20, 8, 1, 1, 1), torch.float32)
    out = bucket_attention(query_key, value, torch.zeros(1, 2, 1, 20, dtype=torch.int64), window=1)
    assert_close(out[:, :, 1:], value[:, :, :-1])
    assert torch.equal(out[:, :, 0], value[:, :, 0])


def test_any_strides():
    inputs, options = case((2, 3, 45, 16, 2, 8, 3), torch.float32, masked=True)
    wanted = run(*inputs, **options)
    for change in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    ):
        changed = [change(tensor) for tensor in inputs[:3]]
        got = run(*changed, *inputs[3:], **options)
        assert_all_close(got, wanted, 1e-6)
        assert got[0].stride() == torch.empty_like(changed[0]).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_run_and_any_thread_count_are_bit_equal(dtype):
    inputs, options = case((1, 2, 900, 64, 2, 50, 5), dtype, masked=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 8):
            torch.set_num_threads(count)
            results.append(run(*inputs, dropout_p=0.1, dropout_seed=5, **options))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck_and_opcheck():
    (query_key, value, _, _, buckets), options = case((2, 2, 11, 3, 2, 3, 2), torch.float64, masked=True)

    def function(query_key, value):
        out, lse = bucket_attention(
            query_key, value, buckets, return_lse=True, dropout_p=0.2, dropout_seed=3, **options
        )
        return out, lse.exp()

    inputs = (query_key.requires_grad_(), value.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    order = torch.ops.longspan.lsh_order.default(buckets, options["key_mask"])
    arguments = (*inputs, *order, options["key_mask"], torch.tensor(1), 0.1, 3)
    torch.library.opcheck(torch.ops.longspan.bucket_attention.default, arguments)


def test_compiles_whole_and_exports():
    class Module(torch.nn.Module):
        def forward(self, query_key, value, buckets, mask):
            return bucket_attention(query_key * 2, value, buckets, window=5, key_mask=mask)

    def inputs(T):
        (query_key, value, _, _, buckets), options = case((1, 2, T, 8, 2, 5, 3), torch.float32, masked=True)
        return query_key.requires_grad_(), value.requires_grad_(), buckets, options["key_mask"]

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    length = torch.export.Dim("length", min=2, max=4096)
    dims = ({2: length}, {2: length}, {3: length}, {1: length})
    exported = torch.export.export(Module(), inputs(17), dynamic_shapes=dims).module()
    for T in (17, 41):
        given = inputs(T)
        wanted = torch.autograd.grad(Module()(*given).square().sum(), given[:2])
        assert_close(torch.autograd.grad(compiled(*given).square().sum(), given[:2]), wanted)
        assert_close(exported(*given), Module()(*given))


def test_the_extension_is_what_ran():
    """Else a green run could be the reference compared with itself."""
    for operator in ("bucket_attention", "bucket_attention_backward"):
        assert has_kernel(operator, "CPU") == HAS_EXTENSION


X, BUCKET = torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 3, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(window=0), "window must be at least 1, got 0"),
        (dict(window=-3), "window must be at least 1, got -3"),
        (dict(buckets=BUCKET.double()), "buckets must be integers"),
        (dict(buckets=BUCKET[..., :4]), "buckets must be"),
        (dict(value=X[:, :, :4]), "value"),
        (dict(key_mask=torch.ones(1, 5)), "key_mask must be bool"),
        (dict(dropout_p=0.1), "needs dropout_seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    call = dict(query_key=X, value=X, buckets=BUCKET, window=2) | arguments
    with pytest.raises(ValueError, match=f"bucket_attention.*{message}"):
        bucket_attention(call.pop("query_key"), call.pop("value"), call.pop("buckets"), **call)
