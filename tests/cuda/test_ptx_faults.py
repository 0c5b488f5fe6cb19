"""Faults planted in the inline assembly, which the emulator replaces by words of its own and so never sees.

Each is compiled by nvcc and interpreted: the comparison with the reference must find it.
"""

import shutil
from dataclasses import dataclass

import pytest
import torch

from . import cases
from .building import CSRC, build, nvcc, ptx
from .ptx.program import parse

pytestmark = [pytest.mark.slow, pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")]


@dataclass
class Fault:
    """``old`` becomes ``new`` in words.cuh, everywhere."""

    old: str
    new: str


FAULTS = {
    "nothing planted": Fault("asm", "asm"),
    "swapped operands of a conversion": Fault('"f"(high), "f"(low)', '"f"(low), "f"(high)'),
    "swapped operands of a matrix product": Fault('"r"(b0), "r"(b1)', '"r"(b1), "r"(b0)'),
    "swapped rows of a matrix product": Fault('"r"(a[0]), "r"(a[1])', '"r"(a[1]), "r"(a[0])'),
    "matrices not transposed": Fault(".x4.trans.shared", ".x4.shared"),
    "swapped results of a load": Fault("{%0,%1,%2,%3}, [%4]", "{%0,%2,%1,%3}, [%4]"),
    "copies of nothing are not cleared": Fault("copy ? 16 : 0", "16"),
    "swapped sums of a matrix product": Fault("{%8,%9}, {%0,%1,%2,%3};", "{%8,%9}, {%0,%1,%3,%2};"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault(emulator, name, tmp_path):
    fault = FAULTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    source = csrc / "cuda" / "words.cuh"
    text = source.read_text()
    assert fault.old in text, "the source has changed: plant the fault anew"
    source.write_text(text.replace(fault.old, fault.new))
    kernels = parse(build(ptx("attention_half", (32,), csrc)).read_text())
    # Heads of 24: padded to 32, by copies that clear.
    case = cases.banded(70, 24, H=1, window=(12, 5))

    def check() -> None:
        cases.check(case, torch.float16, emulator.interpreting(kernels))

    if name == "nothing planted":
        check()
    else:
        with pytest.raises(AssertionError, match=r"off by|out|lse"):
            check()
