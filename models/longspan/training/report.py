"""Figures for people: aligned tables, text bars, a small plot, a file of numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_FULL, _EMPTY = "█", "░"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their content, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(["", first, *others]).rstrip()

    return "\n".join([line(header), "  " + "─" * (sum(widths) + 2 * (len(widths) - 1)), *(line(row) for row in rows)])


def bar(share: float, width: int = 24) -> str:
    """A bar of ``width`` characters, filled to ``share`` (0 to 1)."""
    filled = round(share * width)
    return _FULL * filled + _EMPTY * (width - filled)


def heading(text: str) -> None:
    """Print what comes next, with a line above."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


def sentence_around(text: str, start: int, end: int, width: int) -> str:
    """The sentence that holds the characters [start, end), the answer in brackets, wrapped to ``width``.

    Args:
        text: the document.
        start: first character of the answer.
        end: one past its last.
        width: longest line; a sentence of more than four lines is cut at both ends.
    """
    reach = 2 * width - (end - start) // 2
    before = re.split(r"(?<=[.;:])\s(?=[A-Z(\d])", text[max(0, start - reach) : start])[-1]
    after = re.split(r"(?<=[.;])\s(?=[A-Z(\d])", text[end : end + reach])[0]
    opening = "..." if len(before) == reach else ""
    closing = "..." if len(after) == reach else ""
    return "\n".join(textwrap.wrap(f"{opening}{before}[{text[start:end]}]{after}{closing}", width))


def save_pretrained(folder: Path, model: Any, tokenizer: Any = None) -> Path:
    """Save a model and its tokenizer, if it has one, in ``folder``.

    The folder holds all of the old or all of the new, or after a kill nothing.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    for left_over in folder.parent.glob(f".{folder.name}.*"):  # of killed runs
        shutil.rmtree(left_over, ignore_errors=True)
    model.save_pretrained(scratch)
    if tokenizer is not None:
        tokenizer.save_pretrained(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a file in one step: it holds the old content or the new, never half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf8")
    os.replace(scratch, path)


def plot_by_position(path: Path, labels: Sequence[str], series: dict[str, Sequence[float | None]], title: str) -> None:
    """Bars of exact match by the place of the answer, one group per place, as an image.

    Args:
        path: of the image.
        labels: names of the places.
        series: method -> exact match per place; ``None`` where no question lies.
        title: above the plot.
    """
    import matplotlib  # a big import for one small picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(labels))]
        axes.bar(places, [value or 0.0 for value in values], width, label=name)
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("place of the answer in the document (tokens)")
    axes.set_ylabel("exact match")
    axes.set_ylim(0, 1.05)
    axes.set_title(title, fontsize=10)
    figure.legend(frameon=False, fontsize=9, loc="outside lower center")
    axes.spines[["top", "right"]].set_visible(False)
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(scratch, dpi=130)
    pyplot.close(figure)
    os.replace(scratch, path)
