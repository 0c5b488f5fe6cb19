"""The longer recipe on a tiny model: several questions a pass, and a killed run that goes on."""

import json

import pytest
import torch
from safetensors.torch import load_file

from longspan.training.progress import ProgressCallback


@pytest.fixture
def train(script, collection):
    module = script("train_qa")
    options = ["--batches", "6", "--save-every", "2", "--groups", "3"]
    return lambda folder, *more: module.main([*options, "--output", str(folder), *more])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_trains_and_reports(train, tmp_path, capsys):
    figures = train(tmp_path / "run", "--parts", "validation", "test")
    shown = capsys.readouterr().out
    assert shown.count("this model, whole documents") == 4
    assert set(figures) == {
        f"{kind}, {part}" for kind in ("definitions", "governing_law") for part in ("validation", "test")
    }
    assert figures["definitions, test"]["rule: what follows the quoted term: exact match"] == 1.0  # by construction
    assert json.loads((tmp_path / "run" / "figures.json").read_text()) == figures


def test_a_killed_run_goes_on_as_if_nothing_had_happened(train, tmp_path, monkeypatch):
    train(tmp_path / "whole")
    step = ProgressCallback.on_step_end

    def killed(self, args, state, control, **more):
        step(self, args, state, control, **more)
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed")
    half = tmp_path / "killed" / "checkpoint-5"  # a kill in the middle of saving leaves this
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")

    with pytest.raises(SystemExit, match="checkpoint-4: --resume"):
        train(tmp_path / "killed")
    with pytest.raises(SystemExit, match=r"seed = 0 \(now 1\)"):
        train(tmp_path / "killed", "--resume", "--seed", "1")
    train(tmp_path / "killed", "--resume")
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    train(tmp_path / "killed", "--resume")  # a finished run is tested again, and stays


def test_cut_to_512(train, tmp_path, capsys):
    train(tmp_path / "run", "--cut")
    assert "this model, first 512 tokens" in capsys.readouterr().out
