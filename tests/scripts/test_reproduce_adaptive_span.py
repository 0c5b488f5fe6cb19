"""The recipe of spans, tiny: figures and pictures of both parts, and what spans are counted by."""

import json

import numpy as np
import pytest
import torch

from longspan.data.corpora import split_by_position

TEXT = b"Some words are here in a row and the others follow on quietly. But 12 of them, not. " * 60
OPTIONS = ["--maxima", "32", "64", "--dynamic-span", "32", "--steps", "10", "--block", "16", "--rows", "2"]
SMALL = ["--layers", "1", "--hidden", "16", "--test-bytes", "300", "--sentence", "to be drawn"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_figures_and_pictures(script, tmp_path, monkeypatch, capsys):
    module = script("reproduce_adaptive_span")
    monkeypatch.setattr(module, "load_corpus", lambda name: split_by_position(name, TEXT * 3))
    run = lambda: module.main([*OPTIONS, *SMALL, "--output", str(tmp_path)])  # noqa: E731
    figures = run()
    shown = capsys.readouterr().out
    assert figures["maxima"].keys() == {"32", "64"} and "mean by layer" in shown
    for one in figures["maxima"].values():
        assert 2 < one["bits per byte"] < 9 and np.shape(one["spans"]) == (1, 4)
        assert list(one["mean span by step"]) == [10] and one["seconds per step"] > 0
    dynamic = figures["dynamic"]
    assert dynamic["sentence"] == "to be drawn" and len(dynamic["spans"]) == 11
    assert 0 < dynamic["mean"] < 32 and dynamic["by place"]["letter 1 of a word"][0] > 20
    assert {path.name for path in tmp_path.glob("*.png")} == {"spans_32.png", "spans_64.png", "dynamic_span.png"}
    again = run()  # nothing is trained again
    assert again["dynamic"] == dynamic
    assert [again["maxima"][key]["spans"] for key in ("32", "64")] == [
        one["spans"] for one in figures["maxima"].values()
    ]
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["dynamic"]["mean"] == dynamic["mean"]
    with pytest.raises(SystemExit, match="resume it with the same, or name another --output"):
        module.main([*OPTIONS, *SMALL, "--output", str(tmp_path), "--rate", "0.5"])


def test_places_in_words(script):
    module = script("reproduce_adaptive_span")
    text = np.frombuffer(b"ab c1d, longest", dtype=np.uint8)
    spans = np.arange(15.0)
    assert module.by_place(text, spans) == {
        "a blank": (2, 4.5),
        "letter 1 of a word": (4, (0 + 3 + 5 + 8) / 4),
        "letter 2 of a word": (2, (1 + 9) / 2),
        "letter 3 of a word": (1, 10.0),
        "letter 4 of a word": (1, 11.0),
        "letter 5 of a word": (1, 12.0),
        "letter 6 or later": (2, 13.5),
    }
