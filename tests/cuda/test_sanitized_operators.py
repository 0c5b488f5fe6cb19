"""The operators under AddressSanitizer and ThreadSanitizer, called by Python: what ``sanitized/main.cpp`` has not.

The emulated library has the sanitizer, the interpreter has not: its runtime is loaded before everything else. Tensors
come from the sanitizer's own allocator, so one element too far shows here too.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .building import CSRC, HEAD_SIZES, ROOT, host_compiler, run

SANITIZERS = {  # the runtime, and the compiler's options
    "address": ("asan", ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]),
    "thread": ("tsan", ["-O1", "-fsanitize=thread", "-Wno-tsan"]),
}
TESTS = Path(__file__).parent / "test_emulated.py"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def sanitized(sanitizer: str, *which: str, only: str = "", csrc: Path = CSRC) -> str:
    """What pytest says, with "status 0" of success.

    Args:
        sanitizer: its name.
        which: tests of ``test_emulated.py``, or ``-k`` and words.
        only: what has the sanitizer: sources whose names begin with one of these words; none: all. Of the others the
            emulator's usual objects are taken.
        csrc: where the sources that have it lie.
    """
    runtime, options = SANITIZERS[sanitizer]
    flags = [*options, "-g1", *(f"-D{name}=64" for name in HEAD_SIZES)]
    environment = os.environ | {
        "LONGSPAN_EMULATOR_FLAGS": " ".join(flags),
        "LONGSPAN_EMULATOR_ONLY": only,
        "LONGSPAN_EMULATOR_CSRC": str(csrc),
    }
    # Built without the runtime: the compiler needs none.
    build = "from tests.cuda.building import emulated_library; emulated_library()"
    run([sys.executable, "-c", build], environment=environment, folder=ROOT)
    library = subprocess.run(
        [host_compiler(), f"-print-file-name=lib{runtime}.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment |= {"LD_PRELOAD": library, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, "-m", "pytest", "-qsx", "-p", "no:xdist", "-m", "slow or not slow"]
    command += [str(TESTS), *which] if which[0] == "-k" else [f"{TESTS}::{name}" for name in which]
    # ThreadSanitizer wants its own places in the address space.
    command = ["setarch", "-R", *command] if sanitizer == "thread" else command
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1800)
    return f"{done.stdout}\n{done.stderr}\nstatus {done.returncode}"


def agrees(dtype: str, name: str) -> str:
    return f"test_agrees_with_the_reference[torch.{dtype}-{name}]"


def test_nothing_is_out_of_bounds():
    """Nor undefined in C++: all operators, in all types."""
    said = sanitized("address", "-k", "agrees or hashing or odd_lengths or any_head_size or strides")
    assert said.endswith("status 0") and "ERROR" not in said and "runtime error" not in said, said[-6000:]


def test_nothing_races():
    """What shares no kernel with banded and LSH attention, which are in ``sanitized/main.cpp``.

    Types differ in their tiles, not in how threads wait: bfloat16 is float16, and one type of ``multidim`` is all.
    """
    said = sanitized(
        "thread",
        *(agrees(dtype, name) for dtype in ("float16", "float32") for name in ("spans", "spans, signed")),
        "test_matrix[torch.float64-32-spans]",
        agrees("float64", "spans, signed"),  # wider than the tile
        *(agrees("float32", name) for name in ("multidim", "multidim, full")),
        "test_hashing",
        only="span multidim hashing",
    )
    assert said.endswith("status 0") and "WARNING: ThreadSanitizer" not in said, said[-6000:]


@pytest.mark.parametrize("which", [0, 1], ids=["before they are written", "before they are read"])
def test_planted_fault(which, tmp_path):
    """A missing barrier of a warp, where scores of positions pass through shared memory."""
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc)
    source = csrc / "cuda" / "span.cuh"
    text = source.read_text()
    found = re.search(r"struct Sheared \{.*?\n\};\n", text, re.S)
    assert found, "the source has changed: plant the fault anew"
    pieces = found[0].split("__syncwarp();")
    assert len(pieces) == 3, "the source has changed: plant the fault anew"
    pieces[which : which + 2] = [pieces[which] + pieces[which + 1]]
    source.write_text(text.replace(found[0], "__syncwarp();".join(pieces)))
    said = sanitized("thread", agrees("float16", "spans"), only="span_half", csrc=csrc)
    assert not said.endswith("status 0") and "data race" in said, said[-6000:]
