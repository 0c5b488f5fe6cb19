"""The operators under AddressSanitizer and ThreadSanitizer, called by Python: what ``sanitized/main.cpp`` has not.

The emulated library has the sanitizer, the interpreter has not: its runtime is loaded before everything else. Tensors
come from the sanitizer's own allocator, so one element too far shows here too.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .building import CSRC, HEAD_SIZES, ROOT, host_compiler, run

SANITIZERS = {"address": "asan", "thread": "tsan"}
ONE_SIZE = [f"-D{name}=64" for name in HEAD_SIZES]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def sanitized(sanitizer: str, which: str, csrc: Path = CSRC) -> str:
    """What pytest says of the tests of ``test_emulated.py`` that ``which`` chooses, with "status 0" of success."""
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}", *ONE_SIZE, *(["-Wno-tsan"] if sanitizer == "thread" else [])]
    environment = os.environ | {"LONGSPAN_EMULATOR_FLAGS": " ".join(flags), "LONGSPAN_CSRC": str(csrc)}
    # Built without the runtime: the compiler needs none.
    build = "from tests.cuda.building import emulated_library; emulated_library()"
    run([sys.executable, "-c", build], environment=environment, folder=ROOT)
    runtime = subprocess.run(
        [host_compiler(), f"-print-file-name=lib{SANITIZERS[sanitizer]}.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment |= {"LD_PRELOAD": runtime, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "pytest", "-qsx", "-p", "no:xdist", "-m", "slow or not slow", "-k", which]
    # ThreadSanitizer wants its own places in the address space.
    command = ["setarch", "-R", *command] if sanitizer == "thread" else command
    done = subprocess.run(
        [*command, str(Path(__file__).parent / "test_emulated.py")],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1800,
    )  # fmt: skip
    return f"{done.stdout}\n{done.stderr}\nstatus {done.returncode}"


def test_nothing_is_out_of_bounds():
    said = sanitized("address", "agrees or hashing or odd_lengths or any_head_size or strides")
    assert said.endswith("status 0") and "ERROR" not in said, said[-6000:]


def test_nothing_races():
    """What shares no kernel with banded and LSH attention, which are in ``sanitized/main.cpp``."""
    said = sanitized("thread", "agrees and (spans or multidim) or hashing")
    assert said.endswith("status 0") and "WARNING: ThreadSanitizer" not in said, said[-6000:]


def test_planted_fault(tmp_path):
    """A missing barrier of a warp, where scores of positions pass through shared memory."""
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    for file in (csrc / "cuda").glob("*.cu"):
        if not file.name.startswith(("span", "attention")):
            file.unlink()
    source = csrc / "cuda" / "span.cuh"
    before, between, after = source.read_text().split("    __syncwarp();\n")  # the second: before they are read
    source.write_text(f"{before}    __syncwarp();\n{between}{after}")
    said = sanitized("thread", "agrees and spans and float32", csrc)
    assert not said.endswith("status 0") and "data race" in said, said[-6000:]
