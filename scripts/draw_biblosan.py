"""Draw the attention of a trained Bi-BloSAN: docs/biblosan_attention.png.

    python scripts/reproduce_biblosan_questions.py          # trains the model
    python scripts/draw_biblosan.py [--model DIR] [--text "..."] [--output docs/biblosan_attention.png]

Of every feature's own weights: their mean within blocks and between blocks, both directions; how much they differ from
feature to feature; and how much each word counts in the text's vector.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import longspan

QUESTION = "What is the name of the Russian city that was founded by a king on the coast ?"


@torch.no_grad()
def attention(model: Any, tokenizer: Any, text: str) -> dict[str, Any]:
    """Words, the model's answer, weights ``[2 D, T, T]`` and ``[2 D, m, m]``, and those of pooling ``[T, 2 D]``."""
    batch = tokenizer(text, return_tensors="pt")
    outputs = model(**batch, output_attentions=True, output_hidden_states=True)
    pooler, states = model.biblosan.pooler, outputs.hidden_states[-1]
    pooled = pooler.logits(pooler.activation(pooler.dense(states))).softmax(1)
    return {
        "words": tokenizer.convert_ids_to_tokens(batch.input_ids[0]),
        "answer": model.config.id2label[int(outputs.logits.argmax())],
        "within": outputs.attentions[-1][0],
        "between": outputs.global_attentions[-1][0],
        "pooled": pooled[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=Path("runs/biblosan_questions/coarse/model"))
    parser.add_argument("--text", default=QUESTION)
    parser.add_argument("--output", type=Path, default=Path("docs/biblosan_attention.png"))
    options = parser.parse_args()
    if not (options.model / "config.json").exists():
        raise SystemExit(f"there is no model in {options.model}: scripts/reproduce_biblosan_questions.py trains one")
    model = longspan.BiBloSanForSequenceClassification.from_pretrained(options.model).eval()
    found = attention(model, longspan.BiBloSanTokenizer.from_pretrained(options.model), options.text)
    words, answer = found["words"], found["answer"]
    size = model.config.hidden_size
    block = model.config.block_length
    names = [f"block {number + 1}" for number in range(found["between"].shape[-1])]

    figure = plt.figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 4, width_ratios=[3, 3, 3, 2])
    for row, (direction, part) in enumerate((("forward", slice(0, size)), ("backward", slice(size, None)))):
        within = found["within"][part]
        panel(
            figure.add_subplot(grid[row, 0]),
            within.mean(0),
            f"{direction}, within blocks of {block}: mean",
            words,
            block,
        )
        panel(figure.add_subplot(grid[row, 1]), within.std(0), f"{direction}: spread over features", None, block, words)
        panel(
            figure.add_subplot(grid[row, 2]),
            found["between"][part].mean(0),
            f"{direction}, between blocks: mean",
            names,
        )
    bars(figure.add_subplot(grid[:, 3]), words, found["pooled"], answer)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)
    print(f"wrote {options.output}: {options.text!r} asks for {answer}")


def panel(
    axes: Any, weights: Tensor, title: str, rows: list[str] | None, block: int | None = None, columns: Any = None
) -> None:
    axes.imshow(weights.numpy(), cmap="Blues", vmin=0, interpolation="none")
    axes.set_title(title, fontsize=9)
    labels = columns or rows or []
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=7)
    axes.set_yticks(range(len(labels)), rows if rows else [""] * len(labels), fontsize=7)
    axes.tick_params(length=0)
    for place in range(block, len(labels), block) if block else ():
        axes.axhline(place - 0.5, color="#e08a3c", linewidth=0.7)
        axes.axvline(place - 0.5, color="#e08a3c", linewidth=0.7)


def bars(axes: Any, words: list[str], pooled: Tensor, answer: str) -> None:
    axes.barh(range(len(words)), pooled.mean(1).numpy(), color="#3b6ea5")
    axes.set_yticks(range(len(words)), words, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"weight in the text's\nvector, mean\nanswer: {answer}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
