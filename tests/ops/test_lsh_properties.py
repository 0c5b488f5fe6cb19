"""Any buckets, any mask, any chunks: LSH attention is one softmax over the multiset of keys that its rounds find."""

import math

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from longspan.ops import block_attention, bucket_attention, lsh_attention, merge
from longspan.ops.dropout import keep_mask

from .brute_force_lsh import bucket_counts, lsh_counts, results, shared_attention
from .test_lsh import assert_all_close, run

NUMBERS = {
    "few": lambda shape, generator: torch.randint(3, shape, generator=generator),
    "many": lambda shape, generator: torch.randint(50, shape, generator=generator),
    "equal": lambda shape, generator: torch.zeros(shape, dtype=torch.int64),
    "different": lambda shape, generator: torch.rand(shape, generator=generator).argsort(-1),
    "huge": lambda shape, generator: torch.randint(-(2**62), 2**62, shape, generator=generator),
}


@st.composite
def problems(draw):
    return dict(
        sizes=(draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 90)), draw(st.integers(1, 20))),
        rounds=draw(st.integers(1, 4)),
        numbers=draw(st.sampled_from(sorted(NUMBERS))),
        chunk_size=draw(st.one_of(st.integers(1, 12), st.integers(12, 100))),
        chunks_before=draw(st.integers(0, 3)),
        chunks_after=draw(st.integers(0, 3)),
        flags={name: draw(st.booleans()) for name in ("causal", "wrap", "same_bucket", "deduplicate")},
        seen=draw(st.sampled_from([1.0, 0.8, 0.3, 0.0])),
        seed=draw(st.integers(0, 2**31)),
    )


def tensors(problem, dtype=torch.float64):
    """``(query_key, value, grad_out, grad_lse, buckets), options``."""
    generator = torch.Generator().manual_seed(problem["seed"])
    B, H, T, D = problem["sizes"]
    draws = [torch.randn(B, H, T, D, generator=generator, dtype=torch.float64) for _ in range(3)]
    buckets = NUMBERS[problem["numbers"]]((B, H, problem["rounds"], T), generator)
    grad_lse = torch.randn(B, H, T, generator=generator, dtype=torch.float64)
    options = {name: problem[name] for name in ("chunk_size", "chunks_before", "chunks_after")} | problem["flags"]
    options["key_mask"] = torch.rand(B, T, generator=generator) < problem["seen"]
    return (draws[0].to(dtype), draws[1].to(dtype), draws[2], grad_lse, buckets), options


def many(examples=100):
    return settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=True,
    )


@many(150)
@given(problems(), st.sampled_from([0.0, 0.0, 0.4]))
def test_is_one_softmax_over_the_multiset(problem, dropout_p):
    inputs, options = tensors(problem, torch.float32)
    B, H, T, _ = problem["sizes"]
    keep = None
    if dropout_p:
        keep = keep_mask(torch.tensor(3), dropout_p, B, list(range(H)), torch.arange(T), torch.arange(T)).double()
        keep = keep / (1 - dropout_p)
    got = run(*inputs, dropout_p=dropout_p, dropout_seed=3, **options)
    wanted = results(*inputs[:2], lsh_counts(inputs[4], **options), *inputs[2:4], keep)
    assert_all_close(got, wanted, 3e-5)


@many(100)
@given(problems(), st.integers(1, 100))
def test_bucket_attention_is_one_softmax_over_the_multiset(problem, window):
    inputs, options = tensors(problem)
    out, lse = bucket_attention(*inputs[:2], inputs[4], window=window, key_mask=options["key_mask"], return_lse=True)
    counts = bucket_counts(inputs[4], window=window, key_mask=options["key_mask"])
    wanted, wanted_lse = shared_attention(*inputs[:2], counts)
    assert_close(out, wanted)
    assert_close(lse.exp(), wanted_lse.exp())


@many(60)
@given(problems())
def test_rounds_alone_are_merged_to_the_whole(problem):
    """Without wrap-around and deduplication rounds meet in nothing but the softmax."""
    (query_key, value, _, _, buckets), options = tensors(problem)
    options |= dict(wrap=False, deduplicate=False, return_lse=True)
    rounds = [lsh_attention(query_key, value, buckets[:, :, r : r + 1], **options) for r in range(problem["rounds"])]
    out, lse = merge([each[0] for each in rounds], [each[1] for each in rounds])
    whole, whole_lse = lsh_attention(query_key, value, buckets, **options)
    alone = whole_lse == -torch.inf
    assert_close(lse, whole_lse)
    assert_close(out[~alone], whole[~alone])
    assert torch.equal(whole[alone], value[alone])


@many(60)
@given(problems(), st.integers(2, 5))
def test_a_round_repeated_counts_double_and_deduplicated_once(problem, times):
    (query_key, value, _, _, buckets), options = tensors(problem)
    options |= dict(wrap=False, return_lse=True)
    once = buckets[:, :, :1]
    out, lse = lsh_attention(query_key, value, once, **options)
    again, again_lse = lsh_attention(query_key, value, once.repeat(1, 1, times, 1), **options)
    assert_close(again, out)
    assert_close(again_lse, lse if options["deduplicate"] else lse + math.log(times))


@many(60)
@given(problems(), st.integers(0, 30), st.integers(0, 30))
def test_padding_on_either_side_changes_nothing(problem, left, right):
    """Padding in the last bucket, as ``lsh_buckets`` puts it; with wrap-around the last chunk would be a neighbour."""
    (query_key, value, _, _, buckets), options = tensors(problem)
    options |= dict(wrap=False)
    wanted = lsh_attention(query_key, value, buckets, **options)
    pad, T = torch.nn.functional.pad, problem["sizes"][2]
    longer = [pad(x, (0, 0, left, right), value=3.0) for x in (query_key, value)]
    options["key_mask"] = pad(options["key_mask"], (left, right), value=False)
    padded = pad(buckets, (left, right), value=2**62 + 1)
    assert_close(lsh_attention(*longer, padded, **options)[:, :, left : left + T], wanted)


@many(60)
@given(problems())
def test_only_order_and_equality_of_buckets_count(problem):
    (query_key, value, _, _, buckets), options = tensors(problem)
    wanted = lsh_attention(query_key, value, buckets, **options)
    ranks = torch.stack([row.unique(return_inverse=True)[1] for row in buckets.flatten(0, 2)]) if buckets.numel() else 0
    renamed = (ranks * 7 - 100).view_as(buckets) if buckets.numel() else buckets
    offset = renamed + 1000 * torch.arange(problem["rounds"])[:, None]
    for same in (renamed.short(), offset.int()):
        assert torch.equal(lsh_attention(query_key, value, same, **options), wanted)


@many(40)
@given(problems())
def test_examples_and_heads_do_not_meet(problem):
    (query_key, value, _, _, buckets), options = tensors(problem)
    whole, (B, H, _, _) = lsh_attention(query_key, value, buckets, **options), problem["sizes"]
    mask = options.pop("key_mask")
    for b in range(B):
        for h in range(H):
            one = [tensor[b : b + 1, h : h + 1] for tensor in (query_key, value, buckets)]
            assert_close(lsh_attention(*one, key_mask=mask[b : b + 1], **options)[0, 0], whole[b, h])


@many(60)
@given(problems())
def test_one_bucket_is_attention_to_blocks_of_the_text(problem):
    """In text order, with unit keys and without the token itself, whose share is taken out of the sum again."""
    (query_key, value, _, _, buckets), options = tensors(problem)
    T, D = problem["sizes"][2:]
    key = query_key * (query_key.square().sum(-1, keepdim=True) + D * 1e-6).rsqrt()
    flags = {name: options[name] for name in ("causal", "key_mask")}
    before, after = options["chunks_before"], options["chunks_after"]
    block, block_lse = block_attention(
        query_key, key, value, block_size=options["chunk_size"], before=before, after=after, scale=1.0,
        return_lse=True, **flags,
    )  # fmt: skip
    own = (query_key * key).sum(-1).masked_fill(~flags["key_mask"][:, None], -torch.inf)
    rest = -torch.expm1(own - block_lse.masked_fill(block_lse == -torch.inf, 0.0))  # share of all other keys
    out, lse = lsh_attention(
        query_key, value, torch.zeros_like(buckets[:, :, :1]), chunk_size=options["chunk_size"], chunks_before=before,
        chunks_after=after, return_lse=True, **flags,
    )  # fmt: skip
    seen = (lse != -torch.inf) & (rest > 1e-3)  # next to 1 the difference says nothing
    wanted = (block - torch.exp(own - block_lse)[..., None] * value) / rest[..., None]
    assert_close(out[seen], wanted[seen], atol=1e-9, rtol=1e-9)
    assert_close(lse[seen], (block_lse + rest.log())[seen], atol=1e-9, rtol=1e-9)
    assert lse.shape == (*query_key.shape[:2], T)
