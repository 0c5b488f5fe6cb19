"""A tiny BERT and a small collection of agreements, in place of the packages."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from longspan.data import agreements

ROOT = Path(__file__).parents[2]
PLACES = ["Norway", "Japan", "England", "Texas", "Ohio", "Utah"]
FILLER = ["party", "notice", "software", "license", "term", "copy", "use", "right", "source", "work", "file", "author"]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *'.,?"', *letters, *(f"##{letter}" for letter in letters)]
    words = [
        "which",
        "law",
        "governs",
        "this",
        "agreement",
        "is",
        "governed",
        "by",
        "the",
        "laws",
        "of",
        "means",
        "what",
    ]
    words += ["does", "mean", "in", *FILLER, *(place.lower() for place in PLACES)]
    BertTokenizer(vocab={word: number for number, word in enumerate([*pieces, *words])}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces) + len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=512,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def agreement(number):
    draw = random.Random(number)
    filler = [draw.choice(FILLER) for _ in range(700)]
    law = f"This is governed by the laws of {PLACES[number % len(PLACES)]}."
    term = f'"Licensee{number % 5}" means the {filler[0]} that uses the {filler[1]}.'
    filler.insert(draw.choice([50, 300, 600]), law)
    filler.insert(draw.choice([20, 200, 650]), term)
    return " ".join(filler)


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """Forty agreements of forty families, with a category, a governing law and a definition each."""
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "package" / "data" / "licenses"
    folder.mkdir(parents=True)
    for number in range(40):
        name = f"{chr(97 + number // 26)}{chr(97 + number % 26)}paper"
        header = f"---\nkey: {name}\nname: Paper {number}\ncategory: Copyleft\n---\n\n"
        (folder / f"{name}-1.0.LICENSE").write_text(header + agreement(number), encoding="utf8")
    monkeypatch.setattr(agreements, "package_root", lambda package: tmp_path / "package")
    agreements.read_agreements.cache_clear()
    yield folder
    agreements.read_agreements.cache_clear()


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch, tiny_bert):
    """Loads a script by name; it finds the tiny BERT in place of MiniLM."""

    def load(name):
        module = load_script(name)
        monkeypatch.setattr(module, "minilm_folder", lambda: tiny_bert, raising=False)
        return module

    return load
