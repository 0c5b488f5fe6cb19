"""Which lines of csrc/cuda ran on the emulator, as gcov counts them.

A line that has code in several instances of a template has run where one of them has. What only a GPU compiles (the
inline assembly, launches) the emulator's build does not have, so it is no line here.
"""

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .building import HEAD_SIZES, ROOT

# Tiles that between them have every line: rows that warps share evenly or not, buffers for two tiles or for one.
FLAGS = ("-O0", "-g1", "--coverage", *(f"-D{name}=64,80,128" for name in HEAD_SIZES))


@dataclass
class FileCoverage:
    """Lines of one file that have code, and those of them that ran."""

    lines: set[int]
    ran: set[int]

    @property
    def share(self) -> float:
        return len(self.ran) / len(self.lines)

    def missing(self) -> list[int]:
        return sorted(self.lines - self.ran)


def measured(notes: Path, counts: Path, folder: str = "csrc/cuda") -> dict[str, FileCoverage]:
    """What gcov says.

    Args:
        notes: folder of the compiler's ``.gcno`` files.
        counts: folder of the ``.gcda`` files that a run left.
        folder: only files of this one, in the repository.

    Returns:
        By name of the file.
    """
    files: dict[str, FileCoverage] = {}
    for count in counts.glob("*.gcda"):
        shutil.copy(notes / f"{count.stem}.gcno", counts)
    command = ["gcov", "--json-format", "--stdout", *sorted(path.name for path in counts.glob("*.gcda"))]
    said = subprocess.run(command, capture_output=True, text=True, cwd=counts, check=True).stdout
    for report in said.splitlines():
        for file in json.loads(report)["files"]:
            path = Path(file["file"])
            if not path.is_relative_to(ROOT / folder):
                continue
            seen = files.setdefault(path.name, FileCoverage(set(), set()))
            seen.lines |= {line["line_number"] for line in file["lines"]}
            seen.ran |= {line["line_number"] for line in file["lines"] if line["count"]}
    return files


def table(files: dict[str, FileCoverage]) -> Iterable[str]:
    """A line for each file."""
    for name, file in sorted(files.items()):
        missing = ", ".join(map(str, file.missing()))
        yield f"{name:24} {100 * file.share:6.1f} %  of {len(file.lines):4} lines; not: {missing or '-'}"
