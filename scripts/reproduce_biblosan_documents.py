"""Bi-BloSAN on long documents: what is the genre of a text of 2,000 words, and how much of it must one read?

    python scripts/reproduce_biblosan_documents.py                            # one of five folds: minutes
    python scripts/reproduce_biblosan_documents.py --folds 5 --encoders "mean of words" Bi-LSTM Bi-BloSAN

500 texts in 15 genres (the Brown corpus). Models train on windows of 64 to 1,024 words from anywhere in the texts, and
then read the first 128 words of unseen texts, the first 512, and all of them, in one pass. Beside Bi-BloSAN: a mean of
words, TF-IDF with a linear classifier that learns from the same cut, and if asked for DiSAN and a Bi-LSTM, which take
much longer. Word vectors are made from MiniLM, which reads each word by itself, and fixed. A killed run goes on where
it was.
"""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import set_seed
from transformers.utils import logging as transformers_logging

import longspan
from longspan.biblosan import suggest_block_length
from longspan.biblosan.tokenization_biblosan import count_words
from longspan.data import LongDocumentCollator
from longspan.data.folds import Fold, draw_folds
from longspan.data.genres import load_genres
from longspan.data.packages import PackageUnavailable, minilm_folder
from longspan.data.text_collators import RandomWindowCollator
from longspan.training.encoder_word_vectors import encoder_word_vectors
from longspan.training.figures import Figures
from longspan.training.report import heading, save_pretrained, table
from longspan.training.text_baselines import (
    ENCODERS,
    LinearBaseline,
    build_model,
    count_parameters,
    freeze_fixed_words,
)
from longspan.training.text_classification import TextRecipe, accuracy, logits_of, train_classifier

FOLDS = 5
LINEAR = "TF-IDF, linear"
WINDOWS = (64, 1024)  # words of a training window
DEFAULT = ("mean of words", "Bi-BloSAN")


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    names = ("hidden", "epochs", "rate", "dropout", "batch_size", "min_frequency", "seed")
    figures = Figures(options.output, {name: getattr(options, name) for name in names})

    data = load_genres()
    texts, labels = list(data["text"]), list(data["label"])
    folds = draw_folds(labels, FOLDS, seed=options.seed)[: options.folds]
    heading(f"{len(texts)} texts, {data.features['label'].num_classes} genres, {len(folds)} of {FOLDS} folds")
    words = [word for word, count in count_words(texts).items() if count >= options.min_frequency]
    vectors = encoder_word_vectors(words, minilm_folder(), keep=options.output / "minilm-words.pt")
    print(f"  {len(words)} words with vectors; {options.hidden} features in each direction, {options.epochs} epochs")
    for number, fold in enumerate(folds):
        for length in options.lengths:
            name = f"{LINEAR}, {name_of(length)}, fold {number}"
            figures.run(name, lambda length=length, fold=fold: linear(texts, labels, fold, length))
        for encoder in options.encoders:
            name = f"{encoder}, fold {number}"
            run = figures.run(name, lambda encoder=encoder, fold=fold: neural(encoder, data, fold, vectors, options))
            print(f"  {name}: {run['accuracy'][name_of(0)]:.3f}", flush=True)
    heading("Accuracy, %, on texts that were not trained on" + (", mean over folds" if len(folds) > 1 else ""))
    print(summary(figures, (LINEAR, *options.encoders), options.lengths, len(folds)))
    print(f"\nFigures: {figures.path}")
    return figures.runs


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--folds", type=int, default=1, help=f"folds to run, of {FOLDS} (default: 1)")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(DEFAULT))
    parser.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 512, 0], help="words; 0: all (default: 128 512 0)"
    )
    parser.add_argument("--hidden", type=int, default=64, help="features in each direction (default: 64)")
    parser.add_argument("--epochs", type=int, default=60, help="windows of every text (default: 60)")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--dropout", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--batch-size", type=int, default=8, help="default: 8")
    parser.add_argument("--min-frequency", type=int, default=2, help="rarer words are unknown (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/biblosan_documents"))
    return parser.parse_args(argv)


def name_of(length: int) -> str:
    return f"first {length} words" if length else "whole texts"


def linear(texts: list[str], labels: list[int], fold: Fold, length: int) -> dict[str, float]:
    """TF-IDF on texts that are cut to ``length`` words, in training too."""
    some = [" ".join(text.split()[: length or None]) for text in texts]

    def part(numbers: list[int]) -> tuple[list[str], list[int]]:
        return [some[number] for number in numbers], [labels[number] for number in numbers]

    test, wanted = part(fold.test)
    predicted = LinearBaseline().fit(*part(fold.train), *part(fold.validation)).predict(test)
    return {"accuracy": sum(a == b for a, b in zip(predicted, wanted, strict=True)) / len(test)}


def neural(encoder: str, data: Any, fold: Fold, vectors: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train one model on one fold; test it on beginnings and on whole texts."""
    tokenizer = longspan.BiBloSanTokenizer.train(data["text"], vectors=vectors, min_frequency=options.min_frequency)
    ids = tokenizer(list(data["text"]))["input_ids"]
    encoded = [{"input_ids": row, "labels": label} for row, label in zip(ids, data["label"], strict=True)]
    train, test = ([encoded[n] for n in part] for part in ([*fold.train, *fold.validation], fold.test))
    recipe = TextRecipe(options.epochs, batch_size=options.batch_size, rate=options.rate, seed=options.seed)
    set_seed(options.seed)
    model = build_model(
        encoder,
        longspan.BiBloSanForSequenceClassification,
        block_length=suggest_block_length([len(row["input_ids"]) for row in train], recipe.batch_size),
        vocab_size=len(tokenizer),
        embedding_size=len(next(iter(vectors.values()))),
        num_fixed_embeddings=tokenizer.count_fixed(vectors),
        hidden_size=options.hidden,
        hidden_act="relu",
        hidden_dropout_prob=options.dropout,
        id2label=dict(enumerate(data.features["label"].names)),
    )
    model.load_word_vectors(vectors, tokenizer.get_vocab())
    freeze_fixed_words(model)
    windows = RandomWindowCollator(*WINDOWS, seed=options.seed)
    trained = train_classifier(model, train, None, windows, recipe, folder=options.output, label=encoder)
    if encoder == "Bi-BloSAN":
        save_pretrained(options.output / "model", model, tokenizer)
    labels, scores = [row["labels"] for row in test], {}
    for length in options.lengths:
        cut = [{"input_ids": row["input_ids"][: length or None]} for row in test]
        logits = logits_of(model, cut, LongDocumentCollator(tokenizer), options.batch_size)
        scores[name_of(length)] = accuracy(logits, labels)
    return {
        "accuracy": scores,
        "parameters": count_parameters(model),
        "seconds_per_epoch": trained.seconds_per_epoch,
    }


def summary(figures: Figures, names: tuple[str, ...], lengths: list[int], folds: int) -> str:
    rows = []
    for name in names:
        size, seconds, cells = "", "", []
        for length in lengths:
            if name == LINEAR:
                runs = [figures.runs[f"{name}, {name_of(length)}, fold {number}"] for number in range(folds)]
                scores = [100 * run["accuracy"] for run in runs]
            else:
                runs = [figures.runs[f"{name}, fold {number}"] for number in range(folds)]
                scores = [100 * run["accuracy"][name_of(length)] for run in runs]
                size, seconds = f"{runs[0]['parameters']:,}", f"{runs[0]['seconds_per_epoch']:.1f}"
            spread = f" ± {statistics.stdev(scores):.1f}" if folds > 1 else ""
            cells.append(f"{statistics.mean(scores):.1f}{spread}")
        rows.append([name, size, seconds, *cells])
    return table(["", "parameters", "s/epoch", *map(name_of, lengths)], rows)


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
