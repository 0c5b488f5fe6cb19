import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Uninitialised memory reads as NaN, in Python and in C++: a cell that nobody writes fails the test."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
