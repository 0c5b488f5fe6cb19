"""The experiments of Bi-BloSAN on small made data: they run through, print every row, and go on where they were."""

import json
import random
import re

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from longspan.data.trec import parse_trec
from longspan.data.verse_pairs import FEATURES as PAIR_FEATURES

pytest.importorskip("sklearn")

KINDS = {
    "HUM:ind": "who is the author of this work",
    "NUM:date": "which term is this copy",
    "LOC:city": "what is the source",
}
ENCODERS = ("mean of words", "Bi-LSTM", "DiSAN", "Bi-BloSAN")


def questions(count):
    draw = random.Random(0)
    words = ["party", "notice", "software", "license", "right", "file", "use", "agreement"]
    lines = [
        f"{kind} {start} {draw.choice(words)} {draw.choice(words)} {number} ?"
        for number in range(count)
        for kind, start in KINDS.items()
    ]
    return parse_trec("\n".join(lines))


def pairs(count):
    draw = random.Random(0)
    rows = []
    for number in range(count):
        words = [draw.choice(["party", "notice", "software", "license", "right", "file", "use"]) for _ in range(5)]
        same = number % 2
        second = words if same else [draw.choice(["copy", "law", "term"]) for _ in words]
        rows.append(
            {
                "id": f"a{number}",
                "other": f"b{number}",
                "first": " ".join(words),
                "second": " ".join(second),
                "label": same,
            }
        )
    return Dataset.from_list(rows, features=PAIR_FEATURES)


def genres(count):
    features = Features(
        {"id": Value("string"), "text": Value("large_string"), "label": ClassLabel(names=["law", "work"])}
    )
    draw = random.Random(0)
    rows = []
    for number in range(count):
        words = ["party", "notice"] if number % 2 else ["source", "author"]
        text = " ".join(draw.choice([*words, "the", "of", "is"]) for _ in range(90))
        rows.append({"id": str(number), "text": text, "label": number % 2})
    return Dataset.from_list(rows, features=features)


def rows_of(shown, names):
    for name in names:
        assert re.search(rf"^  {re.escape(name)}  .*\d", shown, re.MULTILINE), name


def test_questions(script, monkeypatch, tmp_path, capsys):
    module = script("reproduce_biblosan_questions")
    monkeypatch.setattr(module, "load_trec", lambda: questions(80))
    arguments = ["--hidden", "8", "--epochs", "3", "--rate", "0.02", "--dropout", "0", "--output", str(tmp_path)]
    runs = module.main([*arguments, "--folds", "1"])
    rows_of(capsys.readouterr().out, ("TF-IDF, linear", *ENCODERS))
    assert set(runs) == {f"{name}, fold 0" for name in ("TF-IDF, linear", *ENCODERS)}
    assert runs["Bi-BloSAN, fold 0"]["accuracy"] > 0.8  # guessing: 0.33
    assert runs["Bi-BloSAN, fold 0"]["parameters"] > runs["mean of words, fold 0"]["parameters"]

    monkeypatch.setattr(module, "train_classifier", lambda *_, **__: pytest.fail("it is done already"))
    assert module.main([*arguments, "--folds", "1"]) == runs
    with pytest.raises(ValueError, match="epochs = 3"):
        module.main([*arguments, "--folds", "1", "--epochs", "4"])
    assert "±" not in capsys.readouterr().out

    draw = script("draw_biblosan")
    picture = tmp_path / "picture.png"
    model = draw.longspan.BiBloSanForSequenceClassification.from_pretrained(tmp_path / "coarse" / "model").eval()
    tokenizer = draw.longspan.BiBloSanTokenizer.from_pretrained(tmp_path / "coarse" / "model")
    found = draw.attention(model, tokenizer, "who is the author of this file ?")
    assert len(found["words"]) == 8 and found["answer"] in ("HUM", "NUM", "LOC")
    torch.testing.assert_close(found["pooled"].sum(0), torch.ones(16))
    monkeypatch.setattr(
        "sys.argv",
        ["draw", "--model", str(tmp_path / "coarse" / "model"), "--text", "who is it", "--output", str(picture)],
    )
    draw.main()
    assert picture.stat().st_size > 5000


def test_questions_with_vectors_from_a_file_and_with_none(script, monkeypatch, tmp_path):
    module = script("reproduce_biblosan_questions")
    monkeypatch.setattr(module, "load_trec", lambda: questions(12))
    (tmp_path / "vectors.txt").write_text("who 1 0 0 1\nwhich 0 1 0 1\nwhat 0 0 1 1\n")
    for vectors in (str(tmp_path / "vectors.txt"), "none"):
        output = tmp_path / ("none" if vectors == "none" else "file")
        options = ["--hidden", "6", "--epochs", "1", "--folds", "1", "--encoders", "Bi-BloSAN", "--vectors", vectors]
        module.main([*options, "--output", str(output)])
        config = json.loads((output / "coarse" / "model" / "config.json").read_text())
        assert (config["embedding_size"], config["num_fixed_embeddings"]) == ((6, 2) if vectors == "none" else (4, 5))


def test_verses(script, monkeypatch, tmp_path, capsys):
    module = script("reproduce_biblosan_verses")
    data = DatasetDict({"train": pairs(80), "validation": pairs(20), "test": pairs(40)})
    monkeypatch.setattr(module, "load_verse_pairs", lambda: data)
    runs = module.main(
        [
            "--hidden",
            "8",
            "--epochs",
            "3",
            "--rate",
            "0.02",
            "--pairs",
            "60",
            "--output",
            str(tmp_path),
            "--encoders",
            *ENCODERS,
        ]
    )
    shown = capsys.readouterr().out
    assert "60 pairs: train, 20 pairs: validation, 40 pairs: test" in shown
    rows_of(shown, (*module.OVERLAP, *ENCODERS))
    assert runs["TF-IDF, cosine"] == {"accuracy": 1.0, "area": 1.0}
    assert runs["Bi-BloSAN"]["area"] > 0.8


def test_documents(script, monkeypatch, tmp_path, capsys):
    module = script("reproduce_biblosan_documents")
    monkeypatch.setattr(module, "load_genres", lambda: genres(30))
    monkeypatch.setattr(module, "WINDOWS", (10, 60))
    arguments = ["--hidden", "16", "--epochs", "12", "--rate", "0.01", "--dropout", "0", "--batch-size", "4"]
    runs = module.main([*arguments, "--lengths", "20", "0", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    rows_of(shown, ("TF-IDF, linear", "mean of words", "Bi-BloSAN"))
    assert "first 20 words  whole texts" in shown
    assert runs["Bi-BloSAN, fold 0"]["accuracy"]["whole texts"] > 0.8  # guessing: 0.5
    assert runs["TF-IDF, linear, first 20 words, fold 0"]["accuracy"] > 0.8


def test_the_forms_that_are_compared_agree(script, monkeypatch):
    module = script("bench_biblosan")
    module.agree()
    broken = lambda *inputs, **options: module.stored_scores(*inputs, **options) + 1e-3  # noqa: E731
    monkeypatch.setattr(module, "multidim_attention", broken)
    with pytest.raises(AssertionError, match="not close"):
        module.agree()


@pytest.mark.parametrize("encoder", ["Bi-BloSAN", "Bi-LSTM", "DiSAN", "DiSAN, scores stored"])
def test_every_encoder_is_measured(encoder, script, monkeypatch):
    module = script("bench_biblosan")
    monkeypatch.setattr(
        module.multidim_self_attention, "multidim_attention", module.multidim_attention
    )  # put back after
    figures = module.measure(encoder, 30, 8)
    assert figures["seconds"] > 0 and "mib" in figures
