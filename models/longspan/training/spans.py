"""Learnt attention spans in training: kept in range, logged, drawn.

A model with learnt spans has ``clamp_spans()`` and ``spans(ramp=...)``, tokens ``[layers, heads]``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SpanCallback(TrainerCallback):
    """Clamps spans after each optimizer step, and puts them into the log; for any Trainer.

    Each logged loss gets ``span_mean`` and ``span_max``, in tokens with the ramp, as the paper counts them. Its entry
    in ``trainer.state.log_history`` also gets ``spans``, those of every layer and head: `span_history` reads them.
    Callbacks that come before this one, as those of ``report_to`` do, have seen the log already.

    Args:
        picture: where spans are drawn at the end of training, see `plot_spans`; ``None``: nowhere.
    """

    def __init__(self, picture: Path | str | None = None) -> None:
        self.picture = picture

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        model.clamp_spans()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        spans = spans_of(model)
        if spans is None:
            return
        flat = [span for layer in spans for span in layer]
        figures = {"span_mean": sum(flat) / len(flat), "span_max": max(flat)}
        logs.update(figures)
        entry: dict[str, Any] = state.log_history[-1]
        entry.update(figures, spans=spans)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        spans = spans_of(model)
        if self.picture is not None and spans is not None and state.is_world_process_zero:
            plot_spans(self.picture, spans, maximum=model.config.max_span)


def span_history(log_history: Sequence[dict[str, Any]]) -> dict[int, list[list[float]]]:
    """Spans by step, in tokens ``[layers][heads]``, out of ``trainer.state.log_history``; of a resumed run too."""
    return {point["step"]: point["spans"] for point in log_history if "spans" in point}


def spans_of(model: Any) -> list[list[float]] | None:
    """Tokens that each head of each layer reaches, ramp included; ``None`` for dynamic spans, which each token has."""
    if model.config.span_mode == "dynamic":
        return None
    return [[round(float(span), 2) for span in layer] for layer in model.spans(ramp=True)]


def plot_spans(
    path: Path | str, spans: Sequence[Sequence[float]], *, maximum: float | None = None, title: str = ""
) -> None:
    """A dot for each head and a line through the layers' means, as an image; tokens on a logarithmic scale.

    Args:
        path: of the image.
        spans: tokens, ``[layers, heads]``.
        maximum: what spans may grow to, drawn as a line.
        title: above the plot.
    """
    import matplotlib  # a big import for one small picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers = range(1, len(spans) + 1)
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    heads = [(layer, span) for layer, row in zip(layers, spans, strict=True) for span in row]
    axes.plot(*zip(*heads, strict=True), "o", alpha=0.7, markersize=5, label="a head")
    means = [sum(row) / len(row) for row in spans]
    axes.plot(layers, means, "-", color="black", linewidth=1, label="mean of the layer")
    if maximum is not None:
        axes.axhline(maximum, color="gray", linestyle=":", linewidth=1, label="maximum")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set_xticks(layers)
    axes.set_xlabel("layer")
    axes.set_ylabel("span in tokens, with the ramp")
    axes.set_title(title, fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, Path(path))


def plot_text_spans(path: Path | str, text: str, spans: Sequence[float], *, title: str = "") -> None:
    """The span at each character of a text, as an image: bars over the characters, words apart by colour.

    Args:
        path: of the image.
        text: one character per span.
        spans: tokens, one per character.
        title: above the plot.
    """
    if len(text) != len(spans):
        raise ValueError(f"text and spans must have one length, got {len(text)} characters and {len(spans)} spans")
    import matplotlib  # a big import for one small picture

    matplotlib.use("Agg")
    from matplotlib import pyplot

    starts_word = [character != " " and before == " " for before, character in zip(" " + text, text, strict=False)]
    colours = ["C1" if starts else "C0" for starts in starts_word]
    figure, axes = pyplot.subplots(figsize=(max(6.4, 0.16 * len(text)), 3), layout="constrained")
    axes.bar(range(len(text)), spans, color=colours, width=0.85)
    axes.set_xticks(range(len(text)), ["␣" if character == " " else character for character in text], fontsize=9)
    axes.set_xlim(-0.6, len(text) - 0.4)
    axes.set_ylabel("span in tokens")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, Path(path))


def _save(figure: Any, path: Path) -> None:
    """Write an image in one step."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    figure.savefig(scratch, dpi=130)
    pyplot.close(figure)
    os.replace(scratch, path)
