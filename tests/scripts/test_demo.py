"""`make demo` on a tiny model: every step runs, prints what it should and leaves what it says."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import longspan


@pytest.fixture
def demo(script, collection):
    return script("demo")


def run(demo, folder, *more):
    return demo.main(["--batches", "3", "--batch-size", "2", "--questions", "4", "--output", str(folder), *more])


def test_the_whole_job(demo, tmp_path, capsys):
    result = run(demo, tmp_path / "runs", "--seeds", "0", "1")
    shown = capsys.readouterr().out
    for method in (
        "most frequent answer",
        "rule:",
        "cut at 512, same steps",
        "slid over 512",
        "whole document in one pass",
    ):
        assert re.search(rf"{re.escape(method)}.* [01]\.\d{{3}}", shown), method
    assert shown.count("?\n    ") == 2 and "| " in shown  # two questions with the sentences around their answers
    assert f"mean of 2 seeds, whole document: exact match {result['exact_match']:.3f}" in shown
    assert "first 512" in shown and "beyond 4k" in shown

    figures = json.loads((tmp_path / "runs" / "figures.json").read_text())
    assert set(figures["seeds"]) == {"0", "1"}
    mean = sum(seed["exact_match"] for seed in figures["seeds"].values()) / 2
    assert result["exact_match"] == pytest.approx(mean)
    slid, whole = (figures["methods"][name] for name in list(figures["methods"])[-2:])
    assert slid["tokens"] > whole["tokens"] > 4 * 700
    assert (tmp_path / "runs" / "accuracy_by_position.png").read_bytes().startswith(b"\x89PNG")

    folder = tmp_path / "runs" / "model"
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    assert type(model) is longspan.LongformerForQuestionAnswering
    assert model.config.max_tokens == demo.LONGEST == AutoTokenizer.from_pretrained(folder).model_max_length
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["accuracy_by_position.png", "figures.json", "model"]


def test_a_seed_fixes_the_weights_and_a_second_run_replaces_the_first(demo, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weights = []
        for seed in ("3", "3", "4"):
            run(demo, tmp_path / "runs", "--seeds", seed)
            weights.append(load_file(tmp_path / "runs" / "model" / "model.safetensors"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["qa_outputs.weight"], weights[2]["qa_outputs.weight"])
    frozen = "longformer.embeddings.word_embeddings.weight"
    assert torch.equal(weights[0][frozen], weights[2][frozen])


def test_a_killed_run_does_not_disturb_the_next(demo, tmp_path, monkeypatch):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "short_encoder", killed)
        with pytest.raises(KeyboardInterrupt):
            run(demo, tmp_path / "runs")
    (tmp_path / "runs" / "model" / "model.safetensors").write_bytes(b"half")
    run(demo, tmp_path / "runs")
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "runs" / "model")
