"""The agreement recipe learns that verbs agree, and its table has every number of attractors."""

import json
import re


def test_learns_and_reports(script, tmp_path, capsys):
    module = script("reproduce_agreement")
    arguments = ["--hidden", "32", "--depth", "2", "--updates", "250", "--rate", "5e-3", "--warmup", "20"]
    arguments += ["--sentences", "2000", "--cases", "100", "--models", "UT", "--output", str(tmp_path)]
    figures = module.main(arguments)
    shown = capsys.readouterr().out
    accuracy = figures["rows"][0]["accuracy"]
    assert len(accuracy) == 6 and accuracy[0] > 0.8  # guessing: 0.5
    for own, published in zip(accuracy, module.PAPER["UT"], strict=True):
        assert f"{own:.3f} | {published:.3f}" in shown
    assert re.search(r"^ +0 +1 +2 +3 +4 +5$", shown, re.MULTILINE)
    assert json.loads((tmp_path / "figures.json").read_text())["rows"][0]["accuracy"] == accuracy
