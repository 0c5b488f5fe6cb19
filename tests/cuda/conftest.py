from collections.abc import Callable

import pytest

from .building import emulated_library, host_compiler, nvcc, ptx, sources_of
from .emulated import Emulator
from .ptx.program import Kernel, parse


@pytest.fixture(scope="session")
def emulator() -> Emulator:
    """All kernels, of all types and head sizes."""
    if host_compiler() is None:
        pytest.skip("the emulator needs g++ on x86-64")
    return Emulator(emulated_library())


@pytest.fixture(scope="session")
def kernels_of() -> Callable[..., dict[str, Kernel]]:
    """``kernels_of("half", "float", head_sizes=(64,))``: the PTX of all kernels but those of other types."""
    if nvcc() is None:
        pytest.skip("nvcc is not installed")
    parsed: dict[tuple, dict[str, Kernel]] = {}

    def kernels(*types: str, head_sizes: tuple[int, ...] = (64,)) -> dict[str, Kernel]:
        sources = sources_of(*types)
        for key in ((source, head_sizes) for source in sources):
            if key not in parsed:
                parsed[key] = parse(ptx(*key))
        return {name: kernel for source in sources for name, kernel in parsed[source, head_sizes].items()}

    return kernels


def pytest_collection_modifyitems(config, items):
    """The full matrix, sanitizers and planted faults take many minutes: asked for by ``-m slow``."""
    if config.option.markexpr:
        return
    for item in items:
        if "tests/cuda/" in str(item.path) and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="full matrix: pytest tests/cuda -m slow"))
