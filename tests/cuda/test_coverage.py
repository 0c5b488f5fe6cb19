"""How much of the kernels the emulated cases run: at least 95 % of the lines of every file.

By hand, with all that is missing: python -m tests.cuda.test_coverage
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .building import BUILD, ROOT, emulated_library, host_compiler
from .coverage import FLAGS, FileCoverage, measured, table

LEAST = 0.95
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def coverage() -> dict[str, FileCoverage]:
    """Of ``test_emulated.py`` without the matrix of types and head sizes, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=BUILD) as counts:
        patch.setenv("LONGSPAN_EMULATOR_FLAGS", " ".join(FLAGS))
        emulated_library()
        environment = os.environ | {"GCOV_PREFIX": counts, "GCOV_PREFIX_STRIP": "99"}
        cases = [str(path) for path in Path(__file__).parent.glob("test_emulated*.py")]
        which = "agrees or unusual and not dtype2 or any_head_size or hashing or errors"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", "-k", which, "-p", "no:xdist"]
        done = subprocess.run([*command, *cases], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stdout
        return measured(BUILD, Path(counts))


def test_every_file_is_covered():
    files = coverage()
    assert len(files) > 10, sorted(files)
    print("\n".join(table(files)))
    assert all(file.share >= LEAST for file in files.values()), "\n".join(table(files))


if __name__ == "__main__":
    print("\n".join(table(coverage())))
