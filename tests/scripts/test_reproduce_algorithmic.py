"""The algorithmic and the memorisation recipe: a small one learns, and tables stand beside the paper's."""

import json
import re

import pytest

SMALL = ["--hidden", "32", "--depth", "2", "--batch", "32", "--warmup", "20", "--cases", "40"]


@pytest.mark.parametrize("name", ["reproduce_algorithmic", "reproduce_memorisation"])
def test_every_model_and_task_runs_and_is_counted(script, name, tmp_path, capsys):
    module = script(name)
    tasks = ["copy", "addition"]
    size = ["--longest", "4", "--test", "8"] if name == "reproduce_algorithmic" else ["--digits", "2"]
    arguments = [*SMALL, "--updates", "10", "--tasks", *tasks, *size, "--output", str(tmp_path)]
    figures = module.main(arguments)
    shown = capsys.readouterr().out
    models = ["UT", "UT + ACT", "Transformer"]
    assert [(row["task"], row["model"]) for row in figures["rows"]] == [(t, model) for t in tasks for model in models]
    measured = ["to 4", "to 8"] if name == "reproduce_algorithmic" else ["accuracy"]
    assert all(0 <= value <= 1 for row in figures["rows"] for key in measured for value in row[key])
    assert all(row["parameters"] > 1000 and row["seconds"] >= 0 for row in figures["rows"])
    for kind, published in module.PAPER.items():
        for task in tasks:
            figures_of = "{:.2f} / {:.2f}".format(*published[task])
            line = (
                rf"^  {task}, {kind} .* {figures_of}$"
                if name == "reproduce_algorithmic"
                else rf"^  {kind} .*\| {figures_of}"
            )
            assert re.search(line, shown, re.MULTILINE), (kind, task)
    assert re.search(r"^  (copy, )?UT \+ ACT .* -$", shown, re.MULTILINE), "none was published"
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["setting"]["updates"] == 10 and kept["setting"]["hidden"] == 32

    module.main([*arguments, "--resume"])
    again = capsys.readouterr().out
    assert again.count("from the earlier run") == 6 and shown.splitlines()[-8:-3] == again.splitlines()[-8:-3]
    with pytest.raises(SystemExit, match=r"seed = 0 \(now 3\)"):
        module.main([*arguments, "--resume", "--seed", "3"])


def test_a_universal_transformer_learns_to_copy(script, tmp_path):
    module = script("reproduce_algorithmic")
    size = ["--updates", "300", "--rate", "5e-3", "--longest", "5", "--test", "10"]
    figures = module.main([*SMALL, *size, "--tasks", "copy", "--models", "UT", "--output", str(tmp_path)])
    short, long = (figures["rows"][0][key].characters for key in ("to 5", "to 10"))
    assert short > 0.9 and short > long > 0.3  # guessing: 0.1


def test_places_reach_to_the_end_of_the_longest_test(script, tmp_path, monkeypatch):
    module = script("reproduce_algorithmic")
    made = []
    monkeypatch.setattr(module, "train_on", lambda model, *rest, **more: made.append(model) or model.eval())
    module.main(
        [
            "--tasks",
            "copy",
            "--models",
            "UT",
            "--longest",
            "7",
            "--test",
            "30",
            "--cases",
            "3",
            "--output",
            str(tmp_path),
        ]
    )
    config = made[0].config
    last = config.max_position_offset - 1 + 7  # place of the end behind the longest text, counted from 0
    assert config.position_offset == "random" and last == 30 + 1 - 1 + 1


def test_options(script):
    module = script("reproduce_algorithmic")
    options = module.parse(["--full", "--updates", "5"])
    setting = module.chosen_setting(options, module.SCALED, module.PAPERS)
    assert (setting.longest, setting.test, setting.updates) == (40, 400, 5)
    assert module.chosen_setting(module.parse([]), module.SCALED, module.PAPERS) == module.SCALED
    with pytest.raises(SystemExit):
        module.parse(["--tasks", "sort"])
