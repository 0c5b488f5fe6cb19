"""Reformer's synthetic task: how many hash rounds does attention need to find the one place that matters?

    python scripts/reproduce_reformer_duplication.py           # minutes on two cores, scaled down
    python scripts/reproduce_reformer_duplication.py --full    # the paper's size and steps

Texts are 0w0w, w drawn anew each time (Kitaev et al. 2020, section 5 and table 2). The second half can be said exactly,
by looking back half the text; accuracy counts there only. A model of one layer is trained with full attention and with
4, 2 and 1 hash rounds, and each is then used with full attention and with 8, 4, 2 and 1 rounds.

What differs from the paper: LSH chunks end with their round instead of wrapping into the next, and a key that several
rounds find counts once for each, where the paper's code divided by that number. Positions are a learned table. Scaled
down, w is shorter, there are fewer symbols, the model is narrower, and the steps are few.
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from longspan.reformer import ReformerConfig, ReformerModelWithLMHead
from longspan.training.progress import ProgressLine
from longspan.training.report import heading, table, write_json

FULL = 0  # in place of a number of hash rounds: full attention
TRAINED = (FULL, 4, 2, 1)
USED = (FULL, 8, 4, 2, 1)
PAPER = {  # table 2: accuracy in %, by how a model was trained, then by how it is used
    FULL: (100.0, 94.8, 92.5, 76.9, 52.5),
    4: (0.8, 100.0, 99.9, 99.4, 91.9),
    2: (0.8, 100.0, 99.9, 98.1, 86.8),
    1: (0.8, 99.9, 99.6, 94.8, 77.9),
}
DRAWS = 4  # of the rotations, over which accuracy is averaged


@dataclass(frozen=True)
class Setting:
    """Size of the task, of the model, and of the training.

    Args:
        word: length of w; texts have 2 * word + 2 tokens.
        symbols: number of them, beside 0.
        chunk: tokens of a chunk; a query sees two chunks.
        hidden: width of the streams and of the feed-forward layer.
        heads: number of heads, which share the width.
        steps: of the optimizer.
        batch: texts in a step.
        rate: learning rate after 100 steps of warm-up; it falls linearly to a tenth.
    """

    word: int
    symbols: int
    chunk: int
    hidden: int
    heads: int
    steps: int
    batch: int
    rate: float

    @property
    def length(self) -> int:
        return 2 * self.word + 2


SCALED = Setting(word=63, symbols=31, chunk=8, hidden=64, heads=4, steps=1500, batch=32, rate=3e-3)
PAPERS = Setting(word=511, symbols=127, chunk=64, hidden=256, heads=4, steps=150_000, batch=32, rate=1e-3)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    setting = PAPERS if options.full else SCALED
    setting = Setting(**{**vars(setting), **{k: v for k in vars(setting) if (v := getattr(options, k)) is not None}})
    heading(f"0w0w with |w| = {setting.word}, {setting.symbols} symbols, {setting.length} tokens")
    print(
        f"  one layer of {setting.hidden}, {setting.heads} heads, chunks of {setting.chunk}; {setting.steps} steps of",
        end=" ",
    )
    print(f"{setting.batch} texts; guessing is right {100 / setting.symbols:.1f} % of the time")
    accuracy = {}
    for hashes in TRAINED:
        began = time.perf_counter()
        model = train(setting, hashes, options.seed)
        accuracy[hashes] = [evaluate(model, setting, used, options.texts) for used in USED]
        cells = " ".join(f"{100 * value:5.1f}" for value in accuracy[hashes])
        print(f"  trained with {name(hashes):<6} {time.perf_counter() - began:4.0f} s: {cells}", flush=True)
    heading("Accuracy in % on the second half, this run | the paper")
    rows = [
        [
            name(hashes),
            *(f"{100 * own:.1f} | {paper:.1f}" for own, paper in zip(accuracy[hashes], PAPER[hashes], strict=True)),
        ]
        for hashes in TRAINED
    ]
    print(table(["trained \\ used", *map(name, USED)], rows))
    figures = {name(hashes): dict(zip(map(name, USED), accuracy[hashes], strict=True)) for hashes in TRAINED}
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "figures.json", {"setting": vars(setting), "accuracy": figures})
    print(f"\nFigures: {options.output}/figures.json")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--full", action="store_true", help="the paper's size and steps: hours on a GPU")
    for field, kind in Setting.__annotations__.items():
        parser.add_argument(
            f"--{field}", type=kind, help=f"default: {getattr(SCALED, field)}; --full: {getattr(PAPERS, field)}"
        )
    parser.add_argument("--texts", type=int, default=64, help="texts to count on, for each draw of rotations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/duplication"))
    return parser.parse_args(argv)


def name(hashes: int) -> str:
    return f"LSH-{hashes}" if hashes else "full"


def build(setting: Setting, hashes: int, **more: Any) -> ReformerModelWithLMHead:
    """A model of one layer; full attention among shared queries and keys is a single chunk as long as the text."""
    config = ReformerConfig(
        vocab_size=setting.symbols + 1,
        hidden_size=setting.hidden,
        num_attention_heads=setting.heads,
        attention_head_size=setting.hidden // setting.heads,
        feed_forward_size=setting.hidden,
        attn_layers=["lsh"],
        is_decoder=True,
        lsh_attn_chunk_length=setting.chunk if hashes else setting.length,
        num_hashes=hashes or 1,
        axial_pos_shape=[setting.length],  # one axis: a learned row per position
        axial_pos_embds_dim=[setting.hidden],
        max_position_embeddings=setting.length,
        hidden_dropout_prob=0.0,
        pad_token_id=None,
        eos_token_id=None,
        initializer_range=0.1,
        **more,
    )
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return ReformerModelWithLMHead(config)


def draw(setting: Setting, texts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Texts ``[texts, length]`` and their labels, which ask for the second w only."""
    word = torch.randint(1, setting.symbols + 1, (texts, setting.word), generator=generator)
    zero = torch.zeros(texts, 1, dtype=torch.int64)
    ids = torch.cat([zero, word, zero, word], 1)
    labels = ids.clone()
    labels[:, : setting.word + 2] = -100
    return ids, labels


def train(setting: Setting, hashes: int, seed: int) -> ReformerModelWithLMHead:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build(setting, hashes)
    optimizer = torch.optim.Adam(model.parameters(), lr=setting.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 1 - 0.9 * step / setting.steps)
    )
    line = ProgressLine(f"trained with {name(hashes)}", setting.steps)
    model.train()
    for step in range(setting.steps):
        ids, labels = (x.to(model.device) for x in draw(setting, setting.batch, generator))
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            line.note(f"loss {float(loss.detach()):.3f}")
        line.step()
    line.close()
    return model


@torch.no_grad()
def evaluate(model: ReformerModelWithLMHead, setting: Setting, hashes: int, texts: int) -> float:
    """Share of the second w's symbols that the model says, over several draws of texts and rotations."""
    right = total = 0
    for seed in range(DRAWS):
        used = build(setting, hashes, hash_seed=seed).eval()
        used.load_state_dict(model.state_dict())
        ids, labels = (x.to(used.device) for x in draw(setting, texts, torch.Generator().manual_seed(1_000_000 + seed)))
        said = used(ids, num_hashes=hashes or None).logits[:, :-1].argmax(-1)
        asked = labels[:, 1:] != -100
        right += int((said == labels[:, 1:])[asked].sum())
        total += int(asked.sum())
    return right / total


if __name__ == "__main__":
    main()
