"""Bi-BloSAN on one of its paper's tasks: what type of answer does a TREC question ask for?

    python scripts/reproduce_biblosan_questions.py                       # 6 types, two of five folds: minutes
    python scripts/reproduce_biblosan_questions.py --labels fine --folds 5
    python scripts/reproduce_biblosan_questions.py --vectors glove.6B.300d.txt

Bi-BloSAN, DiSAN, a Bi-LSTM and a mean of words, alike but for the encoder (word vectors, pooling, head, dropout and
training are the same), beside TF-IDF and a linear classifier. Word vectors are fixed, as the paper's: GloVe's where you
have a file of them, else made from MiniLM, which reads each word by itself; ``--vectors none`` learns them from the
questions alone. The epoch is chosen on a tenth of the training questions. A killed run goes on where it was.
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
from longspan.data import LongDocumentCollator, read_word_vectors
from longspan.data.folds import Fold, draw_folds
from longspan.data.packages import PackageUnavailable, minilm_folder
from longspan.data.trec import load_trec
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


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    decisive = {
        name: getattr(options, name) for name in ("labels", "vectors", "hidden", "epochs", "rate", "dropout", "seed")
    }
    figures = Figures(options.output / options.labels, decisive)

    data = load_trec()
    texts, labels = list(data["text"]), list(data[options.labels])
    folds = draw_folds(labels, FOLDS, seed=options.seed)[: options.folds]
    vectors = word_vectors(options.vectors, texts, options.output)
    heading(f"{len(texts)} questions, {data.features[options.labels].num_classes} types, {len(folds)} of {FOLDS} folds")
    print(f"  word vectors: {options.vectors}; {options.hidden} features in each direction, {options.epochs} epochs")
    for number, fold in enumerate(folds):
        figures.run(f"{LINEAR}, fold {number}", lambda fold=fold: linear(texts, labels, fold))
        for encoder in options.encoders:
            run = figures.run(
                f"{encoder}, fold {number}",
                lambda encoder=encoder, fold=fold: neural(encoder, data, fold, vectors, options),
            )
            print(f"  {encoder}, fold {number}: {run['accuracy']:.3f}", flush=True)
    heading("Accuracy on questions that were not trained on, mean and standard deviation over folds")
    print(summary(figures, (LINEAR, *options.encoders), len(folds)))
    print(f"\nFigures: {figures.path}")
    return figures.runs


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--labels", choices=["coarse", "fine"], default="coarse", help="6 or 50 types (default: 6)")
    parser.add_argument("--folds", type=int, default=2, help=f"folds to run, of {FOLDS} (default: 2)")
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--vectors", default="minilm", help="minilm, none, or a file as GloVe's (default: minilm)")
    parser.add_argument("--hidden", type=int, default=100, help="features in each direction (default: 100)")
    parser.add_argument("--epochs", type=int, default=6, help="default: 6")
    parser.add_argument("--rate", type=float, default=3e-3, help="highest learning rate (default: 0.003)")
    parser.add_argument("--dropout", type=float, default=0.15, help="default: 0.15; the authors have 0.35")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/biblosan_questions"))
    return parser.parse_args(argv)


def word_vectors(source: str, texts: list[str], folder: Path) -> dict[str, Any]:
    """Word -> vector, of the words of the texts; empty for "none"."""
    words = count_words(texts)
    if source == "none":
        return {}
    if source != "minilm":
        return read_word_vectors(source, words)
    return encoder_word_vectors(words, minilm_folder(), keep=folder / "minilm-words.pt")


def linear(texts: list[str], labels: list[int], fold: Fold) -> dict[str, float]:
    def part(numbers: list[int]) -> tuple[list[str], list[int]]:
        return [texts[number] for number in numbers], [labels[number] for number in numbers]

    test, wanted = part(fold.test)
    predicted = LinearBaseline().fit(*part(fold.train), *part(fold.validation)).predict(test)
    return {"accuracy": sum(a == b for a, b in zip(predicted, wanted, strict=True)) / len(test)}


def neural(encoder: str, data: Any, fold: Fold, vectors: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train one model on one fold and test it."""
    texts, labels = list(data["text"]), list(data[options.labels])
    known = texts if vectors else [texts[number] for number in fold.train]  # vectors are there for all words
    tokenizer = longspan.BiBloSanTokenizer.train(known, vectors=vectors)
    encoded = [
        {"input_ids": ids, "labels": label} for ids, label in zip(tokenizer(texts)["input_ids"], labels, strict=True)
    ]
    train, validation, test = ([encoded[n] for n in part] for part in (fold.train, fold.validation, fold.test))
    recipe = TextRecipe(options.epochs, rate=options.rate, seed=options.seed)
    set_seed(options.seed)
    model = build_model(
        encoder,
        longspan.BiBloSanForSequenceClassification,
        block_length=suggest_block_length([len(row["input_ids"]) for row in train], recipe.batch_size),
        vocab_size=len(tokenizer),
        embedding_size=len(next(iter(vectors.values()))) if vectors else options.hidden,
        num_fixed_embeddings=tokenizer.count_fixed(vectors),
        hidden_size=options.hidden,
        hidden_act="relu",
        hidden_dropout_prob=options.dropout,
        id2label=dict(enumerate(data.features[options.labels].names)),
    )
    if vectors:
        model.load_word_vectors(vectors, tokenizer.get_vocab())
    freeze_fixed_words(model)
    collate = LongDocumentCollator(tokenizer)
    trained = train_classifier(model, train, validation, collate, recipe, folder=options.output, label=encoder)
    if encoder == "Bi-BloSAN":
        save_pretrained(options.output / options.labels / "model", model, tokenizer)
    return {
        "accuracy": accuracy(logits_of(model, test, collate, 64), [row["labels"] for row in test]),
        "parameters": count_parameters(model),
        "seconds_per_epoch": trained.seconds_per_epoch,
        "epoch": trained.best_epoch,
    }


def summary(figures: Figures, names: tuple[str, ...], folds: int) -> str:
    rows = []
    for name in names:
        runs = [figures.runs[f"{name}, fold {number}"] for number in range(folds)]
        scores = [100 * run["accuracy"] for run in runs]
        spread = f" ± {statistics.stdev(scores):.1f}" if folds > 1 else ""
        size = f"{runs[0]['parameters']:,}" if "parameters" in runs[0] else ""
        seconds = f"{statistics.median(run['seconds_per_epoch'] for run in runs):.1f}" if size else ""
        rows.append([name, size, seconds, f"{statistics.mean(scores):.1f}{spread}"])
    return table(["", "parameters", "s/epoch", "accuracy, %"], rows)


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
