"""The stories recipe learns, tells errors, steps and a picture, and goes on where it was killed."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

SMALL = ["--hidden", "16", "--depth", "1", "--updates", "20", "--stories", "20", "--cases", "2", "--save-every", "10"]


def test_learns_and_reports(script, tmp_path, capsys):
    module = script("reproduce_stories")
    size = ["--hidden", "32", "--depth", "2", "--updates", "250", "--batch", "32", "--stories", "300"]
    arguments = [*size, "--rate", "5e-3", "--warmup", "20", "--tasks", "6", "12", "--cases", "40"]
    figures = module.main([*arguments, "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    (row,) = figures["rows"]
    assert row["model"] == "UT + ACT" and row["error"]["12"] < 75  # guessing: 86
    for task, name in ((6, "yes or no"), (12, "conjunction")):
        own, published = re.escape(f"{row['error'][str(task)]:.1f}"), module.PAPER[task][0]
        assert re.search(rf"^ +{task} {name} +\d\d\.\d +{own} +{published}$", shown, re.MULTILINE), name
    mean, spread, stories = row["steps"]["all sentences"]["1"]
    assert stories == 80 and 1 <= mean <= 4 and f"{mean:.2f} ± {spread:.2f}" in shown
    assert (tmp_path / "halting.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "figures.json").read_text())["setting"]["stories"] == 300


def test_all_tasks_have_a_mean_beside_the_papers(script, tmp_path, capsys):
    module = script("reproduce_stories")
    figures = module.main([*SMALL, "--models", "UT", "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    errors = figures["rows"][0]["error"]
    assert list(errors) == [str(task) for task in range(1, 21)]
    assert re.search(rf"mean +\d\d\.\d +{sum(errors.values()) / 20:.1f} +7.8$", shown, re.MULTILINE)
    assert re.search(r"mean, the paper +8.5$", shown, re.MULTILINE)
    assert "steps" not in figures["rows"][0] and "Picture" not in shown


def test_a_killed_run_goes_on(script, tmp_path, monkeypatch, capsys):
    module = script("reproduce_stories")
    arguments = [*SMALL, "--tasks", "1", "2", "3", "--output"]

    def weights(folder):
        return load_file(folder / "checkpoints/UT + ACT/checkpoint-20/model.safetensors")

    whole = module.main([*arguments, str(tmp_path / "whole")])

    class Killed(module.PonderWarmup):
        def on_step_begin(self, args, state, control, **kwargs):
            super().on_step_begin(args, state, control, **kwargs)
            if state.global_step == 14:
                raise KeyboardInterrupt

    again = [*arguments, str(tmp_path / "again")]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "PonderWarmup", Killed)
        module.main(again)
    with pytest.raises(SystemExit, match=r"reached checkpoint-10: --resume goes on"):
        module.main(again)
    with pytest.raises(SystemExit, match=r"began with loss_weight = 0.05 \(now 0.5\)"):
        module.main([*again, "--resume", "--loss-weight", "0.5"])
    resumed = module.main([*again, "--resume"])
    assert resumed["rows"][0]["error"] == whole["rows"][0]["error"]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "again")
    assert all(torch.equal(one[name], other[name]) for name in one)

    capsys.readouterr()
    picture = tmp_path / "drawn_again.png"
    module.main([*again, "--resume", "--picture", str(picture)])
    assert "from the earlier run" in capsys.readouterr().out and picture.exists()


def test_options(script, tmp_path):
    module = script("reproduce_stories")
    options = module.parse(["--full", "--output", str(tmp_path)])
    setting = module.chosen_setting(options, module.SCALED, module.PAPERS)
    assert (setting.hidden, setting.stories) == (128, 10_000) and options.tasks == list(range(1, 21))
    with pytest.raises(SystemExit):
        module.parse(["--tasks", "21"])
