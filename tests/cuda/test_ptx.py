"""The PTX that nvcc makes of the kernels, executed by an interpreter: covers the compiler and the inline assembly."""

import re

import pytest
import torch

from . import cases

TYPES = {torch.float16: "half", torch.float32: "float", torch.bfloat16: "bf16", torch.float64: "double"}
ATTENTION = ("attention_forward", "attention_backward_queries", "attention_backward_keys", "query_deltas")
WIDE = ("wide_forward", "wide_backward_queries", "wide_backward_keys", "query_deltas")
SPAN = ("span_reaches", "span_forward", "span_backward_queries", "span_backward_keys", "span_backward_positions")
SPAN = (*SPAN, "fold_lags", "query_deltas")
WIDE_SPAN = (*WIDE, "span_reaches", "wide_span_backward_positions", "fold_lags")
MULTIDIM = ("multidim_forward", "multidim_backward_queries", "multidim_backward_keys", "sum_rows")

# Small: each instruction costs the same for one thread as for thousands. And the kernels that must have run.
CASES = {
    "band with dropout": (lambda D: cases.banded(70, D, H=1, window=(12, 5), **cases.DROPOUT), ATTENTION),
    "lsh, deduplicated": (
        lambda D: cases.lsh(24, D, chunk_size=8, wrap=True, deduplicate=True),
        (*ATTENTION, "key_factors", "invert_order"),
    ),
    "spans": (lambda D: cases.span(20, D // 2, spans=[2.5, 9.0], cached=3, max_span=12), SPAN),
    "multidim": (lambda D: cases.multidim(19, D - 27, direction="forward"), MULTIDIM),
}
MORE = {
    "bands by head, cached, masked": (
        lambda D: cases.banded(67, D, cached=3, masked=True, window=[(4, 3), (40, 0)], dilation=[1, 3]),
        ATTENTION,
    ),
    "dense": (lambda D: cases.dense(5, 70, D, B=1), ATTENTION),
    "few queries, many keys": (
        lambda D: cases.dense(2, 520, D, B=1),
        (*ATTENTION, "merge_shares", "sum_shares"),
    ),
    "blocks, wrapped": (lambda D: cases.block(40, D, B=1, block_size=16, before=1, after=1, wrap=True), ATTENTION),
    "buckets": (lambda D: cases.bucket(66, D, window=7, masked=True), (*ATTENTION, "key_factors")),
    "merged": (lambda D: cases.merged(7, D + 3, B=1), ("merge_pair", "merge_pair_backward")),
    "dropped": (lambda D: cases.dropped(2, D + 35), ("seeded_dropout",)),
    "multidim, several sums": (lambda D: cases.multidim(90, 5, B=3, direction="full"), MULTIDIM),
}
WIDE_CASES = {
    "band": (lambda D: cases.banded(9, D, H=1, window=(4, 1)), WIDE),
    "spans": (lambda D: cases.span(7, D, spans=[2.5], max_span=4), WIDE_SPAN),
    "lsh": (lambda D: cases.lsh(9, D, chunk_size=4, same_bucket=True), (*WIDE, "key_factors")),
}


def last_name(symbol: str) -> str:
    """``_ZN8longspan4cuda12invert_orderEPKiilPi`` -> ``invert_order``."""
    name, rest = symbol, symbol.removeprefix("_ZN")
    while match := re.match(r"\d+", rest):
        end = match.end() + int(match[0])
        name, rest = rest[match.end() : end], rest[end:]
    return name


class Interpreted:
    """A context in which the operators run PTX; ``ran``: the names of the kernels that did."""

    def __init__(self, emulator, kernels) -> None:
        self._interpreting, self.ran = emulator.interpreting(kernels), set()

    def __enter__(self) -> None:
        self._symbols = self._interpreting.__enter__()

    def __exit__(self, *error) -> None:
        self.ran |= {last_name(symbol) for symbol in self._symbols}
        self._interpreting.__exit__(*error)


def check(emulator, kernels, case, wanted, dtype) -> None:
    interpreted = Interpreted(emulator, kernels)
    cases.check(case, dtype, interpreted)
    assert interpreted.ran == set(wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(emulator, kernels_of, name, dtype):
    make, wanted = CASES[name]
    check(emulator, kernels_of("half", "float", head_sizes=(64,)), make(64), wanted, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_wide_heads(emulator, kernels_of, dtype):
    make, wanted = WIDE_CASES["band"]
    check(emulator, kernels_of("half", "float", head_sizes=(64,)), make(136), wanted, dtype)


def test_hashing(emulator, kernels_of):
    wanted = cases.buckets_of(**cases.HASHING["factors, masked"])
    with (interpreted := Interpreted(emulator, kernels_of("half", "float", head_sizes=(64,)))):
        assert torch.equal(cases.buckets_of(**cases.HASHING["factors, masked"]), wanted)
    assert interpreted.ran == {"lsh_hash"}


def test_every_kernel_is_interpreted(kernels_of):
    """A kernel that these cases leave out would be one whose assembly nobody has run."""
    wanted = {name for group in (CASES, MORE, WIDE_CASES) for _, names in group.values() for name in names}
    assert {last_name(symbol) for symbol in kernels_of("half", "float", head_sizes=(64,))} == wanted | {"lsh_hash"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", [*CASES, *MORE])
def test_every_type(emulator, kernels_of, name, dtype):
    make, wanted = (CASES | MORE)[name]
    check(emulator, kernels_of(TYPES[dtype]), make(64), wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", WIDE_CASES)
def test_wide_heads_of_every_type(emulator, kernels_of, name, dtype):
    make, wanted = WIDE_CASES[name]
    check(emulator, kernels_of(TYPES[dtype]), make(136), wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "head_size"),
    [(torch.float16, 32), (torch.float16, 50), (torch.float16, 80), (torch.bfloat16, 96), (torch.float16, 128),
     (torch.float32, 50), (torch.float32, 128)],
    ids=str,
)  # fmt: skip
def test_other_head_sizes(emulator, kernels_of, dtype, head_size):
    """Tiles of every size, from the least to the most registers, and rows that are not aligned."""
    make, wanted = CASES["lsh, deduplicated"]
    check(emulator, kernels_of(TYPES[dtype]), make(head_size), wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_head_sizes_of_spans(emulator, kernels_of, dtype):
    make, wanted = CASES["spans"]
    check(emulator, kernels_of(TYPES[dtype]), make(256), wanted, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_hashing_of_every_type(emulator, kernels_of, dtype):
    """The buckets of the reference, of the same rounded numbers."""
    options = cases.HASHING["factors, masked"]
    wanted = cases.buckets_of(**options, dtype=dtype)
    with (interpreted := Interpreted(emulator, kernels_of(TYPES[dtype]))):
        assert torch.equal(cases.buckets_of(**options, dtype=dtype), wanted)
    assert interpreted.ran == {"lsh_hash"}
