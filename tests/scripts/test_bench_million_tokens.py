"""The benchmark over very long texts, on short ones."""

import re

import numpy as np
import pytest

from longspan.data.corpora import split_by_position


@pytest.fixture
def bench(script, monkeypatch):
    module = script("bench_million_tokens")
    text = np.random.default_rng(0).integers(32, 127, 5000, dtype=np.uint8).tobytes()
    monkeypatch.setattr(module, "load_corpus", lambda name: split_by_position(name, text))
    # In this process: another one would fetch the real text.
    monkeypatch.setattr(module, "in_own_process", module.step)
    return module


OPTIONS = ["--lengths", "100", "1024", "--layers", "2", "--hidden", "32", "--heads", "1", "--threads", "1"]


def test_every_length_is_measured(bench, capsys):
    figures = bench.main(OPTIONS)
    shown = capsys.readouterr().out
    assert list(figures) == [100, 1024]
    assert re.search(r"^  2\^10 ", shown, re.MULTILINE) and "Largest peak" in shown
    for one in figures.values():
        assert one["forward"] > 0 and one["backward"] > 0 and one["peak"] > 2**20
        assert 7 < one["bits"] < 10


def test_more_memory_than_allowed_fails(bench, capsys):
    with pytest.raises(SystemExit) as caught:
        bench.main([*OPTIONS, "--limit", "0.001"])
    assert caught.value.code == 1 and "0.001 GiB allowed" in capsys.readouterr().out


def test_positions_reach_as_far_as_asked(bench):
    for length in (1, 100, 1 << 16, (1 << 16) + 1, 1 << 20):
        config = bench.configuration(bench.parse(OPTIONS), length)
        assert length <= config.max_tokens <= 4 * length
