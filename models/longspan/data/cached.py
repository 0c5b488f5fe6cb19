"""Data sets that are made once and kept until what they are made of changes."""

from __future__ import annotations

import hashlib
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from datasets import (
    DatasetDict,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)

from longspan.data.packages import Package, building, cache_folder

SPLITS = ("train", "validation", "test")


def cached_splits(
    name: str, build: Callable[[], DatasetDict], packages: Sequence[Package], *sources: types.ModuleType
) -> DatasetDict:
    """What ``build`` makes, kept in the cache folder until a package or the code that makes it changes.

    Args:
        name: of the data set.
        build: makes it.
        packages: what it is made of.
        sources: modules that decide what it holds, beside that of ``build``.
    """
    modules = {module.__name__: module for module in (inspect.getmodule(build), *sources) if module}
    code = "".join(inspect.getsource(module) for _, module in sorted(modules.items()))
    digests = "".join(package.sha256 for package in packages)
    key = hashlib.sha256(f"{digests}{code}".encode()).hexdigest()[:12]
    folder = cache_folder() / f"{name}-{key}"
    if not folder.is_dir():
        made = build()
        with building(folder) as scratch, _no_progress_bars():
            made.save_to_disk(str(scratch))
    loaded = load_from_disk(str(folder))
    assert isinstance(loaded, DatasetDict)
    return loaded


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Saving takes a blink; a bar per split only hides what matters."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()
