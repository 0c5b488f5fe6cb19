"""The CUDA kernels, executed on the CPU by the emulator, against the operators' references."""

import pytest
import torch

from . import cases

QUICK_TYPES = (torch.float16, torch.float32)
# Those with tiles of their own, and one that is wider: every kernel there is.
TILES = {
    torch.float16: (32, 64, 80, 96, 128, 136),
    torch.bfloat16: (32, 64, 80, 96, 128, 136),
    torch.float32: (64, 128, 136),
    torch.float64: (32, 64, 136),
}
PADDED = (40, 50, 3)  # inside the next tile: aligned or not, hardly filled
by_name = pytest.mark.parametrize("name", cases.QUICK)


def matrix() -> list[tuple[torch.dtype, int, str]]:
    """Every case with every kernel; and with padded head sizes, in one type after the other: any two of them meet."""
    types = list(TILES)
    whole = [(dtype, size, name) for dtype in types for size in TILES[dtype] for name in cases.QUICK]
    padded = [
        (types[(i + j) % len(types)], size, name) for i, name in enumerate(cases.QUICK) for j, size in enumerate(PADDED)
    ]
    return whole + padded


@by_name
@pytest.mark.parametrize(
    "dtype", [x if x in QUICK_TYPES else pytest.param(x, marks=pytest.mark.slow) for x in TILES], ids=str
)
def test_agrees_with_the_reference(emulator, name, dtype):
    cases.check(cases.QUICK[name](64), dtype, emulator.running())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", QUICK_TYPES, ids=str)
def test_any_order_of_threads(emulator, seed, dtype):
    """Threads, blocks and copies at random: results are equal to the bit."""
    case = cases.QUICK["lsh, wrapped, with dropout"](64)
    with emulator.running():
        wanted = case.run(dtype)
    assert_same_in_any_order(emulator, case, dtype, [seed], wanted)


def assert_same_in_any_order(emulator, case, dtype, seeds, wanted):
    for seed in seeds:
        with emulator.running(seed=seed):
            got = case.run(dtype)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), f"seed {seed}"


@pytest.mark.parametrize("head_size", [1, 7, 40, 80, 130])
def test_any_head_size(emulator, head_size):
    """Padded, unaligned, and wider than any tile."""
    cases.check(cases.QUICK["bands by head, cached, masked"](head_size), torch.float16, emulator.running())
    cases.check(cases.QUICK["lsh"](head_size), torch.float32, emulator.running())


@pytest.mark.parametrize("T", [0, 1, 2, 63, 64, 65])
def test_odd_lengths(emulator, T):
    cases.check(cases.banded(T, 64, window=(3, 3)), torch.float16, emulator.running())
    cases.check(cases.lsh(T, 64, chunk_size=8), torch.float16, emulator.running())


@pytest.mark.parametrize("name", cases.HASHING)
def test_hashing(emulator, name):
    wanted = cases.buckets_of(**cases.HASHING[name])
    with emulator.running():
        assert torch.equal(cases.buckets_of(**cases.HASHING[name]), wanted)


def test_the_emulator_is_what_ran(emulator):
    """Else a green run could be the reference compared with itself: each case runs kernels, forward and backward."""
    idle = [name for name in cases.QUICK if not blocks_run(emulator, cases.QUICK[name](32))]
    idle += [
        name for name in cases.UNUSUAL if not blocks_run(emulator, cases.UNUSUAL[name](32)) and "empty" not in name
    ]
    assert idle == ["lsh, no tokens"]


def blocks_run(emulator, case) -> int:
    with emulator.running():
        emulator.configure()
        case.run(torch.float32)
        return emulator.configure()[0]


def test_strides(emulator):
    """``[B, T, H, D]`` storage and a strided last dimension."""
    case = cases.QUICK["band"](64)
    with emulator.running():
        wanted = case.run(torch.float32)
        for change in (
            lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
            lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        ):
            got = cases.Case(case.call, [change(x) for x in case.inputs]).run(torch.float32)
            for ours, theirs in zip(got, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.UNUSUAL)
@pytest.mark.parametrize(("dtype", "head_size"), [(torch.float16, 64), (torch.float32, 50), (torch.bfloat16, 136)])
def test_unusual(emulator, name, dtype, head_size):
    cases.check(cases.UNUSUAL[name](head_size), dtype, emulator.running())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "head_size", "name"), matrix(), ids=str)
def test_matrix(emulator, dtype, head_size, name):
    """And in a random order of threads, the same to the bit: but for bfloat16, whose kernels wait as float16's do."""
    case = cases.QUICK[name](head_size)
    got = cases.check(case, dtype, emulator.running())
    if dtype != torch.bfloat16:
        assert_same_in_any_order(emulator, case, dtype, [head_size], got)


@pytest.mark.slow
def test_errors_name_the_operator(emulator):
    """What only the kernels cannot do."""
    wide = torch.zeros(1, 1, 2, 40_000)
    with emulator.running():
        with pytest.raises(RuntimeError, match="head size 40000 is too large"):
            cases.Case(cases.banded(1, 1, window=(1, 1), H=1).call, [wide[:, :, :1]] * 3).run(torch.float32)
