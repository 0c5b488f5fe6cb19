"""Bi-BloSAN on pairs of sentences: are these two versions of one Bible verse, or does the second only look like it?

    python scripts/reproduce_biblosan_verses.py                          # 12,000 of 51,000 pairs: minutes
    python scripts/reproduce_biblosan_verses.py --pairs 60000 --epochs 5

The first is a verse of the King James Version, the second one of the World English Bible: its own, or that of another
verse, the nearest by its words. Each text becomes a vector by itself, and a highway layer compares the two (the paper's
SNLI model). Beside it, with the same head: a mean of words, a Bi-LSTM, and DiSAN if asked for; and what words tell by
TF-IDF. Chapters on the two sides of the split tell different things. A killed run goes on where it was.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import longspan
from longspan.biblosan import suggest_block_length
from longspan.biblosan.tokenization_biblosan import count_words
from longspan.data.packages import PackageUnavailable, minilm_folder
from longspan.data.text_collators import TextPairCollator
from longspan.data.verse_pairs import load_verse_pairs
from longspan.training.encoder_word_vectors import encoder_word_vectors
from longspan.training.figures import Figures
from longspan.training.report import heading, save_pretrained, table
from longspan.training.text_baselines import (
    ENCODERS,
    WordOverlapBaseline,
    build_model,
    count_parameters,
    freeze_fixed_words,
)
from longspan.training.text_classification import TextRecipe, accuracy, logits_of, train_classifier

DEFAULT = ("mean of words", "Bi-LSTM", "Bi-BloSAN")
OVERLAP = ("TF-IDF, cosine", "TF-IDF, linear in common and other words")


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = ("pairs", "vectors", "hidden", "epochs", "rate", "dropout", "seed")
    figures = Figures(options.output, {name: getattr(options, name) for name in names})

    data = load_verse_pairs()
    train = data["train"].shuffle(seed=options.seed).select(range(min(options.pairs, len(data["train"]))))
    parts = {"train": train, "validation": data["validation"], "test": data["test"]}
    texts = {part: (list(rows["first"]), list(rows["second"]), list(rows["label"])) for part, rows in parts.items()}
    heading(", ".join(f"{len(rows)} pairs: {part}" for part, rows in parts.items()))
    for name in OVERLAP:
        figures.run(name, lambda name=name: overlap(name, texts))
    vectors = word_vectors(texts, options)
    for encoder in options.encoders:
        run = figures.run(encoder, lambda encoder=encoder: neural(encoder, texts, vectors, options))
        print(f"  {encoder}: {run['accuracy']:.3f}", flush=True)
    heading("Pairs of unseen chapters")
    print(summary(figures, (*OVERLAP, *options.encoders)))
    print(f"\nFigures: {figures.path}")
    return figures.runs


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=12_000, help="to train on (default: 12000)")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(DEFAULT))
    parser.add_argument(
        "--vectors", choices=["minilm", "none"], default="minilm", help="word vectors (default: minilm)"
    )
    parser.add_argument("--hidden", type=int, default=100, help="features in each direction (default: 100)")
    parser.add_argument("--epochs", type=int, default=4, help="default: 4")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate (default: 0.002)")
    parser.add_argument("--dropout", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/biblosan_verses"))
    return parser.parse_args(argv)


Texts = dict[str, tuple[list[str], list[str], list[int]]]  # part -> first and second texts, labels


def word_vectors(texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    if options.vectors == "none":
        return {}
    words = count_words(text for first, second, _ in texts.values() for text in (*first, *second))
    return encoder_word_vectors(words, minilm_folder(), keep=options.output / "minilm-words.pt")


def overlap(name: str, texts: Texts) -> dict[str, Any]:
    """What the words of the two texts tell, whatever their order."""
    baseline = WordOverlapBaseline(learns=name != OVERLAP[0]).fit(texts["train"], texts["validation"])
    scores, labels = baseline.scores(*texts["test"][:2]), np.asarray(texts["test"][2])
    return {"accuracy": float(((scores > 0) == labels).mean()), "area": area(scores, labels)}


def neural(encoder: str, texts: Texts, vectors: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train one model and test it."""
    known = [text for part in (texts if vectors else ["train"]) for side in texts[part][:2] for text in side]
    tokenizer = longspan.BiBloSanTokenizer.train(known, vectors=vectors)
    rows = {part: encode(tokenizer, *sides) for part, sides in texts.items()}
    recipe = TextRecipe(options.epochs, rate=options.rate, schedule="group_by_length", seed=options.seed)
    set_seed(options.seed)
    model = build_model(
        encoder,
        longspan.BiBloSanForSentencePairClassification,
        block_length=suggest_block_length([len(row["input_ids"]) for row in rows["train"]], recipe.batch_size),
        vocab_size=len(tokenizer),
        embedding_size=len(next(iter(vectors.values()))) if vectors else options.hidden,
        num_fixed_embeddings=tokenizer.count_fixed(vectors),
        hidden_size=options.hidden,
        hidden_dropout_prob=options.dropout,
        num_labels=2,
    )
    if vectors:
        model.load_word_vectors(vectors, tokenizer.get_vocab())
    freeze_fixed_words(model)
    collate = TextPairCollator()
    trained = train_classifier(
        model, rows["train"], rows["validation"], collate, recipe, folder=options.output, label=encoder
    )
    if encoder == "Bi-BloSAN":
        save_pretrained(options.output / "model", model, tokenizer)
    logits, labels = logits_of(model, rows["test"], collate, 64), np.asarray(texts["test"][2])
    return {
        "accuracy": accuracy(logits, labels),
        "area": area((logits[:, 1] - logits[:, 0]).numpy(), labels),
        "parameters": count_parameters(model),
        "seconds_per_epoch": trained.seconds_per_epoch,
        "epoch": trained.best_epoch,
    }


def encode(tokenizer: Any, first: list[str], second: list[str], labels: list[int]) -> list[dict[str, Any]]:
    sides = (tokenizer(side)["input_ids"] for side in (first, second))
    return [{"input_ids": a, "pair_input_ids": b, "labels": label} for a, b, label in zip(*sides, labels, strict=True)]


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive pair scores higher than a negative one."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def summary(figures: Figures, names: tuple[str, ...]) -> str:
    rows = []
    for name in names:
        run = figures.runs[name]
        size = f"{run['parameters']:,}" if "parameters" in run else ""
        seconds = f"{run['seconds_per_epoch']:.0f}" if size else ""
        rows.append([name, size, seconds, f"{100 * run['accuracy']:.1f}", f"{run['area']:.3f}"])
    return table(["", "parameters", "s/epoch", "accuracy, %", "ROC area"], rows)


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
