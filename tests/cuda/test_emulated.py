"""The CUDA kernels, executed on the CPU by the emulator, against the operators' references."""

import pytest
import torch

from . import cases

by_name = pytest.mark.parametrize("name", cases.QUICK)
DTYPES = {"half": torch.float16, "bf16": torch.bfloat16, "float": torch.float32, "double": torch.float64}


@by_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_agrees_with_the_reference(emulator, name, dtype):
    cases.check(cases.QUICK[name](64), dtype, emulator.running())


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_any_order_of_threads(emulator, seed, dtype):
    """Threads, blocks and copies at random: results are equal to the bit."""
    case = cases.QUICK["lsh, wrapped, with dropout"](64)
    with emulator.running():
        wanted = case.run(dtype)
    with emulator.running(seed=seed):
        got = case.run(dtype)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("head_size", [1, 7, 40, 130])
def test_any_head_size(emulator, head_size):
    """Padded, unaligned, and wider than any tile."""
    cases.check(cases.QUICK["bands by head, cached, masked"](head_size), torch.float16, emulator.running())
    cases.check(cases.QUICK["lsh"](head_size), torch.float32, emulator.running())


@pytest.mark.parametrize("T", [0, 1, 2, 63, 64, 65])
def test_odd_lengths(emulator, T):
    cases.check(cases.banded(T, 64, window=(3, 3)), torch.float16, emulator.running())
    cases.check(cases.lsh(T, 64, chunk_size=8), torch.float16, emulator.running())


def test_the_emulator_is_what_ran(emulator):
    """Else a green run could be the reference compared with itself."""
    with emulator.running():
        emulator.configure()
        cases.QUICK["band"](64).run(torch.float16)
        blocks, switches, warp_words = emulator.configure()
    assert blocks >= 3 * 2 and switches > 1000 and warp_words > 100


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
