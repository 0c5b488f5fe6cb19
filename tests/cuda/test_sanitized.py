"""The kernels under AddressSanitizer and ThreadSanitizer, and faults planted in them, which the checks must find.

The emulator lets threads run until they wait, so that races do not show in results: ThreadSanitizer finds them.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from .building import CSRC, build_all, compiled, emulator_object, host_compiler, linked

PROGRAM = Path(__file__).parent / "sanitized"
SANITIZERS = {
    "plain": ["-O0"],
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-O1", "-fsanitize=thread", "-Wno-tsan"],
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def program(sanitizer: str, dtype: str, csrc: Path = CSRC) -> Path:
    """``sanitized/main.cpp`` with the kernels of ``csrc`` for one element type."""
    flags = [*SANITIZERS[sanitizer], "-g1"]
    kernels = compiled(csrc / "cuda" / f"attention_{dtype}.cu", [*flags, "-DLONGSPAN_HEAD_SIZES=64"], csrc)
    main = compiled(PROGRAM / "main.cpp", [*flags, f"-DSANITIZED_TYPE={dtype}"], csrc)
    objects = build_all([kernels, main, emulator_object(flags)])
    return linked(f"sanitized-{sanitizer}-{dtype}", "", objects, [*flags, "-pthread", "-ldl", "-rdynamic"])


def execute(path: Path, seeds: int, case: str = "") -> str:
    """What the program says; its last line is its exit status."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([path, str(seeds), case], capture_output=True, text=True, env=environment, timeout=1800)
    return f"{done.stdout}\n{done.stderr}\nstatus {done.returncode}"


@pytest.mark.parametrize(
    ("sanitizer", "dtype", "seeds"),
    [("plain", "half", 2), ("address", "half", 2), *(("thread", dtype, 1) for dtype in ("half", "float", "double"))],
)
def test_clean(sanitizer, dtype, seeds):
    """Without faults nothing is found. What bfloat16 has of its own are the words that multiply and convert."""
    said = execute(program(sanitizer, dtype), seeds)
    assert said.endswith("status 0") and "WARNING" not in said and said.count("ok  ") == 6 * seeds, said


@dataclass
class Fault:
    """``old`` becomes ``new`` in a file of csrc/cuda, and ``sanitizer`` says one of ``words``."""

    file: str
    old: str
    new: str
    sanitizer: str
    words: tuple[str, ...]
    case: str = "band"


FAULTS = {
    "missing wait for copies": Fault("walk.cuh", "    cp_async_wait<ahead>();\n", "", "plain", ("FAIL",)),
    "missing barrier before a buffer is filled": Fault(
        "walk.cuh",
        "    __syncthreads();                                // everybody is done",
        "    // everybody is done",
        "thread",
        ("data race",),
    ),
    "missing barrier after copies": Fault(
        "walk.cuh",
        "    cp_async_wait<ahead>();\n    __syncthreads();\n",
        "    cp_async_wait<ahead>();\n",
        "thread",
        ("data race",),
    ),
    "barrier in divergent code": Fault(
        "walk.cuh",
        "    if (next < tiles) fetch(next);\n",
        "    if (next < tiles) fetch(next);\n    if (threadIdx.x < 64) __syncthreads();\n",
        "plain",
        ("different barriers",),
    ),
    "shuffle in divergent code": Fault(
        "words.cuh",
        "  x += __shfl_xor_sync(kWholeWarp, x, 1);\n",
        "  if (threadIdx.x % 32 < 16) x += __shfl_xor_sync(kWholeWarp, x, 1);\n",
        "plain",
        ("different words", "deadlock"),
    ),
    "out of bounds in shared memory": Fault(
        "walk.cuh",
        "    T* place = to + row * pitch + column;",
        "    T* place = to + row * pitch + column + count * pitch;",
        "address",
        ("use-after-poison", "heap-buffer-overflow", "unknown-crash"),
    ),
    "out of bounds in global memory": Fault(
        "pattern.cuh",
        "    if (column >= work.end) return nobody();",
        "    if (column >= work.end + 1) return nobody();",
        "address",
        ("heap-buffer-overflow",),
    ),
    "two blocks write one row": Fault(
        "pattern.cuh",
        "    const int place = tile / tiles_per_chunk, begin",
        "    const int place = tile / tiles_per_chunk / 2, begin",
        "thread",
        ("data race",),
        "lsh",
    ),
    "swapped fragments": Fault(
        "tile.cuh",
        "mma_m16n8k16<T>(sums[n], a, b[0], b[1]);",
        "mma_m16n8k16<T>(sums[n], a, b[1], b[0]);",
        "plain",
        ("FAIL",),
    ),
    "off by one window": Fault(
        "pattern.cuh", "query.place + work.after, most", "query.place + work.after + 1, most", "plain", ("FAIL",)
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault(name, tmp_path):
    fault = FAULTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    source = csrc / "cuda" / fault.file
    text = source.read_text()
    assert text.count(fault.old) >= 1, "the source has changed: plant the fault anew"
    source.write_text(text.replace(fault.old, fault.new, 1))
    said = execute(program(fault.sanitizer, "half", csrc), seeds=2, case=fault.case)
    assert not said.endswith("status 0") and any(word in said for word in fault.words), said
