"""The Brown corpus: tags taken off, genres; the real texts where their package can be had."""

import contextlib

import pytest

from longspan.data import genres
from longspan.data.genres import load_genres, without_tags
from longspan.data.packages import PackageUnavailable


def test_words_without_tags():
    assert without_tags("\n\tThe/at and/or/cc jury/nn ./.\n\n1/2/cd //sym") == "The and/or jury . 1/2 /"


def test_texts_and_genres_by_name(monkeypatch):
    files = {
        "cats.txt": b"cb01 lore\nca02 news\n\n",
        "cb01": b"an/at odd/jj tale/nn",
        "ca02": b"A/at vote/nn",
        "X": b"no",
    }
    monkeypatch.setattr(genres, "open_archive", lambda package: contextlib.nullcontext())
    monkeypatch.setattr(genres, "read_files", lambda archive, folder: files)
    data = load_genres()
    assert data[:] == {"id": ["ca02", "cb01"], "text": ["A vote", "an odd tale"], "label": [1, 0]}
    assert data.features["label"].names == ["lore", "news"]


def test_the_real_texts():
    try:
        data = load_genres()
    except PackageUnavailable as missing:
        pytest.skip(str(missing))
    assert len(data) == 500 and data.features["label"].num_classes == 15
    lengths = [len(text.split()) for text in data["text"]]
    assert min(lengths) > 1900 and sum(lengths) == 1_161_192
    assert data[0]["text"].startswith("The Fulton County Grand Jury said Friday an investigation of Atlanta's")
