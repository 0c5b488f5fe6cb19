"""GPUs that the compiled kernels have no code for. No GPU is needed: the CPU's kernels stand for them."""

import subprocess
import sys

import pytest
import torch

from longspan.ops import HAS_EXTENSION
from longspan.ops.gpus import leave_to_references, served

COMPILED = [(8, 0), (9, 0)]


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True)]
)
def test_served(capability, wanted):
    assert served(capability, COMPILED) == wanted and not served(capability, [])


@pytest.mark.parametrize("here", [[], [(8, 0)], [(7, 5), (9, 0)]])
def test_kernels_stay_where_they_serve_a_gpu(here):
    assert not leave_to_references(here, COMPILED, key="CPU")
    assert not leave_to_references([(7, 5)], [], key="CPU")


@pytest.mark.skipif(not HAS_EXTENSION, reason="no kernels to leave")
def test_old_gpus_run_the_references():
    """In a process of its own, which keeps no kernel afterwards."""
    code = """
import torch
from longspan import ops
from longspan.ops.gpus import leave_to_references
x = torch.randn(1, 2, 70, 8, requires_grad=True)
kernel = ops.banded_attention(x, x, x, window=(3, 3))
calls = []
for name, reference in list(ops.gpus.REFERENCES.items()):
    ops.gpus.REFERENCES[name] = lambda *args, name=name, reference=reference: (calls.append(name), reference(*args))[1]
assert leave_to_references([(7, 0), (7, 5)], [(8, 0)], key="CPU")
out = ops.banded_attention(x, x, x, window=(3, 3))
torch.autograd.grad(out.sum(), x)
assert calls == ["banded_attention", "banded_attention_backward"], calls
torch.testing.assert_close(out, kernel)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "8.0 and newer" in done.stderr and "longspan.info" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA may have begun here")
def test_importing_does_not_start_cuda():
    """A process that has used CUDA cannot fork, which data loaders do."""
    code = "import longspan.ops, torch; assert not torch.cuda.is_initialized()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
