"""The translation recipe on made verses: it learns, reports, and a killed run goes on."""

import json
import random
import re

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from longspan.training.progress import ProgressCallback
from longspan.universal_transformer import UniversalTransformerForConditionalGeneration

OLD = ["thou", "hast", "unto", "spake", "king", "water"]
NEW = dict(zip(OLD, ["you", "have", "to", "spoke", "king", "water"], strict=True))
OPTIONS = ["--hidden", "32", "--depth", "1", "--batch", "16", "--vocabulary", "300", "--longest", "40", "--cases", "8"]
LEARNING = ["--updates", "300", "--save-every", "300", "--rate", "1e-2", "--dropout", "0", "--depth", "2"]
OPTIONS += ["--updates", "40", "--save-every", "10", "--rate", "5e-3", "--warmup", "20"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def module(script, monkeypatch):
    module = script("train_translation")
    draw = random.Random(0)

    def verses(count):
        texts = [draw.choices(OLD, k=draw.randint(2, 5)) for _ in range(count)]
        new = [" ".join(NEW[word] for word in words) + "." for words in texts]
        return Dataset.from_dict({"kjv": [" ".join(words) + "." for words in texts], "web": new, "id": ["x"] * count})

    made = DatasetDict({"train": verses(300), "validation": verses(20), "test": verses(20)})
    monkeypatch.setattr(module, "load_verses", lambda: made)
    return module


def test_learns_reports_and_saves(module, tmp_path, capsys):
    figures = module.main([*OPTIONS, *LEARNING, "--output", str(tmp_path)])
    shown = capsys.readouterr().out
    bleu = figures["BLEU"]
    assert bleu["this model"] > 50 > bleu["the source as it is"], "the words are learnt, not copied"
    assert re.search(rf"this model +{bleu['this model']:.1f}$", shown, re.MULTILINE)
    losses = list(figures["validation"].values())
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert json.loads((tmp_path / "figures.json").read_text())["BLEU"] == bleu

    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(model) is UniversalTransformerForConditionalGeneration
    source, reference = "thou hast water.", "you have water."
    ids = model.generate(**tokenizer([source], return_tensors="pt"), max_new_tokens=20, do_sample=False)
    assert module.corpus_bleu(tokenizer.batch_decode(ids, skip_special_tokens=True), [reference]) >= 0
    assert tokenizer.model_max_length == 40


def test_a_killed_run_goes_on_as_if_nothing_had_happened(module, tmp_path, monkeypatch):
    whole = module.main([*OPTIONS, "--output", str(tmp_path / "whole")])
    step = ProgressCallback.on_step_end

    def killed(self, args, state, control, **more):
        step(self, args, state, control, **more)
        if state.global_step == 25:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            module.main([*OPTIONS, "--output", str(tmp_path / "killed")])
    with pytest.raises(SystemExit, match="checkpoint-20: --resume"):
        module.main([*OPTIONS, "--output", str(tmp_path / "killed")])
    with pytest.raises(SystemExit, match="hidden = 32"):
        module.main([*OPTIONS, "--hidden", "16", "--output", str(tmp_path / "killed"), "--resume"])
    resumed = module.main([*OPTIONS, "--output", str(tmp_path / "killed"), "--resume"])
    assert resumed == whole, "loss curve, validation and BLEU"
    expected, found = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed"))
    for name in expected:
        assert torch.equal(expected[name], found[name]), name

    with monkeypatch.context() as patch:  # killed behind the last update, before the figures
        patch.setattr(
            ProgressCallback, "on_step_end", lambda *args, **more: pytest.fail("there is nothing left to learn")
        )
        assert module.main([*OPTIONS, "--output", str(tmp_path / "killed"), "--resume"]) == whole
    with pytest.raises(SystemExit):
        module.main([*OPTIONS, "--save-every", "25", "--output", str(tmp_path / "third")])


def test_long_verses_are_left_out(module):
    tokenizer = module.UniversalTransformerTokenizer.byte_level()
    rows = module.encode(module.load_verses(), tokenizer, 20)
    assert 0 < len(rows["train"]) < 300
    assert max(max(len(row["input_ids"]), len(row["labels"])) for row in rows["train"]) <= 20
    assert all(row["labels"][-1] == row["input_ids"][-1] == 1 for row in rows["train"])
