"""The kinds of recurrence in depth by name. Each class takes options of its own, which a configuration gives."""

import difflib
import inspect
from typing import Any

from longspan.layers.act_recurrence import ActRecurrence
from longspan.layers.fixed_recurrence import HaltingStep, Outcome, Recurrence
from longspan.layers.gated_recurrence import (
    DepthwiseAttentionRecurrence,
    GRURecurrence,
    HighwayRecurrence,
    LSTMRecurrence,
    SkipRecurrence,
)

__all__ = [
    "RECURRENCES",
    "ActRecurrence",
    "DepthwiseAttentionRecurrence",
    "GRURecurrence",
    "HaltingStep",
    "HighwayRecurrence",
    "LSTMRecurrence",
    "Outcome",
    "Recurrence",
    "SkipRecurrence",
    "make_recurrence",
    "option_names",
]

RECURRENCES: dict[str, type[Recurrence]] = {
    "basic": Recurrence,
    "act": ActRecurrence,
    "highway": HighwayRecurrence,
    "skip": SkipRecurrence,
    "gru": GRURecurrence,
    "lstm": LSTMRecurrence,
    "dwa": DepthwiseAttentionRecurrence,
}
_BASICS = {"normed", "layer_norm_eps"}  # follow from the model


def _options(recurrence: str) -> dict[str, Any]:
    """The options that a kind of recurrence takes, and their defaults."""
    options = {
        parameter.name: parameter.default
        for base in RECURRENCES[recurrence].__mro__
        if issubclass(base, Recurrence)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind == parameter.KEYWORD_ONLY
    }
    return {name: default for name, default in options.items() if name not in _BASICS}


def option_names(recurrence: str) -> set[str]:
    """The options that a kind of recurrence takes."""
    return set(_options(recurrence))


def make_recurrence(recurrence: str, hidden_size: int, num_steps: int, options: dict[str, Any], **basics) -> Recurrence:
    """One of ``RECURRENCES`` with options of its own.

    Raises:
        ValueError: naming an option that it does not have, or one whose value makes no sense.
    """
    known = _options(recurrence)
    for name, value in options.items():
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            has = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise ValueError(f"recurrence = {recurrence!r} has no option {name!r}{hint} ({has})")
        if isinstance(known[name], bool) and not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {value!r}")
        if isinstance(known[name], float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return RECURRENCES[recurrence](hidden_size, num_steps, **options, **basics)
