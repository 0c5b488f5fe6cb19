"""Reference data as test parameters: ``test_<folder>.py`` gets each case of ``<folder>/`` as the argument ``case``.

The folder is looked up beside this file, or in the folder that the environment variable LONGSPAN_GOLDEN names. What a
case is, its metadata says; file names say nothing. Data is read when a test runs, not when tests are collected.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

ROOT = Path(os.environ.get("LONGSPAN_GOLDEN") or Path(__file__).parent)
FORMATS = (".npz", ".safetensors", ".json", ".pt")


@dataclass
class Case:
    """One case: tensors by name, as stored, and its metadata."""

    path: Path

    @cached_property
    def content(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, meta = _read(self.path)
        for suffix in FORMATS:  # of a case's partner, which need not be the case's own
            partner = self.path.with_name(f"{self.path.stem}_expect{suffix}")
            if partner.exists():
                more, more_meta = _read(partner)
                tensors, meta = tensors | more, more_meta | meta
        return tensors, meta

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.content[0]

    @property
    def meta(self) -> dict[str, Any]:
        return self.content[1]


def _value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if path.suffix == ".npz":
        with np.load(path) as data:
            stored: dict[str, Any] = {name: data[name] for name in data.files}
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt") as data:
            stored = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118
            stored["meta"] = {name: _value(text) for name, text in (data.metadata() or {}).items()}
    elif path.suffix == ".json":
        stored = json.loads(path.read_text())
    else:
        stored = torch.load(path, weights_only=True)
    if isinstance(stored, list):  # a table
        stored = {"meta": {"rows": stored}}
    meta = stored.pop("meta", {})
    meta = meta if isinstance(meta, dict) else json.loads(str(meta))
    if isinstance(meta.get("meta"), dict):  # all of a file's metadata under one name
        meta = meta | meta.pop("meta")
    plain = {name: value for name, value in stored.items() if isinstance(value, str | bool | int | float | dict)}
    texts = {
        name: value for name, value in stored.items() if isinstance(value, np.ndarray) and value.dtype.kind in "US"
    }
    plain |= {name: _value(str(value)) for name, value in texts.items()}
    plain |= {name: _value(value) for name, value in plain.items() if isinstance(value, str)}
    tensors = {
        name: value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
        for name, value in stored.items()
        if name not in plain
    }
    return tensors, plain | meta


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        folder = ROOT / metafunc.module.__name__.rsplit("test_", 1)[-1]
        paths = sorted(path for path in folder.glob("*") if path.suffix in FORMATS)
        names = {path.stem for path in paths}
        own = [path for path in paths if path.stem.removesuffix("_expect") not in names - {path.stem}]
        metafunc.parametrize("case", [pytest.param(Case(path), id=path.stem) for path in own])
