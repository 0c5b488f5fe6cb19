"""The rows of a recipe's table: each is kept as soon as it is finished, so that a killed recipe can go on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from longspan.training.report import write_json

Row = dict[str, Any]
FILE = "figures.json"


class FinishedRows:
    """What was measured of each model, in ``figures.json``, which is written after every row.

    Args:
        folder: of the recipe.
        setting: everything that decides what a row holds, beside its names.
        resume: keep the rows that are there. If not, the first finished row takes their place.

    Raises:
        ValueError: when rows are to be kept that were made with another setting.
    """

    def __init__(self, folder: Path, setting: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self.setting = folder / FILE, dict(setting)
        self.rows: list[Row] = []
        folder.mkdir(parents=True, exist_ok=True)
        if not resume or not self.path.exists():
            return
        kept = json.loads(self.path.read_text(encoding="utf8"))
        before = kept["setting"]
        changed = [name for name in self.setting if before.get(name) != self.setting[name]]
        if changed:
            told = ", ".join(f"{name} = {before.get(name)} (now {self.setting[name]})" for name in changed)
            raise ValueError(
                f"rows in {self.path} were made with {told}: resume with the same, or name another --output"
            )
        self.rows = kept["rows"]

    @property
    def figures(self) -> dict[str, Any]:
        """What the file holds."""
        return {"setting": self.setting, "rows": self.rows}

    def find(self, names: Mapping[str, str]) -> Row | None:
        """The finished row of that model (and task, where there are several)."""
        return next((row for row in self.rows if names.items() <= row.items()), None)

    def complete(
        self, wanted: Iterable[Mapping[str, str]], measure: Callable[..., Row], describe: Callable[[Row], str]
    ) -> list[Row]:
        """Finish what is missing, one row after the other, and show each.

        Args:
            wanted: names of each row, such as its task and its model.
            measure: takes the names, and returns what stands behind them in the row. The seconds of processor time
                that it took are added.
            describe: makes a line of a row.

        Returns:
            The rows, in the order of ``wanted``.
        """
        rows = []
        for names in wanted:
            row, kept = self.find(names), True
            if row is None:
                began, kept = time.process_time(), False
                row = {**names, **measure(**names), "seconds": round(time.process_time() - began)}
                self.rows.append(row)
                write_json(self.path, self.figures)
            note = "from the earlier run" if kept else f"{row['seconds']} s"
            sys.stdout.write(f"  {' '.join(f'{name:<12}' for name in names.values())}{describe(row)}, {note}\n")
            sys.stdout.flush()
            rows.append(row)
        return rows
