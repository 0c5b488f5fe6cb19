"""The duplication task: its texts, what counts, and that tables come out of a tiny run."""

import json
import re

import pytest
import torch


@pytest.fixture
def module(script):
    return script("reproduce_reformer_duplication")


def test_texts_are_0w0w_and_only_the_second_w_is_asked(module):
    setting = module.Setting(word=5, symbols=3, chunk=4, hidden=8, heads=2, steps=1, batch=2, rate=0.1)
    ids, labels = module.draw(setting, 50, torch.Generator().manual_seed(0))
    assert ids.shape == (50, 12) == (50, setting.length)
    assert (ids[:, [0, 6]] == 0).all() and torch.equal(ids[:, 1:6], ids[:, 7:])
    assert ids[:, 1:6].unique().tolist() == [1, 2, 3]
    assert (labels[:, :7] == -100).all() and torch.equal(labels[:, 7:], ids[:, 7:])


def test_full_attention_is_one_chunk_and_rounds_can_change_at_use(module):
    setting = module.Setting(word=15, symbols=3, chunk=4, hidden=8, heads=2, steps=1, batch=2, rate=0.1)
    torch.manual_seed(0)
    hashed = module.build(setting, 1, hash_seed=0).eval()
    ids, _ = module.draw(setting, 2, torch.Generator().manual_seed(0))

    def logits(hashes, rounds):
        used = module.build(setting, hashes, hash_seed=0).eval()
        used.load_state_dict(hashed.state_dict())
        return used(ids, num_hashes=rounds).logits

    whole = logits(0, None)
    distances = [float((logits(1, rounds) - whole).abs().mean()) for rounds in (1, 64)]
    assert 0 < distances[1] < distances[0]
    assert not torch.equal(logits(1, 1), logits(1, 2))


def test_a_small_run_learns_and_prints_both_tables(module, tmp_path, capsys):
    options = {"word": 7, "symbols": 3, "chunk": 4, "hidden": 32, "heads": 2, "steps": 150, "batch": 16, "rate": 1e-2}
    arguments = [f"--{name}={value}" for name, value in options.items()]
    figures = module.main([*arguments, "--texts", "32", "--output", str(tmp_path)])
    assert list(figures) == ["full", "LSH-4", "LSH-2", "LSH-1"]
    assert figures["full"]["full"] > 0.9  # guessing: 0.33
    assert figures["full"]["LSH-8"] > figures["full"]["LSH-1"]
    shown = capsys.readouterr().out
    for row, published in (("full", "52.5"), ("LSH-4", "91.9"), ("LSH-2", "86.8"), ("LSH-1", "77.9")):
        assert re.search(rf"^  {row} .*\| {published}$", shown, re.MULTILINE), row
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["accuracy"] == figures and kept["setting"] == options
