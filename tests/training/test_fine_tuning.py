"""Parameter groups, progress, checkpoints, reports, memory."""

import json
import sys

import pytest
import torch
from torch import nn

from longspan import LongformerConfig, LongformerForQuestionAnswering
from longspan.training.checkpoints import claim_folder, last_checkpoint
from longspan.training.fine_tuning import Recipe, build_trainer, freeze_embeddings, parameter_groups
from longspan.training.memory import PeakMemory
from longspan.training.progress import progress
from longspan.training.report import bar, plot_by_position, save_pretrained, sentence_around, table, write_json


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        attention_window=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return LongformerForQuestionAnswering(config)


def test_parameters_are_frozen_or_in_one_group(model):
    freeze_embeddings(model.longformer)
    body, head = parameter_groups(model, model.longformer, Recipe(1, 1, body_rate=1e-4, head_rate=1e-3))
    assert {id(p) for p in head["params"]} == {id(p) for p in model.qa_outputs.parameters()}
    counts = {id(p): 0 for p in model.parameters()}
    for parameter in [*body["params"], *head["params"]]:
        counts[id(parameter)] += 1
    frozen = {
        id(model.longformer.embeddings.word_embeddings.weight),
        id(model.longformer.embeddings.position_embeddings.weight),
    }
    assert {key for key, count in counts.items() if count == 0} == frozen
    assert set(counts.values()) == {0, 1}
    assert (body["lr"], head["lr"]) == (1e-4, 1e-3)


def test_trainer_learns_in_order_and_reports_little(model, tmp_path, capsys):
    order = []

    class Windows(torch.utils.data.Dataset):
        def __len__(self):
            return 80

        def __getitem__(self, index):
            order.append(index)
            return {
                "input_ids": torch.tensor([0, 5, 2, 2, *range(10, 20), 2]),
                "start_positions": 6,
                "end_positions": 8,
            }

    def collate(items):
        return {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]}

    recipe = Recipe(batches=40, batch_size=2, body_rate=1e-2, head_rate=1e-1)
    trainer = build_trainer(model, model.longformer, Windows(), collate, recipe, folder=tmp_path, label="short run")
    trainer.train()
    assert order == list(range(80))
    loss = trainer.state.log_history[-2]["loss"]
    assert loss < 0.5 < trainer.state.log_history[0]["loss"]
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert max(rates) <= 1e-2 and rates[-1] < 1e-3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 4 and "short run" in shown.err and "40/40" in shown.err
    assert "loss 0." in shown.err
    assert list(tmp_path.iterdir()) == []


def test_progress_keeps_the_items(capsys):
    assert list(progress(range(10), "reading")) == list(range(10))
    assert capsys.readouterr().err.count("reading") == 4
    assert list(progress([], "nothing")) == []


def checkpoint(folder, step, state):
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if state is not None:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state)


def test_the_last_complete_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "nowhere") is None
    checkpoint(tmp_path, 10, json.dumps({"global_step": 10}))
    checkpoint(tmp_path, 9, json.dumps({"global_step": 9}))
    checkpoint(tmp_path, 20, '{"global_st')
    checkpoint(tmp_path, 30, None)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_run_is_neither_overwritten_nor_continued_with_other_options(tmp_path):
    folder = tmp_path / "run"
    assert claim_folder(folder, {"steps": 5}, resume=False) is None
    assert claim_folder(folder, {"steps": 6}, resume=True) is None  # nothing done yet: nothing to lose
    checkpoint(folder, 2, json.dumps({"global_step": 2}))
    with pytest.raises(ValueError, match="checkpoint-2: --resume"):
        claim_folder(folder, {"steps": 6}, resume=False)
    with pytest.raises(ValueError, match=r"steps = 6 \(now 7\)"):
        claim_folder(folder, {"steps": 7}, resume=True)
    assert claim_folder(folder, {"steps": 6}, resume=True) == folder / "checkpoint-2"


def test_table_and_bar():
    lines = table(["", "EM"], [["one", "0.5"], ["longer name", "1"]]).splitlines()
    assert lines[2:] == ["  one          0.5", "  longer name    1"]
    assert len(lines[0]) == len(lines[2])
    assert (bar(0, 4), bar(0.5, 4), bar(1, 4)) == ("░░░░", "██░░", "████")


def test_the_sentence_around_an_answer():
    text = "First one here. The law of New York governs it. Third."
    start = text.index("New")
    assert sentence_around(text, start, start + 8, 80) == "The law of [New York] governs it."
    long = "word " * 200 + "Norway" + " word" * 200
    shown = sentence_around(long, 1000, 1006, 60)
    assert "[Norway]" in shown and shown.startswith("...") and shown.endswith("...")
    assert 1 < len(shown.splitlines()) <= 5 and max(map(len, shown.splitlines())) <= 60


def test_files_are_written_whole(tmp_path, model):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}

    class Tokenizer:
        def save_pretrained(self, folder):
            raise KeyboardInterrupt

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("")
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tmp_path / "model", model, Tokenizer())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]


def test_plot(tmp_path):
    plot_by_position(tmp_path / "plot.png", ["a", "b"], {"one": [0.5, None], "two": [1.0, 0.0]}, "title")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak")
def test_peak_memory():
    with PeakMemory() as small:
        nn.Linear(2, 2)
    with PeakMemory() as large:
        torch.ones(100 << 18).sum()  # 100 MiB
    if small.mib is None or large.mib is None:
        pytest.skip("the kernel lets nobody reset the peak here")
    assert small.mib < 20 and 90 < large.mib < 130
