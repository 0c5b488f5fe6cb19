"""Progress of `transformers.Trainer` and of evaluation: one bar on a terminal, a few lines in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Item = TypeVar("Item")

_BAR = "  {desc:<24}{bar:30} {n_fmt:>4}/{total_fmt} {elapsed} +{remaining}{postfix}"
_LOG_PARTS = 4  # lines of a run that writes to a file


class ProgressCallback(TrainerCallback):
    """A bar with the running loss and figures of evaluation, in place of Trainer's own bar and printed dictionaries.

    Give it to a Trainer whose arguments have ``disable_tqdm=True``, after
    ``trainer.remove_callback(transformers.PrinterCallback)``.

    Args:
        label: what stands before the bar.
    """

    def __init__(self, label: str = "training") -> None:
        self.label = label
        self._line: ProgressLine | None = None
        self._figures: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._line = ProgressLine(self.label, state.max_steps, done=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        assert self._line is not None
        self._line.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (logs or {}).items():
            if name == "loss" or (name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))):
                shown = "held-out loss" if name == "eval_loss" else name.removeprefix("eval_").replace("_", " ")
                self._figures[name] = f"{shown} {float(value):.3f}"
        if self._line is not None and self._figures:
            self._line.note(", ".join(self._figures.values()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._line is not None:
            self._line.close()


class ProgressLine:
    """A bar where standard error is a terminal, else `_LOG_PARTS` lines with the time they took.

    Args:
        label: what stands before it.
        total: number of steps.
        done: steps that were done before, in a resumed run.
    """

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._note = ""
        self._began = time.perf_counter()
        self._bar = tqdm(
            total=total, initial=done, desc=label, bar_format=_BAR, leave=True, disable=not sys.stderr.isatty()
        )

    def step(self) -> None:
        """One step is done."""
        self.done += 1
        self._bar.update()
        part = max(1, -(-self.total // _LOG_PARTS))
        if self._bar.disable and (self.done % part == 0 or self.done == self.total):
            note = f", {self._note}" if self._note else ""
            seconds = time.perf_counter() - self._began
            sys.stderr.write(f"  {self.label:<24}{self.done:>4}/{self.total} {seconds:5.0f} s{note}\n")

    def note(self, text: str) -> None:
        """Show a short text behind the bar."""
        self._note = text
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Leave the line as it is."""
        self._bar.close()


def progress(items: Sequence[Item], label: str) -> Iterable[Item]:
    """Go through ``items`` with a `ProgressLine`."""

    def walk() -> Iterator[Item]:
        line = ProgressLine(label, len(items))
        for item in items:
            yield item
            line.step()
        line.close()

    return walk()
