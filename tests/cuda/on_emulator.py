"""A plugin of pytest: the tests of a session call the CUDA kernels, on the emulator.

    python -m pytest -p tests.cuda.on_emulator tests/golden

LONGSPAN_EMULATOR_SEED draws the order of threads, blocks and copies at random; with LONGSPAN_EMULATOR_MOST at most so
many cases of each test run, drawn at random, but always the same.
"""

import os
import random
from collections import Counter, defaultdict

import pytest

from .building import emulated_library
from .emulated import Emulator

# What the CUDA kernels do not do as the CPU's.
KNOWN: dict[str, str] = {}
SEED = int(os.environ.get("LONGSPAN_EMULATOR_SEED", "0"))
_emulator = pytest.StashKey[Emulator]()
_blocks = pytest.StashKey[Counter]()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session):
    emulator = Emulator(emulated_library())
    session.config.stash[_emulator], session.config.stash[_blocks] = emulator, Counter()
    with emulator.running(seed=SEED):
        return (yield)


def pytest_runtest_teardown(item):
    stash = item.config.stash
    stash[_blocks][item.path.name] += stash[_emulator].configure(seed=SEED)[0]


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.name in KNOWN:
            item.add_marker(pytest.mark.xfail(reason=KNOWN[item.name], strict=True))
    most = int(os.environ.get("LONGSPAN_EMULATOR_MOST", str(len(items))))
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.split("[")[0]].append(item)
    kept = {item for group in tests.values() for item in random.Random(0).sample(group, min(most, len(group)))}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_terminal_summary(terminalreporter, config):
    passed = Counter(report.nodeid.split("::")[0].split("/")[-1] for report in terminalreporter.stats.get("passed", []))
    for file, blocks in config.stash.get(_blocks, Counter()).items():
        terminalreporter.write_line(f"{file}: {passed[file]} passed, {blocks} blocks of threads emulated")
