"""The benchmark of generation, on a small model."""

import pytest


def test_it_compares_what_agrees(script, capsys):
    figures = script("bench_span_generation").main(["--quick", "--tokens", "300", "--rounds", "1"])
    shown = capsys.readouterr().out
    assert "times the time of a step" in shown
    ours, widest = figures["adaptive spans"], figures["all heads at the maximum"]
    assert ours["cache"] < widest["cache"] / 2
    assert all(one["step"] > 0 and one["error"] < 1e-3 for one in figures.values())


def test_it_refuses_what_does_not(script, monkeypatch):
    module = script("bench_span_generation")
    monkeypatch.setattr(module, "measure", lambda *_: {"full": 1.0, "step": 1.0, "cache": 1, "error": 0.1})
    with pytest.raises(SystemExit, match="nothing to compare"):
        module.main(["--quick", "--tokens", "300"])
