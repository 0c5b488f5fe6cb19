import pytest

from .building import emulated_library, host_compiler, nvcc, ptx
from .emulated import Emulator
from .ptx.program import Kernel, parse

QUICK_TYPES, QUICK_SIZES = ("half", "float"), (64,)


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """The kernels of the two engines for heads of 64; others are `slow`."""
    if host_compiler() is None:
        pytest.skip("the emulator needs g++ on x86-64")
    return Emulator(emulated_library(QUICK_TYPES, QUICK_SIZES))


@pytest.fixture(scope="session")
def kernels() -> dict[str, Kernel]:
    """The PTX of the same kernels."""
    if nvcc() is None:
        pytest.skip("nvcc is not installed")
    sources = [*(f"attention_{name}" for name in QUICK_TYPES), "lsh"]
    return {name: kernel for source in sources for name, kernel in parse(ptx(source, QUICK_SIZES)).items()}


def pytest_collection_modifyitems(config, items):
    """The full matrix, sanitizers and planted faults take many minutes: asked for by ``-m slow``."""
    if config.option.markexpr:
        return
    for item in items:
        if "tests/cuda/" in str(item.path) and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="full matrix: pytest tests/cuda -m slow"))
