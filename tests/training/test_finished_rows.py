"""Rows are kept one by one, and taken up again only when that is asked for and the setting is the same."""

import json

import pytest

from longspan.training.finished_rows import FinishedRows

WANTED = [{"task": task, "model": model} for task in ("copy", "reverse") for model in ("UT", "Transformer")]


class Measure:
    """Counts what is asked, and is killed before the row of a given number."""

    def __init__(self, killed_at=None):
        self.asked, self.killed_at = [], killed_at

    def __call__(self, task, model):
        if len(self.asked) == self.killed_at:
            raise KeyboardInterrupt
        self.asked.append((task, model))
        return {"value": len(task) + len(model)}


def complete(folder, measure, *, resume=False, setting=None):
    rows = FinishedRows(folder, setting or {"hidden": 8, "seed": 0}, resume=resume)
    return rows.complete(WANTED, measure, lambda row: f"value {row['value']}")


def test_rows_are_shown_and_kept_as_they_come(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, Measure(killed_at=3))
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["setting"] == {"hidden": 8, "seed": 0}
    assert [(row["task"], row["model"], row["value"]) for row in kept["rows"]] == [
        ("copy", "UT", 6),
        ("copy", "Transformer", 15),
        ("reverse", "UT", 9),
    ]
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()] == [
        ["copy", "UT", "value", "6,"],
        ["copy", "Transformer", "value", "15,"],
        ["reverse", "UT", "value", "9,"],
    ]


def test_a_killed_recipe_goes_on_with_what_is_missing(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, Measure(killed_at=3))
    rest = Measure()
    rows = complete(tmp_path, rest, resume=True)
    assert rest.asked == [("reverse", "Transformer")]
    assert [row["value"] for row in rows] == [6, 15, 9, 18]
    assert capsys.readouterr().out.count("from the earlier run") == 3
    assert len(json.loads((tmp_path / "figures.json").read_text())["rows"]) == 4


def test_without_resume_everything_is_done_again(tmp_path):
    complete(tmp_path, Measure())
    again = Measure()
    complete(tmp_path, again)
    assert len(again.asked) == 4
    assert len(json.loads((tmp_path / "figures.json").read_text())["rows"]) == 4


def test_rows_of_another_setting_are_refused(tmp_path):
    complete(tmp_path, Measure())
    with pytest.raises(ValueError, match=r"hidden = 8 \(now 16\): resume with the same, or name another --output"):
        complete(tmp_path, Measure(), resume=True, setting={"hidden": 16, "seed": 0})
    assert len(complete(tmp_path / "new", Measure(), resume=True)) == 4
