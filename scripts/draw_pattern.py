"""Draw which keys each query sees, from the operators themselves: docs/ops/banded.png.

    python scripts/draw_pattern.py [--output docs/ops/banded.png]

With equal scores and the identity as values, attention's output is its own weight matrix.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator

from longspan.ops import banded_attention, dense_attention, merge

TOKENS = 32
COLOURS = ListedColormap(["#f4f4f2", "#3b6ea5", "#e08a3c"])  # hidden, seen through the window, seen as a global token


def seen(**options) -> torch.Tensor:
    """bool [T, S]: which keys get weight."""
    query = torch.zeros(1, 1, TOKENS - options.pop("cached", 0), TOKENS)
    key, value = torch.zeros(1, 1, TOKENS, TOKENS), torch.eye(TOKENS)[None, None]
    return banded_attention(query, key, value, **options)[0, 0] > 0


def seen_with_globals(tokens: list[int]) -> torch.Tensor:
    """0, 1 or 2 [T, S]: Longformer's window with global tokens, which see everything and are seen by all."""
    query, value = torch.zeros(1, 1, TOKENS, TOKENS), torch.eye(TOKENS)[None, None]
    local = torch.ones(1, TOKENS, dtype=torch.bool)
    local[:, tokens] = False
    window = banded_attention(query, query, value, window=(3, 3), key_mask=local, return_lse=True)
    few = dense_attention(query, query[:, :, tokens], value[:, :, tokens], return_lse=True)
    weights = merge([window[0], few[0]], [window[1], few[1]])[0][0, 0]
    picture = (weights > 0).int()
    picture[:, tokens] = 2
    picture[tokens] = 2
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/ops/banded.png"))
    output = parser.parse_args().output
    panels = {
        "window=(3, 3)": seen(window=(3, 3)),
        "window=(6, 0): causal": seen(window=(6, 0)),
        "window=(3, 3), dilation=3": seen(window=(3, 3), dilation=3),
        "window=(8, -1), 12 cached keys": seen(window=(8, -1), cached=12),
        "window=(3, 3), global tokens 0, 1, 14": seen_with_globals([0, 1, 14]),
    }
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.6), constrained_layout=True)
    for axis, (title, picture) in zip(axes, panels.items(), strict=True):
        axis.imshow(picture.int(), cmap=COLOURS, vmin=0, vmax=2, interpolation="none")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("key", fontsize=8)
        axis.tick_params(length=0, labelsize=7)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xticks(torch.arange(-0.5, picture.shape[1]).tolist(), minor=True)
        axis.set_yticks(torch.arange(-0.5, picture.shape[0]).tolist(), minor=True)
        axis.grid(which="minor", color="white", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
    axes[0].set_ylabel("query", fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
