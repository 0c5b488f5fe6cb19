"""Time and memory against length, as in the paper's efficiency figure: one training step of an encoder on one text.

    python scripts/bench_biblosan.py [--quick] [--picture docs/biblosan_lengths.png]

Bi-BloSAN in blocks that suit the length, DiSAN (attention over the whole text) by the same operator, DiSAN with all
scores stored, as the original code computes it, and a Bi-LSTM; 300 features in each direction, float32, forward and
backward pass. First the two forms of DiSAN's attention are compared. Each encoder has a process of its own: time
is processor time of one thread, so that other work on the machine counts little; memory is the growth of peak resident
memory.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longspan.biblosan import BiBloSanConfig, BiBloSanModel, block_length_for
from longspan.info import summary
from longspan.layers import multidim_self_attention
from longspan.ops import multidim_attention
from longspan.ops.multidim import DIRECTIONS
from longspan.training.memory import PeakMemory
from longspan.training.report import table
from longspan.training.text_baselines import BiLstmEncoder

FEATURES = 300
STORED = "DiSAN, scores stored"
LENGTHS = {
    "Bi-BloSAN": (64, 128, 256, 512, 1024, 2048, 4096, 8192),
    "Bi-LSTM": (64, 128, 256, 512, 1024, 2048, 4096, 8192),
    "DiSAN": (64, 128, 256, 512, 1024, 2048, 4096),
    STORED: (64, 128, 256, 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="lengths up to 512")
    parser.add_argument("--features", type=int, default=FEATURES, help=f"in each direction (default: {FEATURES})")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    parser.add_argument("--measure", nargs="+", metavar="ENCODER, LENGTHS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        encoder, *lengths = options.measure
        print(json.dumps([measure(encoder, int(length), options.features) for length in lengths]))
        return
    print(summary())
    agree()
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for encoder, lengths in LENGTHS.items():
        chosen = [length for length in lengths if length <= 512 or not options.quick]
        figures[encoder] = dict(zip(chosen, in_a_process(encoder, chosen, options.features), strict=True))
        print(f"  measured: {encoder}", flush=True)
    print(f"\nForward and backward pass, {options.features} features in each direction, one text of so many tokens")
    for what, unit, scale in (("seconds", "ms of processor time", 1e3), ("mib", "MiB of peak memory", 1.0)):
        columns = sorted({length for of_encoder in figures.values() for length in of_encoder})
        rows = [
            [name, *(f"{scale * of[length][what]:.0f}" if length in of else "-" for length in columns)]
            for name, of in figures.items()
        ]
        print(table([unit, *map(str, columns)], rows))
    if options.picture:
        draw(options.picture, figures)


def build(encoder: str, length: int, features: int) -> nn.Module:
    """An encoder that takes word vectors ``[1, length, features]`` and a mask."""
    fields: dict[str, Any] = {"vocab_size": 2, "embedding_size": features, "hidden_size": features}
    if encoder == "Bi-LSTM":
        return BiLstmEncoder(BiBloSanConfig(block_length=1, hidden_dropout_prob=0.0, **fields))
    if encoder != "Bi-BloSAN":
        config = BiBloSanConfig(attention="full", hidden_dropout_prob=0.0, **fields)
    else:
        config = BiBloSanConfig(block_length=block_length_for(length), hidden_dropout_prob=0.0, **fields)
    if encoder == STORED:
        multidim_self_attention.multidim_attention = stored_scores  # type: ignore[assignment]
    return BiBloSanModel(config, add_pooling_layer=False).encoder


def stored_scores(
    dependent: Tensor,
    head: Tensor,
    value: Tensor,
    bias: Tensor,
    *,
    direction: str,
    key_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Multi-dimensional attention with scores, weights and products in memory, ``[B, L, L, D]`` each."""
    assert key_mask is None, "texts have no padding here"
    earlier, later, own = DIRECTIONS[direction]  # type: ignore[index]
    ones = torch.ones(value.shape[1], value.shape[1], dtype=torch.bool)
    visible = (ones.tril(-1) & earlier) | (ones.triu(1) & later) | (torch.eye(len(ones), dtype=torch.bool) & own)
    scores = scale * torch.tanh((dependent[:, None] + head[:, :, None] + bias) / scale)
    weights = torch.softmax(scores.masked_fill(~visible[..., None], -1e30), 2) * visible[..., None]
    return (weights * value[:, None]).sum(2)


def agree() -> None:
    """The two forms of DiSAN's attention compute the same, or nothing is measured."""
    torch.manual_seed(0)
    dependent, head, value = torch.randn(3, 2, 40, 24)
    for direction in ("forward", "backward"):
        options: dict[str, Any] = {"direction": direction, "key_mask": None, "scale": 5.0}
        ours = multidim_attention(dependent, head, value, torch.zeros(24), **options)
        torch.testing.assert_close(stored_scores(dependent, head, value, torch.zeros(24), **options), ours)


def measure(encoder: str, length: int, features: int) -> dict[str, float]:
    """Seconds and MiB of one step, the first not counted; the shortest of a few."""
    torch.manual_seed(0)
    model = build(encoder, length, features)

    def step(tokens: int) -> None:
        words = torch.randn(1, tokens, features)
        model(words, None, False, False).last_hidden_state.sum().backward()
        model.zero_grad()

    step(min(length, 64))  # what is set up once
    seconds = []
    for _ in range(3 if length <= 1024 else 1):
        with PeakMemory() as memory:
            began = time.process_time()
            step(length)
            seconds.append(time.process_time() - began)
    return {"seconds": min(seconds), "mib": memory.mib or float("nan")}


def in_a_process(encoder: str, lengths: list[int], features: int) -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--features", str(features), "--measure", encoder, *map(str, lengths)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def draw(path: Path, figures: dict[str, dict[int, dict[str, float]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, what, label in zip(panels, ("seconds", "mib"), ("seconds", "MiB"), strict=True):
        for name, of_length in figures.items():
            axes.plot(list(of_length), [of[what] for of in of_length.values()], marker="o", markersize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel="tokens")
        axes.set_title("processor time" if what == "seconds" else "peak memory", fontsize=10)
        axes.set_ylabel(label)
        axes.set_xticks(LENGTHS["Bi-BloSAN"], list(map(str, LENGTHS["Bi-BloSAN"])), fontsize=7)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
