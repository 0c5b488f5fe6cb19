from collections import ChainMap
from collections.abc import Callable, Mapping

import pytest

from .building import build_all, emulated_library, host_compiler, nvcc, ptx, sources_of
from .emulated import Emulator
from .ptx.program import Kernel, parse


@pytest.fixture(scope="session")
def emulator(pytestconfig) -> Emulator:
    """All kernels, of all types and head sizes; for the quick part of the tests tiles for heads of 64 alone."""
    if host_compiler() is None:
        pytest.skip("the emulator needs g++ on x86-64")
    return Emulator(emulated_library(None if pytestconfig.option.markexpr else 64))


@pytest.fixture(scope="session")
def kernels_of() -> Callable[..., Mapping[str, Kernel]]:
    """``kernels_of("half", "float", head_sizes=(64,))``: the PTX of all kernels but those of other types.

    Without head sizes: of all that users get.
    """
    if nvcc() is None:
        pytest.skip("nvcc is not installed")
    parsed: dict[tuple, Mapping[str, Kernel]] = {}

    def kernels(*types: str, head_sizes: tuple[int, ...] | None = None) -> Mapping[str, Kernel]:
        keys = [(source, head_sizes) for source in sources_of(*types)]
        missing = [key for key in keys if key not in parsed]
        for key, path in zip(missing, build_all([ptx(*key) for key in missing]), strict=True):
            parsed[key] = parse(path.read_text())
        return ChainMap(*(parsed[key] for key in keys))  # type: ignore[arg-type]

    return kernels


# What takes longest begins first.
LONGEST = (
    "test_no_symbol_is_undefined",  # builds the extension
    "test_golden_data",
    "test_own_tests",
    "test_nothing_is_out_of_bounds",
    "test_nothing_races",
    "test_every_file_is_covered",
    "test_clean",
    "test_planted_fault",
    "test_no_spills_anywhere",
)


def pytest_collection_modifyitems(config, items):
    """The full matrix, sanitizers and planted faults take many minutes: asked for by ``-m slow``."""
    ours = [item for item in items if "tests/cuda/" in str(item.path)]
    if config.option.markexpr:

        def place(item) -> int:
            if item.originalname in LONGEST:
                return LONGEST.index(item.originalname)
            return len(LONGEST) + (item.path.name == "test_extension.py")  # these wait for the first, which builds it

        ordered, places = iter(sorted(ours, key=place)), set(ours)
        items[:] = [next(ordered) if item in places else item for item in items]
        return
    for item in ours:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="full matrix: pytest tests/cuda -m slow"))
