"""On a machine with a GPU: the compiled kernels against the references, every case, type and head size.

pytest tests/cuda/test_on_device.py
"""

import pytest
import torch

from longspan.testing import has_kernel

from . import cases
from .building import registered_operators

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture(autouse=True)
def on_the_device():
    """Calls get CUDA tensors; masks, buckets and seeds of a case go along."""
    torch.set_default_device("cuda")
    yield
    torch.set_default_device("cpu")


@pytest.mark.parametrize("operator", registered_operators())
def test_the_extension_is_what_runs(operator):
    assert has_kernel(operator, "CUDA")


@pytest.mark.parametrize("head_size", [1, 7, 32, 40, 64, 80, 96, 128, 130, 256])
@pytest.mark.parametrize("dtype", cases.TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [*cases.QUICK, *cases.UNUSUAL])
def test_agrees_with_the_reference(name, dtype, head_size):
    """The reference is what the CPU computes, in float64."""
    with torch.device("cpu"):
        case = (cases.QUICK | cases.UNUSUAL)[name](head_size)
        wanted = cases.Case(case.call, [x.to(dtype).double() for x in case.inputs]).run(torch.float64)
    got = (cases.QUICK | cases.UNUSUAL)[name](head_size).run(dtype)
    cases.compare([x.cpu() for x in got], wanted, dtype)


@pytest.mark.parametrize("name", cases.HASHING)
def test_hashing(name):
    with torch.device("cpu"):
        wanted = cases.buckets_of(**cases.HASHING[name])
    assert torch.equal(cases.buckets_of(**cases.HASHING[name]).cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_runs_are_equal_to_the_bit(dtype):
    case = cases.QUICK["lsh, wrapped, with dropout"](64)
    assert all(torch.equal(a, b) for a, b in zip(case.run(dtype), case.run(dtype), strict=True))
