"""Draw how LSH attention hashes, sorts, cuts and sees, from the operators themselves: docs/ops/lsh.png.

    python scripts/draw_lsh.py [--output docs/ops/lsh.png]

Queries of zeros score every key alike; with the identity as values the output is then the share of each key, and times
the sum of the scores (the exponential of lse) how often it counts.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from matplotlib.gridspec import GridSpec

from longspan.ops import bucket_attention, lsh_attention, lsh_buckets

TOKENS, CHUNK, NUM_BUCKETS = 26, 6, 6
BUCKETS = ListedColormap(["#3b6ea5", "#e08a3c", "#5a9e6f", "#b4556a", "#8671b0", "#c9b458"])
COUNTS = ListedColormap(["#f4f4f2", "#8fb3d5", "#3b6ea5", "#173a5e"])  # not seen, once, twice, three times and more


def counts(attend, **options) -> torch.Tensor:
    """``[T, T]``: how often each query sees each key."""
    zeros, identity = torch.zeros(1, 1, TOKENS, TOKENS), torch.eye(TOKENS)[None, None]
    share, lse = attend(zeros, identity, return_lse=True, **options)
    return (share * lse.exp()[..., None])[0, 0].round().int()  # exp(-inf) = 0 hides what an empty row gives: itself


def draw_plane(axis, vectors: torch.Tensor, rotations: torch.Tensor, hash_round: int) -> None:
    """The tokens' directions, and the sectors that this round's rotation makes buckets of."""
    line = torch.linspace(-1.35, 1.35, 300)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, 1, -1, 2)
    sectors = lsh_buckets(grid, rotations, NUM_BUCKETS)[0, 0, hash_round].view(300, 300)
    extent = (-1.35, 1.35, -1.35, 1.35)
    limits = dict(cmap=BUCKETS, vmin=0, vmax=NUM_BUCKETS - 1)
    axis.imshow(sectors, origin="lower", extent=extent, alpha=0.3, interpolation="none", **limits)
    place = lsh_buckets(vectors, rotations, NUM_BUCKETS)[0, 0, hash_round]
    axis.scatter(*vectors[0, 0].T, c=place, s=60, edgecolors="white", linewidths=0.6, **limits)
    for token, (x, y) in enumerate(vectors[0, 0].tolist()):
        axis.annotate(str(token), (x, y), ha="center", va="center", fontsize=5, color="white")
    axis.set_title(f"1. hash, round {1 + hash_round}", fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])


def draw_strips(axis, buckets: torch.Tensor) -> None:
    """Tokens in text order, and sorted in each round with the borders of chunks."""
    order = torch.ops.longspan.lsh_order.default(buckets, None)[0][0, 0]  # [R, T] positions
    rows = [("text", torch.arange(TOKENS), buckets[0, 0, 0])]
    for hash_round, places in enumerate(order.long()):
        rows.append((f"round {hash_round + 1}, sorted", places, buckets[0, 0, hash_round, places]))
    for height, (_, places, colours) in enumerate(rows):
        for slot, (token, bucket) in enumerate(zip(places.tolist(), colours.tolist(), strict=True)):
            axis.add_patch(plt.Rectangle((slot, -height), 0.92, 0.62, color=BUCKETS(bucket)))
            axis.text(slot + 0.46, 0.29 - height, str(token), ha="center", va="center", fontsize=7, color="white")
        if height:
            for border in range(0, TOKENS + CHUNK, CHUNK):
                x = min(border, TOKENS) - 0.04
                axis.plot([x, x], [-height - 0.12, -height + 0.74], color="black", linewidth=1.4)
    axis.set_yticks([0.3 - height for height in range(len(rows))], [name for name, *_ in rows], fontsize=8)
    axis.set_xticks([])
    axis.set_xlim(-0.5, TOKENS + 0.5)
    axis.set_ylim(-len(rows) + 0.7, 0.9)
    axis.set_title(f"2. sort by (bucket, position), cut into chunks of {CHUNK} (the last may be short)", fontsize=9)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(length=0)


def draw_counts(axis, title: str, picture: torch.Tensor) -> None:
    axis.imshow(picture.clamp(max=3), cmap=COUNTS, vmin=0, vmax=3, interpolation="none")
    axis.set_title(title, fontsize=9)
    axis.set_xlabel("key", fontsize=8)
    axis.tick_params(length=0, labelsize=7, which="both")
    axis.set_xticks(torch.arange(-0.5, TOKENS).tolist(), minor=True)
    axis.set_yticks(torch.arange(-0.5, TOKENS).tolist(), minor=True)
    axis.grid(which="minor", color="white", linewidth=0.4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/ops/lsh.png"))
    output = parser.parse_args().output
    generator = torch.Generator().manual_seed(660)
    angle = torch.rand(TOKENS, generator=generator) * 2 * torch.pi
    length = 0.55 + 0.65 * torch.rand(TOKENS, generator=generator)
    vectors = torch.stack([length * angle.cos(), length * angle.sin()], -1)[None, None]
    rotations = torch.randn(1, 2, 2, NUM_BUCKETS // 2, generator=generator)
    buckets = lsh_buckets(vectors, rotations, NUM_BUCKETS)  # [1, 1, 2, T]
    one = buckets[:, :, :1]

    panels = {
        "3. one round: own chunk, one before": counts(lsh_attention, buckets=one, chunk_size=CHUNK),
        "two rounds: counts add": counts(lsh_attention, buckets=buckets, chunk_size=CHUNK),
        "two rounds, wrap=True": counts(lsh_attention, buckets=buckets, chunk_size=CHUNK, wrap=True),
        "two rounds, causal=True": counts(lsh_attention, buckets=buckets, chunk_size=CHUNK, causal=True),
        "one round, same_bucket=True": counts(lsh_attention, buckets=one, chunk_size=CHUNK, same_bucket=True),
        "bucket_attention, window=3": counts(bucket_attention, buckets=buckets, window=3),
    }
    figure = plt.figure(figsize=(16, 6.4), constrained_layout=True)
    grid = GridSpec(2, 6, figure=figure, height_ratios=[1, 1.05])
    for hash_round in range(2):
        draw_plane(figure.add_subplot(grid[0, hash_round]), vectors, rotations, hash_round)
    draw_strips(figure.add_subplot(grid[0, 2:]), buckets)
    for column, (title, picture) in enumerate(panels.items()):
        axis = figure.add_subplot(grid[1, column])
        draw_counts(axis, title, picture)
        if column == 0:
            axis.set_ylabel("query", fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
