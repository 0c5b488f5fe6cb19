"""The benchmark of packed steps, on small models."""

import re

import pytest
import torch

SMALL = ["--hidden", "64", "--steps", "4", "--ponder", "2.5", "--rounds", "1", "--quick"]


def test_every_setting_is_compared_and_measured(script, capsys):
    reached = script("bench_ut").main(SMALL)
    shown = capsys.readouterr().out
    assert len(reached) == 3 and all(share > 0 for share in reached.values())
    for line in re.findall(r"ponder time (\S+) \+- \S+ of 4 steps", shown):
        assert 2.0 < float(line) < 3.0
    ideals = [float(x) for x in re.findall(r"ideal (\S+),", shown)]
    assert len(ideals) == 3 and all(0.3 < x < 0.8 for x in ideals)
    assert ideals[1] < 0.8 * ideals[0], "padding is nothing to be done"
    kept = re.findall(r"(?:dense|packed) +\S+ +(\d+)\n", shown)
    assert all(int(packed) < int(dense) for dense, packed in zip(kept[::2], kept[1::2], strict=True))


def test_nothing_is_timed_on_results_that_disagree(script, monkeypatch):
    bench = script("bench_ut")
    make_stacks = bench.make_stacks

    def broken(*args):
        stacks = make_stacks(*args)
        with torch.no_grad():
            stacks["dense"].block[0].ffn.fc2.bias += 0.1
        return stacks

    monkeypatch.setattr(bench, "make_stacks", broken)
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench.main(SMALL)
