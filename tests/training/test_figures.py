"""Figures of runs are kept, one by one, and belong to their options."""

import json

import pytest

from longspan.training.figures import Figures


def test_a_killed_experiment_goes_on(tmp_path):
    done = []

    def work(name):
        def run():
            if name == "killed" and len(done) < 2:
                raise KeyboardInterrupt
            done.append(name)
            return {"accuracy": 0.5, "name": name}

        return run

    figures = Figures(tmp_path / "deep", {"epochs": 3, "rates": (1, 2)})
    assert figures.run("first", work("first")) == {"accuracy": 0.5, "name": "first"}
    with pytest.raises(KeyboardInterrupt):
        figures.run("killed", work("killed"))
    again = Figures(tmp_path / "deep", {"epochs": 3, "rates": (1, 2)})
    for name in ("first", "second", "killed"):
        again.run(name, work(name))
    assert done == ["first", "second", "killed"]
    assert list(json.loads(again.path.read_text())["runs"]) == ["first", "second", "killed"]


def test_other_options_do_not_mix(tmp_path):
    Figures(tmp_path, {"epochs": 3}).run("first", lambda: {"accuracy": 1.0})
    with pytest.raises(ValueError, match=r"figures of runs with epochs = 3: name another --output"):
        Figures(tmp_path, {"epochs": 4})
