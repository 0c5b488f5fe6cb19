"""The operators' own tests, and those against golden data, with the CUDA kernels on the emulator.

They compare with definitions by brute force and with stored outputs, not with the references that ``cases`` uses. What
has nothing to do with kernels is left out (instruction sets of the CPU, compilation, messages), and what takes long.
"""

import os
import re
import subprocess
import sys

import pytest

from .building import ROOT, host_compiler, registered_operators

LEFT_OUT = (
    "instruction_set compile export opcheck errors the_extension_is share_of_pairs gradcheck equal integer_dtype "
    "several_waves"
)
FILES = {  # of tests/ops, and the operator that they are about
    "banded": "banded_attention",
    "block": "block_attention",
    "bucket_attention": "bucket_attention",
    "dense": "dense_attention",
    "dropout": "seeded_dropout",
    "hashing": "lsh_hash",
    "lsh": "lsh_attention",
    "merge": "merge_pair",
    "multidim": "multidim_attention",
    "span": "span_attention",
}
GOLDEN = ("longformer", "reformer", "biblosan", "adaptive_span")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def emulated(files: list[str], *, left_out: str, seed: int, most: int) -> dict[str, tuple[int, int]]:
    """Of each file the tests that passed and the blocks of threads that ran, in a process of their own."""
    environment = os.environ | {"LONGSPAN_EMULATOR_SEED": str(seed), "LONGSPAN_EMULATOR_MOST": str(most)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda.on_emulator", "-p", "no:xdist", "--durations=9"]
    done = subprocess.run(
        [*command, "-k", f"not ({left_out})", *files], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.findall(r"^(\S+): (\d+) passed, (\d+) blocks of threads emulated", done.stdout, re.M)
    return {file: (int(passed), int(blocks)) for file, passed, blocks in counts}


# Few processes: each takes seconds to import what it needs.


@pytest.mark.parametrize("lsh", [True, False], ids=["lsh", "others"])
def test_own_tests(lsh):
    """Without the properties that hypothesis looks for: they take long here."""
    files = [f"test_{file}.py" for file, operator in FILES.items() if operator in registered_operators()]
    files = [file for file in files if (file == "test_lsh.py") == lsh]
    counts = emulated([f"tests/ops/{file}" for file in files], left_out=" or ".join(LEFT_OUT.split()), seed=0, most=12)
    assert counts.keys() == set(files)
    assert all(passed >= 5 and blocks >= 100 for passed, blocks in counts.values()), counts


@pytest.mark.parametrize("architectures", [GOLDEN[:2], GOLDEN[2:]], ids=" ".join)
def test_golden_data(architectures):
    """Every case, float64 and float32, in a random order of threads; whole trainings in float64."""
    files = [f"test_{name}.py" for name in architectures]
    counts = emulated([f"tests/golden/{file}" for file in files], left_out="train and float32", seed=7, most=10_000)
    assert counts.keys() == set(files)
    assert all(passed >= 20 and blocks > 0 for passed, blocks in counts.values()), counts
