"""Angular hashing and the order by bucket, against loops in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.ops import HAS_EXTENSION, lsh_buckets
from longspan.testing import CPU_ISAS, has_kernel, limited_cpu_isa

from .brute_force_lsh import hashed

# batch, heads, tokens, head size, rounds, buckets
SHAPES = [
    (1, 1, 0, 4, 1, 2),
    (0, 2, 5, 4, 1, 2),
    (2, 0, 5, 4, 1, 2),
    (2, 3, 5, 4, 0, 2),
    (1, 1, 1, 1, 1, 2),
    (2, 3, 37, 16, 2, 8),
    (1, 2, 101, 64, 4, [4, 8]),
    (2, 1, 53, 33, 3, [2, 6, 4]),
    (1, 2, 67, 130, 2, 66),
    (1, 1, 19, 8, 8, [2]),
    (1, 1, 1100, 20, 1, 30),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def case(shape, dtype=torch.float32, generator=None):
    B, H, T, D, R, num_buckets = shape
    factors = [num_buckets] if isinstance(num_buckets, int) else num_buckets
    query_key = torch.randn(B, H, T, D, generator=generator).to(dtype)
    return query_key, torch.randn(H, D, R, sum(factors) // 2, generator=generator), num_buckets


def assert_hashes(query_key, rotations, num_buckets, margin, **options):
    got = lsh_buckets(query_key, rotations, num_buckets, **options)
    wanted, gap = hashed(query_key, rotations, num_buckets, **options)
    assert got.dtype == torch.int64 and got.shape == wanted.shape
    clear = gap > margin  # nearer ones may be rounded either way
    assert torch.equal(got[clear], wanted[clear])
    assert clear.double().mean() > 0.95 or not clear.numel()


@shapes
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_matches_brute_force(shape, masked, dtype):
    query_key, rotations, num_buckets = case(shape, dtype)
    options = dict(key_mask=torch.rand(shape[0], shape[2]) > 0.3) if masked else {}
    assert_hashes(query_key, rotations, num_buckets, 1e-4, **options)


@pytest.mark.skipif(not HAS_EXTENSION, reason="longspan._C is not installed: nothing to compare")
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("isa", CPU_ISAS)
def test_every_instruction_set(shape, dtype, isa):
    with limited_cpu_isa(isa) as available:
        if not available:
            pytest.skip(f"this processor has no {isa}")
        assert_hashes(*case(shape, dtype), 1e-4, key_mask=torch.rand(shape[0], shape[2]) > 0.3)


def test_ties_go_to_the_first_and_padding_to_the_last():
    rotations = torch.zeros(1, 4, 2, 5)
    zeros = lsh_buckets(torch.randn(1, 1, 6, 4), rotations, [4, 6])
    assert (zeros == 0).all()
    mask = torch.tensor([[True, True, False, True, False, True]])
    padded = lsh_buckets(torch.randn(1, 1, 6, 4), rotations, [4, 6], key_mask=mask)
    assert padded[0, 0, 0].tolist() == [0, 0, 24, 0, 24, 0] == padded[0, 0, 1].tolist()
    assert lsh_buckets(torch.zeros(1, 1, 3, 4), torch.randn(1, 4, 2, 5), [4, 6]).eq(0).all()  # a zero vector ties all


def test_opposite_vectors_get_opposite_buckets():
    query_key, rotations, _ = case((2, 3, 50, 16, 4, 10))
    there, back = lsh_buckets(query_key, rotations, 10), lsh_buckets(-query_key, rotations, 10)
    assert torch.equal((there + 5) % 10, back)


def test_length_of_a_vector_and_its_company_do_not_matter():
    query_key, rotations, _ = case((2, 3, 50, 16, 4, 10))
    buckets = lsh_buckets(query_key, rotations, 10)
    assert torch.equal(lsh_buckets(query_key * 4, rotations, 10), buckets)
    for batch in range(2):
        for head in range(3):
            alone = lsh_buckets(query_key[batch, head, 7:9][None, None], rotations[head : head + 1], 10)
            assert torch.equal(alone[0, 0], buckets[batch, head, :, 7:9])
    each = [lsh_buckets(query_key, rotations[:, :, r : r + 1], 10) for r in range(4)]
    assert torch.equal(torch.cat(each, 2), buckets)


def test_near_vectors_share_buckets_more_often():
    torch.manual_seed(1)
    x = torch.randn(1, 1, 500, 32)
    near = x + 0.1 * torch.randn_like(x)
    rotations = torch.randn(1, 32, 8, 8)
    buckets = lsh_buckets(x, rotations, 16)
    agree = (buckets == lsh_buckets(near, rotations, 16)).double().mean()
    chance = (buckets == buckets.roll(1, -1)).double().mean()
    assert agree > 0.8 and chance < 0.12


def test_any_strides():
    query_key, rotations, num_buckets = case((2, 3, 45, 16, 2, [4, 6]))
    wanted = lsh_buckets(query_key, rotations, num_buckets)
    for changed in (
        query_key.transpose(1, 2).contiguous().transpose(1, 2),
        query_key.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([query_key, query_key], -1)[..., :16],
    ):
        assert torch.equal(lsh_buckets(changed, rotations, num_buckets), wanted)
    swapped = rotations.transpose(1, 3).contiguous().transpose(1, 3)
    assert torch.equal(lsh_buckets(query_key, swapped, num_buckets), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_second_run_and_any_thread_count_are_equal(dtype):
    arguments = case((2, 2, 3000, 64, 4, [16, 16]), dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 8):
            torch.set_num_threads(count)
            results.append(lsh_buckets(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_has_no_gradient_and_leaves_the_generator_alone():
    query_key, rotations, num_buckets = case((1, 2, 20, 8, 2, 4))
    state = torch.get_rng_state()
    buckets = lsh_buckets(query_key.requires_grad_(), rotations, num_buckets)
    assert not buckets.requires_grad and torch.equal(torch.get_rng_state(), state)


def test_opcheck_compile_and_export():
    query_key, rotations, factors = case((2, 2, 17, 8, 2, [4, 6]))
    mask = torch.rand(2, 17) > 0.3
    torch.library.opcheck(torch.ops.longspan.lsh_hash.default, (query_key, rotations, factors, mask))

    class Module(torch.nn.Module):
        def forward(self, x):
            return lsh_buckets(x * 2, rotations, factors)

    torch._dynamo.reset()
    compiled = torch.compile(Module(), fullgraph=True, dynamic=True, backend="aot_eager")
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(Module(), (query_key,), dynamic_shapes=({2: length},)).module()
    for T in (17, 33):
        x = torch.randn(2, 2, T, 8)
        assert torch.equal(compiled(x), lsh_buckets(x, rotations, factors))
        assert torch.equal(exported(x), lsh_buckets(x, rotations, factors))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.lists(st.integers(1, 6).map(lambda half: 2 * half), min_size=1, max_size=4),
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 40), st.integers(1, 20), st.integers(1, 4)),
    st.integers(0, 2**31),
)
def test_any_factors(factors, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    query_key, rotations, _ = case((*sizes, factors), generator=generator)
    mask = torch.rand(sizes[0], sizes[2], generator=generator) > 0.2
    got = lsh_buckets(query_key, rotations, factors, key_mask=mask)
    wanted, gap = hashed(query_key, rotations, factors, key_mask=mask)
    clear = gap > 1e-4
    assert torch.equal(got[clear], wanted[clear])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 3, 0), (0, 2, 3, 5), (2, 0, 3, 5), (1, 1, 1, 1), (2, 2, 3, 200)], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all-keys", "key-mask"])
def test_order_is_stable_and_knows_where_buckets_begin(dtype, shape, masked):
    buckets = torch.randint(7, shape).to(dtype)
    mask = torch.rand(shape[0], shape[3]) > 0.3 if masked else None
    order, first = torch.ops.longspan.lsh_order.default(buckets, mask)
    for batch in range(shape[0]):
        for head in range(shape[1]):
            for hash_round in range(shape[2]):
                number = buckets[batch, head, hash_round].tolist()
                if mask is not None:  # one bucket of their own, behind all others
                    number = [n if seen else 1000 for n, seen in zip(number, mask[batch].tolist(), strict=True)]
                wanted = sorted(range(shape[3]), key=lambda t: (number[t], t))
                assert order[batch, head, hash_round].tolist() == wanted
                ordered = [number[t] for t in wanted]
                assert first[batch, head, hash_round].tolist() == [ordered.index(n) for n in ordered]


@pytest.mark.parametrize("numbers", [[2**62, -(2**62), 0, 2**62], [2**63 - 1, -(2**63), 2**63 - 1, 5]], ids=str)
def test_order_of_any_numbers(numbers):
    order, first = torch.ops.longspan.lsh_order.default(torch.tensor(numbers)[None, None, None], None)
    wanted = sorted(range(4), key=lambda t: (numbers[t], t))
    assert order.flatten().tolist() == wanted
    ordered = [numbers[t] for t in wanted]
    assert first.flatten().tolist() == [ordered.index(n) for n in ordered]


def test_the_extension_is_what_ran():
    """Else a green run could be the reference compared with itself."""
    for operator in ("lsh_hash", "lsh_order"):
        assert has_kernel(operator, "CPU") == HAS_EXTENSION


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_buckets=5), "even number"),
        (dict(num_buckets=0), "even number"),
        (dict(num_buckets=[4, 3]), "even number"),
        (dict(num_buckets=[]), "num_buckets must be"),
        (dict(num_buckets=True), "even number"),
        (dict(num_buckets=4.0), "num_buckets must be"),
        (dict(num_buckets="8"), "num_buckets must be"),
        (dict(num_buckets=None), "num_buckets must be"),
        (dict(num_buckets=8), "rotations must be"),
        (dict(rotations=torch.randn(3, 4, 2, 2)), "rotations must be"),
        (dict(rotations=torch.randn(2, 5, 2, 2)), "rotations must be"),
        (dict(rotations=torch.randn(2, 4, 2)), "rotations must be"),
        (dict(rotations=torch.ones(2, 4, 2, 2).long()), "floating point"),
        (dict(query_key=torch.randn(2, 5, 4)), "query_key must be"),
        (dict(query_key=torch.ones(1, 2, 5, 4).long()), "query_key must be"),
        (dict(key_mask=torch.ones(1, 5)), "key_mask must be bool"),
        (dict(key_mask=torch.ones(2, 5).bool()), "key_mask must be bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_teach(arguments, message):
    call = dict(query_key=torch.randn(1, 2, 5, 4), rotations=torch.randn(2, 4, 2, 2), num_buckets=4) | arguments
    with pytest.raises(ValueError, match=f"lsh_buckets.*{message}"):
        lsh_buckets(call.pop("query_key"), call.pop("rotations"), call.pop("num_buckets"), **call)
