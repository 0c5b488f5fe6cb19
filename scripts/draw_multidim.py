"""Draw the weights of multi-dimensional attention, from the operator itself: docs/ops/multidim.png.

    python scripts/draw_multidim.py [--output docs/ops/multidim.png]

Random inputs: 12 tokens, the last two of them padding. Of two features the weights in each direction; of two queries
the weights of 40 features.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from longspan.ops import multidim_weights

TOKENS, PADDING, FEATURES = 12, 2, 40
DIRECTIONS = ("forward", "backward", "diagonal_free", "full")


def weights(direction: Any) -> Tensor:
    """``[T, S, D]`` of one text."""
    generator = torch.Generator().manual_seed(3)
    dependent, head = torch.randn(2, 1, TOKENS, FEATURES, generator=generator) * 2
    mask = torch.arange(TOKENS)[None] < TOKENS - PADDING
    return multidim_weights(dependent, head, torch.zeros(FEATURES), direction=direction, key_mask=mask)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/ops/multidim.png"))
    output = parser.parse_args().output
    figure, axes = plt.subplots(2, 5, figsize=(14, 5.6), layout="constrained", width_ratios=[1, 1, 1, 1, 1.3])
    for column, direction in enumerate(DIRECTIONS):
        for feature in (0, 1):
            axis = axes[feature, column]
            axis.imshow(weights(direction)[..., feature].numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="none")
            axis.set_title(f'direction="{direction}"' if feature == 0 else "", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    for feature in (0, 1):
        axes[feature, 0].set_ylabel(f"feature {feature + 1}\nquery", fontsize=8)
        axes[1, feature].set_xlabel("key", fontsize=8)
    seen = weights("full")
    for row, query in enumerate((2, 7)):
        axes[row, 4].imshow(seen[query].T.numpy(), cmap="Blues", vmin=0, aspect="auto", interpolation="none")
        axes[row, 4].set_title(f"query {query}: a softmax for every feature", fontsize=9)
        axes[row, 4].set_ylabel("feature", fontsize=8)
        axes[row, 4].set_xlabel("key (the last two are padding)" if row else "", fontsize=8)
        axes[row, 4].set_xticks(range(TOKENS))
        axes[row, 4].tick_params(length=0, labelsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
