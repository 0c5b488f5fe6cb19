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

LEFT_OUT = "instruction_set compile export opcheck errors the_extension_is share_of_pairs gradcheck equal"
FILES = {  # of tests/ops, and the operator that they are about
    "banded": "banded_attention",
    "block": "block_attention",
    "bucket_attention": "bucket_attention",
    "dense": "dense_attention",
    "hashing": "lsh_hash",
    "lsh": "lsh_attention",
    "multidim": "multidim_attention",
    "span": "span_attention",
}
GOLDEN = ("longformer", "reformer", "biblosan", "adaptive_span")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")]


def emulated(files: list[str], *, seed: int, most: int) -> tuple[int, int]:
    """Tests that passed and blocks of threads that ran, in a process of their own."""
    environment = os.environ | {"LONGSPAN_EMULATOR_SEED": str(seed), "LONGSPAN_EMULATOR_MOST": str(most)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.cuda.on_emulator", "-p", "no:xdist", "--durations=3"]
    done = subprocess.run(
        [*command, "-k", f"not ({' or '.join(LEFT_OUT.split())})", *files],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    print(done.stdout[-2000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed, blocks = re.search(r"(\d+) passed", done.stdout), re.search(r"emulated: (\d+)", done.stdout)
    assert passed and blocks, done.stdout
    return int(passed[1]), int(blocks[1])


@pytest.mark.parametrize("file", [file for file, operator in FILES.items() if operator in registered_operators()])
def test_own_tests(file):
    """Without the properties that hypothesis looks for: they take long here."""
    passed, blocks = emulated([f"tests/ops/test_{file}.py"], seed=0, most=24)
    assert passed >= 10 and blocks >= 100, (passed, blocks)


@pytest.mark.parametrize("architecture", GOLDEN)
def test_golden_data(architecture):
    """Every case, float64 and float32, in a random order of threads."""
    passed, blocks = emulated([f"tests/golden/test_{architecture}.py"], seed=7, most=10_000)
    assert passed >= 20, (passed, blocks)
