"""The stories recipe learns, and tells errors, steps and a picture."""

import json
import re

import pytest


def test_learns_and_reports(script, tmp_path, capsys):
    module = script("reproduce_stories")
    size = ["--hidden", "32", "--depth", "2", "--updates", "250", "--batch", "32", "--stories", "300", "--dropout", "0"]
    arguments = [*size, "--rate", "5e-3", "--warmup", "20", "--tasks", "6", "12", "--cases", "40"]
    figures = module.main([*arguments, "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    assert list(figures["error"]) == ["UT + ACT"]
    assert figures["error"]["UT + ACT"][12] < 75  # guessing: 86
    for task, name in ((6, "yes or no"), (12, "conjunction")):
        own = " +".join(re.escape(f"{figures['error'][kind][task]:.1f}") for kind in figures["error"])
        assert re.search(rf"^ +{task} {name} +{own} +{module.PAPER[task][0]}$", shown, re.MULTILINE), name
    mean, spread = figures["steps"]["all tasks"][1]
    assert 1 <= mean <= 4 and f"{mean:.2f} ± {spread:.2f}" in shown
    assert (tmp_path / "halting.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "figures.json").read_text())["setting"]["stories"] == 300


def test_all_tasks_have_a_mean_beside_the_papers(script, tmp_path, capsys):
    module = script("reproduce_stories")
    arguments = ["--hidden", "16", "--depth", "1", "--updates", "2", "--stories", "2", "--cases", "2"]
    figures = module.main([*arguments, "--models", "UT", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    errors = figures["error"]["UT"]
    assert set(errors) == set(range(1, 21))
    assert re.search(rf"mean +{sum(errors.values()) / 20:.1f} +7.8$", shown, re.MULTILINE)
    assert re.search(r"mean, the paper +8.5$", shown, re.MULTILINE)
    assert "steps" not in figures


def test_options(script, tmp_path):
    module = script("reproduce_stories")
    options = module.parse(["--full", "--output", str(tmp_path)])
    setting = module.chosen_setting(options, module.SCALED, module.PAPERS)
    assert (setting.hidden, setting.stories) == (128, 10_000) and options.tasks == list(range(1, 21))
    with pytest.raises(SystemExit):
        module.parse(["--tasks", "21"])
