"""The kernels under AddressSanitizer and ThreadSanitizer, and faults planted in them, which the checks must find.

The emulator lets threads run until they wait, so that races do not show in results: ThreadSanitizer finds them.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from .building import CSRC, EMULATOR, built, compile_objects, device_sources, host_compiler, run

PROGRAM = Path(__file__).parent / "sanitized"
SANITIZERS = {
    "plain": [],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread", "-Wno-tsan"],
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def program(sanitizer: str, csrc: Path = CSRC) -> Path:
    """``sanitized/main.cpp`` with the kernels of ``csrc``."""
    flags = ["-O1", "-g", *SANITIZERS[sanitizer]]

    def make(path: Path) -> None:
        folder = path.with_suffix(".objects")
        folder.mkdir(exist_ok=True)
        kernels = [csrc / "cuda" / f"attention_{name}.cu" for name in ("half", "float")]
        objects = compile_objects(
            folder, [(file, ["-DLONGSPAN_HEAD_SIZES=64"]) for file in [*kernels, PROGRAM / "main.cpp"]], flags, csrc
        )
        # ThreadSanitizer must not see how the emulator changes threads: it is told by hand.
        own = ["-O2", "-DEMULATOR_TSAN"] if sanitizer == "thread" else flags
        objects += compile_objects(folder, [(EMULATOR / "emulator.cpp", own)], [], csrc)
        run([host_compiler(), *flags, *objects, "-o", path, "-pthread", "-ldl", "-rdynamic"])
        shutil.rmtree(folder)

    return built(f"sanitized-{sanitizer}", "", [*device_sources(csrc), EMULATOR, PROGRAM], flags, make)


def execute(path: Path, seeds: int, case: str = "") -> str:
    """What the program says; its last line is its exit status."""
    environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([path, str(seeds), case], capture_output=True, text=True, env=environment, timeout=1800)
    return f"{done.stdout}\n{done.stderr}\nstatus {done.returncode}"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_clean(sanitizer):
    said = execute(program(sanitizer), seeds=2)
    assert said.endswith("status 0") and "WARNING" not in said and said.count("ok  ") == 2 * 2 * 6, said


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
    "two blocks add to one row": Fault(
        "launch.cuh",
        "  const int64_t blocks = tiles * pattern.heads * pattern.B;",
        "  const int64_t blocks = 2 * tiles * pattern.heads * pattern.B;",
        "thread",
        ("data race", "FAIL"),
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
    said = execute(program(fault.sanitizer, csrc), seeds=2, case=fault.case)
    assert not said.endswith("status 0") and any(word in said for word in fault.words), said
