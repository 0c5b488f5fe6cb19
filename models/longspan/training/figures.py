"""Figures of an experiment of several runs, kept run by run, so that a killed experiment goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from longspan.training.report import write_json


class Figures:
    """What runs gave, by name, in ``figures.json``.

    Args:
        folder: made where it is missing.
        options: everything that decides what the runs compute; figures of other options are not gone on with.

    Raises:
        ValueError: when the folder holds figures of other options.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.path = folder / "figures.json"
        self.options = json.loads(json.dumps(dict(options)))
        self.runs: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = json.loads(self.path.read_text(encoding="utf8"))
            changed = {name for name in self.options.keys() | kept["options"].keys()
                       if self.options.get(name) != kept["options"].get(name)}  # fmt: skip
            if changed and kept["runs"]:
                told = ", ".join(f"{name} = {kept['options'].get(name)}" for name in sorted(changed))
                raise ValueError(
                    f"{self.path} holds figures of runs with {told}: name another --output, or remove the file"
                )
            self.runs = kept["runs"]

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``work`` returns (numbers, by name), or what it returned before."""
        if name not in self.runs:
            self.runs[name] = work()
            write_json(self.path, {"options": self.options, "runs": self.runs})
        return self.runs[name]
