"""What ptxas makes of the kernels: registers, stack and spills, for the architectures that wheels are built for."""

import re

import pytest

from .building import ELEMENT_TYPES, build, machine_code_report, nvcc, ptx, sources_of
from .ptx.program import parse

ARCHITECTURES = ("80", "90", "100", "120")
CHOSEN = ("86", "89")
LARGEST_REGISTERS = 255
pytestmark = pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")


def kernels_of(report: str) -> dict[tuple[str, str], dict[str, int]]:
    """Numbers of each kernel, by symbol and architecture, out of what ptxas says with -v."""
    kernels = {}
    pieces = re.split(r"Compiling entry function '(\w+)' for '(\w+)'", report)[1:]
    for name, architecture, text in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        numbers = {
            "stack": r"(\d+) bytes stack frame",
            "stores": r"(\d+) bytes spill stores",
            "loads": r"(\d+) bytes spill loads",
            "registers": r"Used (\d+) registers",
        }
        found = {key: re.search(pattern, text) for key, pattern in numbers.items()}
        kernels[name, architecture] = {key: int(match[1]) for key, match in found.items() if match}
        assert set(kernels[name, architecture]) == set(numbers), text
    return kernels


def check(report: str, architecture: str) -> None:
    kernels = {name: found for (name, of), found in kernels_of(report).items() if of == architecture}
    assert kernels
    for name, found in kernels.items():
        assert found["stack"] == found["stores"] == found["loads"] == 0, f"{name}: {found}"
        # Two blocks of 128 threads, or of 64, share the 65536 registers of a multiprocessor.
        assert found["registers"] <= LARGEST_REGISTERS, f"{name}: {found}"


def test_no_spills():
    check(machine_code_report(build(ptx("attention_half", (64,))), "sm_80"), "sm_80")


@pytest.mark.slow
@pytest.mark.parametrize("source", sources_of(*ELEMENT_TYPES))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_anywhere(source, architecture):
    """As wheels are built: every head size, machine code of all architectures from the PTX of the oldest."""
    check(machine_code_report(build(ptx(source)), f"sm_{architecture}"), f"sm_{architecture}")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
@pytest.mark.parametrize("source", ["attention_half", "attention_float", "span_half"])
def test_no_spills_where_architectures_are_chosen(source, architecture):
    """8.6 and 8.9 run the machine code of 8.0, unless somebody asks for their own. A sample: heads of 64."""
    code = build(ptx(source))
    kernels = [name for name in parse(code.read_text()) if "Li64E" in name]  # the template's argument
    report = machine_code_report(code, f"sm_{architecture}", kernels)
    assert len(kernels_of(report)) == len(kernels) >= 3
    check(report, f"sm_{architecture}")
