"""Random attention problems against the dense float64 definition, until the time is up or one fails.

    python scripts/fuzz.py [--seconds 120] [--seed 0] [--operator lsh]

Draws shapes, windows, chunks, buckets, directions, masks, caches, dropout, dtypes, strides and instruction sets. A
failing case is printed as the call that makes it again. The definitions are those of ``tests/ops``.
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

from longspan.ops import (
    HAS_EXTENSION,
    banded_attention,
    block_attention,
    bucket_attention,
    lsh_attention,
    multidim_attention,
    span_attention,
)
from longspan.ops.dropout import keep_mask
from longspan.ops.multidim import DIRECTIONS
from longspan.testing import CPU_ISAS, limited_cpu_isa

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.ops.brute_force import band_mask, masked_attention
from tests.ops.brute_force_lsh import bucket_counts, lsh_counts, neighbour_counts, shared_attention
from tests.ops.brute_force_multidim import every_score
from tests.ops.brute_force_span import every_pair

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-1, torch.float16: 1e-2}


def draw_case(rng: random.Random, operator: str) -> dict:
    heads = rng.choice([1, 1, 2, 3, 4, 12])
    case = dict(
        operator=operator,
        batch=rng.choice([0, 1, 1, 2, 3]),
        heads=heads,
        tokens=rng.choice([0, 1, 2, rng.randint(3, 60), rng.randint(60, 400)]),
        cached=0,
        head_size=rng.choice([1, 3, 8, 16, 17, 32, 40, 64, 80, 96, 128, 256]),
        masked=rng.choice([0.0, 0.1, 0.7, 1.0]),
        dropout_p=rng.choice([0.0, 0.0, 0.1, 0.6]),
        dtype=rng.choice(list(TOLERANCE)),
        layout=rng.choice(["BHTD", "BTHD", "BHDT"]),
        isa=rng.choice(CPU_ISAS),
        seed=rng.getrandbits(62),
    )
    return case | DRAW[operator](rng, heads)


def draw_banded(rng: random.Random, heads: int) -> dict:
    def side(low: int) -> int | None:
        return rng.choice([low, 0, None, rng.randint(1, 8), rng.randint(8, 80), rng.randint(80, 500)])

    window = [(side(0), side(-1)) for _ in range(heads)]
    dilation = [rng.choice([1, 1, 2, 3, rng.randint(4, 50), 10**9]) for _ in range(heads)]
    if rng.random() < 0.4:
        window, dilation = window[:1] * heads, dilation[:1] * heads
    scale = rng.choice([None, None, 0.5, 0.0, -0.3])
    cached = rng.choice([0, 0, 1, rng.randint(2, 200)])
    return dict(cached=cached, options=dict(window=window, dilation=dilation, scale=scale))


def draw_chunks(rng: random.Random) -> tuple[int, int, int]:
    """Chunk size, chunks before, chunks after."""
    size = rng.choice([1, 2, 5, 16, 64, 100, 300, rng.randint(1, 80)])
    return size, rng.choice([0, 1, 1, 2, rng.randint(3, 9)]), rng.choice([0, 0, 1, rng.randint(2, 9)])


def draw_block(rng: random.Random, heads: int) -> dict:
    size, before, after = draw_chunks(rng)
    flags = {name: rng.random() < 0.5 for name in ("causal", "wrap")}
    return dict(options=dict(block_size=size, before=before, after=after, **flags))


def draw_hashed(rng: random.Random) -> dict:
    return dict(rounds=rng.choice([1, 2, 2, 3, 8]), num_buckets=rng.choice([1, 2, 5, 30, 1000, 2**62]))


def draw_lsh(rng: random.Random, heads: int) -> dict:
    size, before, after = draw_chunks(rng)
    flags = {name: rng.random() < 0.4 for name in ("causal", "wrap", "same_bucket", "deduplicate")}
    return draw_hashed(rng) | dict(options=dict(chunk_size=size, chunks_before=before, chunks_after=after, **flags))


def draw_bucket(rng: random.Random, heads: int) -> dict:
    return draw_hashed(rng) | dict(options=dict(window=rng.choice([1, 2, 7, 64, 200, rng.randint(1, 500)])))


def draw_multidim(rng: random.Random, heads: int) -> dict:
    tokens = rng.choice([0, 1, 2, rng.randint(3, 30), rng.randint(30, 130)])  # all scores of all features at once
    options = dict(direction=rng.choice(list(DIRECTIONS)), scale=rng.choice([0.5, 1.0, 5.0, 5.0, 40.0]))
    return dict(heads=1, tokens=tokens, dropout_p=0.0, options=options)


def draw_span(rng: random.Random, heads: int) -> dict:
    max_span = rng.choice([1, 2, 9, 64, 200, rng.randint(1, 700)])
    form = rng.choice([{}, dict(zero_cache=True), dict(bidirectional=True)])
    rows = 2 * max_span - 1 if form.get("bidirectional") and rng.random() < 0.5 else max_span
    return dict(
        cached=rng.choice([0, 0, 1, rng.randint(2, 300)]),
        spans=[round(rng.uniform(-2, max_span + 2), rng.choice([0, 2])) for _ in range(heads)],
        dynamic=rng.random() < 0.4,
        positions=rng.choice([(0, 0), (1, rows), (heads, rows)]),
        options=dict(max_span=max_span, ramp=rng.choice([0.5, 1, 7, 32, 100]), scale=rng.choice([None, 0.3]), **form),
    )


def span(query, key, value, *rest, **options):
    """``rest``: position keys, where there are any, and spans."""
    position_key, spans = rest if len(rest) == 2 else (None, *rest)
    return span_attention(query, key, value, position_key, spans, **options)


def multidim(*inputs, dropout_p, dropout_seed, **options):
    return multidim_attention(*inputs, **options)


DRAW = {
    "banded": draw_banded,
    "block": draw_block,
    "lsh": draw_lsh,
    "bucket": draw_bucket,
    "multidim": draw_multidim,
    "span": draw_span,
}
OPERATORS = {
    "banded": banded_attention,
    "block": block_attention,
    "lsh": lsh_attention,
    "bucket": bucket_attention,
    "multidim": multidim,
    "span": span,
}


def tensors_of(case: dict) -> tuple[list[torch.Tensor], torch.Tensor, dict]:
    """Differentiable inputs, gradient of the output, and the tensors among the options."""
    generator = torch.Generator().manual_seed(case["seed"])
    tokens, keys = case["tokens"], case["tokens"] + case["cached"]
    inputs = []
    for length in (tokens, tokens, keys, keys):
        x = torch.randn(case["batch"], case["heads"], length, case["head_size"], generator=generator)
        if case["layout"] == "BTHD":
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        elif case["layout"] == "BHDT":
            x = x.transpose(2, 3).contiguous().transpose(2, 3)
        inputs.append(x.to(case["dtype"]))
    grad_out, *inputs = inputs
    options = {}
    if case["masked"]:
        options["key_mask"] = torch.rand(case["batch"], keys, generator=generator) > case["masked"]
    if "rounds" in case:
        shape = (case["batch"], case["heads"], case["rounds"], tokens)
        options["buckets"] = torch.randint(case["num_buckets"], shape, generator=generator)
        inputs = inputs[:2]
    if case["operator"] == "multidim":
        bias = torch.randn(case["head_size"], generator=generator).to(case["dtype"])
        return [*(x[:, 0] for x in inputs), bias], grad_out[:, 0], options
    if case["operator"] == "span":
        heads, rows = case["positions"]
        if rows:
            table = torch.randn(heads, rows, case["head_size"], generator=generator)
            inputs.append(table.to(case["dtype"]))
        spans = torch.tensor(case["spans"], dtype=torch.float64 if case["dtype"] == torch.float64 else torch.float32)
        if case["dynamic"]:
            spans = spans[:, None] + torch.randint(-9, 9, (case["batch"], case["heads"], tokens), generator=generator)
        inputs.append(spans)
    return inputs, grad_out, options


def definition(case: dict, inputs: list[torch.Tensor], key_mask=None, buckets=None):
    """``(out, lse)`` from every pair of query and key."""
    if case["operator"] == "multidim":
        return every_score(*inputs, key_mask=key_mask, **case["options"])[:2]
    options, heads, tokens = case["options"], case["heads"], case["tokens"]
    keys, keep = tokens + case["cached"], None
    if case["dropout_p"]:
        seed, queries = torch.tensor(case["seed"]), torch.arange(tokens)
        keep = keep_mask(seed, case["dropout_p"], case["batch"], list(range(heads)), queries, torch.arange(keys))
        keep = keep.double() / (1 - case["dropout_p"])
    if case["operator"] == "span":
        query, key, value, *rest = inputs
        position_key, spans = rest if len(rest) == 2 else (None, *rest)
        return every_pair(query, key, value, position_key, spans, key_mask=key_mask, keep=keep, **options)
    if buckets is not None:
        query_key, value = inputs
        count = lsh_counts if case["operator"] == "lsh" else bucket_counts
        return shared_attention(query_key, value, count(buckets, key_mask=key_mask, **options), keep)
    if case["operator"] == "block":
        size, scale = options["block_size"], None
        block, number = torch.arange(tokens) // size, max(1, -(-tokens // size))
        near = neighbour_counts(1, number, options["before"], options["after"], options["wrap"])
        counts = near[block[:, None], block]
        counts = counts.tril() if options["causal"] else counts
    else:
        counts = band_mask(heads, tokens, keys, options["window"], options["dilation"]).double()
        scale = options["scale"]
    if key_mask is not None:
        counts = counts * key_mask[:, None, None]
    query, key, value = inputs
    return masked_attention(query, key, value, counts, scale=scale, keep=keep)


def worst_gap(case: dict) -> float:
    """Largest error of output, lse and gradients, relative to the largest entry of each."""
    inputs, grad_out, options = tensors_of(case)
    ours = [x.detach().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    positional = [options.pop("buckets")] if "buckets" in options else []
    out, lse = OPERATORS[case["operator"]](
        *ours, *positional, dropout_p=case["dropout_p"], dropout_seed=case["seed"], return_lse=True,
        **case["options"], **options,
    )  # fmt: skip
    wanted, wanted_lse = definition(case, theirs, options.get("key_mask"), *positional)
    seen = wanted_lse != -torch.inf
    assert torch.equal(lse != -torch.inf, seen), case
    lse, wanted_lse = lse.masked_fill(~seen, 0.0), wanted_lse.masked_fill(~seen, 0.0)
    grad_lse = (grad_out if lse.dim() == grad_out.dim() else grad_out[..., 0]).double()
    got = [out, lse, *torch.autograd.grad([out, lse], ours, [grad_out, grad_lse.to(lse.dtype)])]
    gradients = torch.autograd.grad(
        [wanted, wanted_lse], theirs, [grad_out.double(), grad_lse], allow_unused=True, materialize_grads=True
    )
    right = [wanted, wanted_lse, *gradients]
    gaps = [0.0]
    for a, b in zip(got, right, strict=True):
        if a.numel():
            b = b.nan_to_num(0.0)
            gaps.append(((a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)).nan_to_num(torch.inf).item())
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operator", choices=[*OPERATORS], action="append", help="one or several; all by default")
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # uninitialised memory reads as NaN
    rng, end, count, worst = random.Random(options.seed), time.monotonic() + options.seconds, 0, {}
    while time.monotonic() < end:
        case = draw_case(rng, rng.choice(options.operator or [*OPERATORS]))
        if HAS_EXTENSION:
            with limited_cpu_isa(case["isa"]):
                gap = worst_gap(case)
        else:
            gap = worst_gap(case)
        count += 1
        worst[case["dtype"]] = max(worst.get(case["dtype"], 0.0), gap)
        if gap > TOLERANCE[case["dtype"]]:
            raise SystemExit(f"case {count} is off by {gap:.1e}:\n  worst_gap({case!r})")
    print(f"{count} cases agree; largest relative errors: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))


if __name__ == "__main__":
    main()
