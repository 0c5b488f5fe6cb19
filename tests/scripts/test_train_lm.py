"""The language-model recipe on a tiny Reformer and a text of its own: figures, the saved model, a killed run."""

import json
import math
import random
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

import longspan
from longspan.data.corpora import compressor_baselines, read_corpus
from longspan.training.bits_per_byte import bits_per_byte
from longspan.training.progress import ProgressCallback

TINY = [
    *("hidden_size=16", "attention_head_size=8", "num_attention_heads=2", "feed_forward_size=16"),
    *('attn_layers=["local","lsh"]', "local_attn_chunk_length=8", "lsh_attn_chunk_length=8"),
    *("axial_pos_shape=[8,8]", "axial_pos_embds_dim=[4,12]", "max_position_embeddings=64"),
    *("hidden_dropout_prob=0.1", "lsh_attention_probs_dropout_prob=0.1", "local_attention_probs_dropout_prob=0.1"),
]
OPTIONS = ["--window", "48", "--steps", "40", "--measure-every", "20", "--save-every", "10", "--rate", "1e-2"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    words = random.Random(0).choices(["long", "texts", "are", "read", "whole,", "byte", "by byte.\n"], k=1500)
    (tmp_path / "own.txt").write_text(" ".join(words))
    return tmp_path / "own.txt"


@pytest.fixture
def train(script, text):
    module = script("train_lm")

    def run(folder, *more, shape=("--set", *TINY)):
        return module.main(["--text", str(text), *OPTIONS, "--output", str(folder), *more, *shape])

    return run


def test_trains_and_reports(train, text, tmp_path, capsys):
    figures = train(tmp_path / "run")
    shown = capsys.readouterr().out
    corpus = read_corpus(text)
    bits = figures["bits per byte"]
    assert {name: bits[name] for name in list(bits)[:-1]} == compressor_baselines(corpus.test, before=corpus.train)
    ours = bits["this model, 48 bytes at a time"]
    assert re.search(rf"this model, 48 bytes at a time +{ours:.3f}", shown)
    assert f"{len(corpus.test)} bytes" in shown and "after     20 steps" in shown
    assert ours < 6 and list(figures["curve"]["training"]) == [10, 20, 30, 40]
    assert list(figures["curve"]["validation"]) == [20, 40]
    assert json.loads((tmp_path / "run" / "figures.json").read_text())["bits per byte"] == bits

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert type(model) is longspan.ReformerModelWithLMHead and model.config.lsh_semantics == "chunked"
    again = bits_per_byte(model, corpus.test, offset=2, size=48)
    assert again == pytest.approx(ours, rel=0.02)  # the recipe may have measured in bf16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    ids = tokenizer("long texts", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [[byte + 2 for byte in b"long texts"]]
    assert tokenizer.model_max_length == 64
    with torch.no_grad():
        surprise = model(ids, labels=ids).loss
    assert float(surprise) < math.log(258)  # what it was trained on is likelier than noise


def test_a_killed_run_goes_on_as_if_nothing_had_happened(train, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole")
    step = ProgressCallback.on_step_end

    def killed(self, args, state, control, **more):
        step(self, args, state, control, **more)
        if state.global_step == 25:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed")
    with pytest.raises(SystemExit, match="checkpoint-20: --resume"):
        train(tmp_path / "killed")
    with pytest.raises(SystemExit, match="resume it with the same"):
        train(tmp_path / "killed", "--resume", "--rate", "1e-3")
    with pytest.raises(SystemExit, match="config"):
        train(tmp_path / "killed", "--resume", shape=("--set", *TINY, "num_hashes=3"))
    resumed = train(tmp_path / "killed", "--resume")
    assert resumed == whole  # the curve, too
    expected, found = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed"))
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name


def test_any_configuration_file(train, tmp_path, capsys):
    shape = GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=48)
    shape.to_json_file(tmp_path / "config.json")
    figures = train(tmp_path / "run", "--steps", "10", shape=("--config", str(tmp_path / "config.json")))
    assert "GPT2LMHeadModel" in capsys.readouterr().out and list(figures["curve"]["training"]) == [10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "hidden_sise=8"], "did you mean 'hidden_size'"),
        (["--set", "hidden_size"], "FIELD=VALUE"),
        (["--set", "vocab_size=320"], "vocab_size must be 256"),
        (["--window", "100000"], "must not exceed the 2048 positions"),
        (["--set", "axial_pos_shape=[1024,64]", "--window", "50000"], "from 2 to"),
        (["--context", "48"], r"in \[1, 48\), got 48"),
        (["--config", "nowhere.json"], "nowhere.json"),
        (["--save-every", "15"], "multiple of 10"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(train, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message):
        train(tmp_path / "run", *arguments, shape=())


def test_the_published_shape_and_recipe(script):
    module = script("train_lm")
    options = module.parse(["--full", "--steps", "7"])
    config = module.configuration(options)
    assert (options.steps, options.window, options.schedule) == (7, 65536, "inverse_sqrt")
    assert config.max_tokens == options.window and config.lsh_semantics == "original"
    assert (config.hidden_size, len(config.attn_layers), config.vocab_size) == (1024, 12, 258)
    assert module.byte_offset(config.vocab_size) == 2
    small = module.configuration(module.parse([]))
    assert small.max_tokens >= module.parse([]).window and small.is_decoder
