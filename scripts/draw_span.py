"""Draw what attention with soft spans sees, from the operator itself: docs/ops/span.png.

    python scripts/draw_span.py [--output docs/ops/span.png]

Queries of zeros score every key alike; with the identity as values the output, times the sum of the weights (the
exponential of lse), is then the mask.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator

from longspan.ops import soft_mask, span_attention

TOKENS, RAMP = 28, 6
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["#f4f4f2", "#8fb3d5", "#173a5e"])
COLOURS = ["#3b6ea5", "#e08a3c", "#5a9e6f"]


def seen(span: torch.Tensor, queries: int = TOKENS, **options) -> torch.Tensor:
    """``[T, S]``: the weight m(x) of every pair."""
    query = torch.zeros(1, 1, queries, TOKENS)
    key, value = torch.zeros(1, 1, TOKENS, TOKENS), torch.eye(TOKENS)[None, None]
    share, lse = span_attention(query, key, value, None, span, max_span=TOKENS, ramp=RAMP, return_lse=True, **options)
    return (share * lse.exp()[..., None])[0, 0]


def draw_masks(axis) -> None:
    distance = torch.arange(TOKENS)
    for span, colour in zip((0.0, 4.5, 16.0), COLOURS, strict=True):
        mask = soft_mask(torch.tensor(span), distance, ramp=RAMP)
        axis.plot(distance, mask, marker="o", markersize=3, color=colour, label=f"span {span:g}")
        axis.axvspan(span, span + RAMP, color=colour, alpha=0.12, linewidth=0)
    axis.set_title(f"m(x), ramp {RAMP}; shaded: keys with a slope", fontsize=9)
    axis.set_xlabel("distance x, 0 = nearest", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def draw_weights(axis, title: str, picture: torch.Tensor):
    image = axis.imshow(picture, cmap=WEIGHTS, vmin=0, vmax=1, interpolation="none")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("key", fontsize=8)
    axis.tick_params(length=0, labelsize=7, which="both")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xticks(torch.arange(-0.5, picture.shape[1]).tolist(), minor=True)
    axis.set_yticks(torch.arange(-0.5, picture.shape[0]).tolist(), minor=True)
    axis.grid(which="minor", color="white", linewidth=0.4)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/ops/span.png"))
    output = parser.parse_args().output
    of_queries = 3 + 12 * torch.sin(torch.arange(TOKENS) / 4).clamp(min=0)  # [T]
    panels = {
        "span 4.5": seen(torch.tensor([4.5])),
        "span 16": seen(torch.tensor([16.0])),
        "a span for each query": seen(of_queries[None, None]),
        "span 4.5, 12 cached keys": seen(torch.tensor([4.5]), queries=TOKENS - 12),
        "span 4.5, bidirectional": seen(torch.tensor([4.5]), bidirectional=True),
    }
    figure = plt.figure(figsize=(17, 3.4), constrained_layout=True)
    grid = GridSpec(1, 1 + len(panels), figure=figure, width_ratios=[1.25, *[1] * len(panels)])
    draw_masks(figure.add_subplot(grid[0, 0]))
    for column, (title, picture) in enumerate(panels.items(), 1):
        axis = figure.add_subplot(grid[0, column])
        image = draw_weights(axis, title, picture)
        if column == 1:
            axis.set_ylabel("query", fontsize=8)
        if column == len(panels):
            figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
