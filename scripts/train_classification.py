"""Fine-tune a Longformer to tell the category of a legal agreement, and classify whole agreements with the pipeline.

    python scripts/train_classification.py [--batches 200] [--output runs/classification]

Categories are the curators' ("Permissive", "Copyleft", "Proprietary Free" ...); no family of agreements is on both
sides of the split. Training sees windows of 512 tokens, drawn anywhere; the test reads whole agreements, in windows
whose logits are pooled.
"""

import argparse
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging

import longspan
from longspan.data import LongDocumentCollator
from longspan.data.agreements import load_agreements
from longspan.data.packages import minilm_folder
from longspan.pipelines import LongTextClassificationPipeline
from longspan.training.fine_tuning import Recipe, build_trainer, freeze_embeddings
from longspan.training.report import heading, save_pretrained, table

LONGEST = 4096  # tokens the model takes at once; the pipeline pools windows of longer texts
WINDOW = 512  # tokens of a training window


class RandomWindows(Dataset):
    """Windows of whole texts, each drawn anywhere in its text; every text once before any comes again."""

    def __init__(self, rows, tokenizer, count: int, seed: int):
        rng = random.Random(seed)
        documents = tokenizer(list(rows["text"]), add_special_tokens=False, return_global_attention_mask=False)[
            "input_ids"
        ]
        self.items, pool = [], []
        for _ in range(count):
            pool = pool or rng.sample(range(len(documents)), len(documents))
            index = pool.pop()
            ids = documents[index]
            start = rng.randint(0, max(0, len(ids) - WINDOW))
            ids = [tokenizer.cls_token_id, *ids[start : start + WINDOW - 2], tokenizer.sep_token_id]
            mask = [1] * len(ids)
            item = {"input_ids": ids, "attention_mask": mask, "global_attention_mask": [1] + [0] * (len(ids) - 1)}
            self.items.append(item | {"labels": rows["label"][index]})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        return self.items[index]


def accuracy(predicted: list[str], rows) -> float:
    names = rows.features["label"].names
    return sum(label == names[wanted] for label, wanted in zip(predicted, rows["label"], strict=True)) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--batches", type=int, default=200, help="optimizer steps (default: 200)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=None, help="test on so many agreements (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/classification"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    set_seed(options.seed)

    heading("1  Real agreements, a short encoder made long")
    data = load_agreements()
    names = data["train"].features["label"].names
    test = data["test"] if options.questions is None else data["test"].select(range(options.questions))
    print(
        f"  {len(data['train'])} agreements to train on, {len(test)} of other families to test on: {', '.join(names)}"
    )
    short = minilm_folder()
    model: Any = longspan.convert_to_long(
        short,
        max_length=LONGEST,
        attention_window=256,
        model_class=longspan.LongformerForSequenceClassification,
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokenizer = longspan.LongformerTokenizer.from_pretrained(short)
    tokenizer.model_max_length = LONGEST

    heading(f"2  {options.batches} steps on windows of {WINDOW} tokens")
    recipe = Recipe(batches=options.batches, batch_size=options.batch_size, seed=options.seed, head_rate=1e-3)
    windows = RandomWindows(data["train"], tokenizer, recipe.batches * recipe.batch_size, options.seed)
    freeze_embeddings(model.longformer)
    build_trainer(
        model, model.longformer, windows, LongDocumentCollator(tokenizer), recipe, folder=options.output
    ).train()
    folder = save_pretrained(options.output / "model", model, tokenizer)

    heading(f"3  {len(test)} agreements of unseen families")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    classify = LongTextClassificationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    most_frequent = names[Counter(data["train"]["label"]).most_common(1)[0][0]]
    texts = list(test["text"])
    offsets = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    beginnings = [text[: ends[: WINDOW - 2][-1][1]] for text, ends in zip(texts, offsets, strict=True)]
    with torch.inference_mode():
        whole = [answer["label"] for answer in classify(texts)]
        first = [answer["label"] for answer in classify(beginnings)]
    rows = [
        ["most frequent category", f"{accuracy([most_frequent] * len(test), test):.3f}"],
        [f"first {WINDOW} tokens", f"{accuracy(first, test):.3f}"],
        ["whole agreement", f"{accuracy(whole, test):.3f}"],
    ]
    print(table(["", "accuracy"], rows))
    print(f"\n  {test[0]['title']}: {classify(test[0]['text'], top_k=3)}\n  Model: {folder}/\n")


if __name__ == "__main__":
    main()
