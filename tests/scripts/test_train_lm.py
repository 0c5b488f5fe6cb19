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
from longspan.training.stream_evaluation import stream_bits_per_byte

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


TINY_SPANS = [
    *("hidden_size=16", "num_attention_heads=2", "num_hidden_layers=2", "intermediate_size=16"),
    *("max_span=64", "span_ramp=8", "attention_dropout=0.1", "relu_dropout=0.1"),
]
STREAM = ["--architecture", "adaptive_span", "--batch-size", "4", "--held-out-rows", "2", "--warmup", "20"]


def test_a_model_with_state_reads_a_stream_and_a_killed_run_goes_on(train, text, tmp_path, monkeypatch, capsys):
    shape = (*STREAM, "--set", *TINY_SPANS)
    whole = train(tmp_path / "whole", shape=shape)
    shown = capsys.readouterr().out
    assert "rows of a stream" in shown and "Bytes that each head reaches, of 64" in shown
    assert whole["spans"].keys() == {10, 20, 30, 40} and len(whole["spans"][40]) == 2
    assert (tmp_path / "whole" / "spans.png").stat().st_size > 1000
    ours = whole["bits per byte"]["this model, 2 rows with state"]
    assert ours < 8 and whole["curve"]["validation"][40] < whole["curve"]["validation"][20]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    corpus = read_corpus(text)
    again = stream_bits_per_byte(model, corpus.test, offset=2, size=48, rows=2)
    assert again == pytest.approx(ours, rel=0.02)

    step = ProgressCallback.on_step_end

    def killed(self, args, state, control, **more):
        step(self, args, state, control, **more)
        if state.global_step == 25:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", shape=shape)
    for _ in range(2):  # the second time there is nothing left to do
        resumed = train(tmp_path / "killed", "--resume", shape=shape)
        assert resumed == whole
        expected, found = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed"))
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


def test_recipes_of_a_model_with_state(script):
    module = script("train_lm")
    options = module.parse(["--architecture", "adaptive_span", "--full", "--rate", "0.05"])
    config = module.configuration(options)
    recipe = module.recipe(options)
    assert (config.max_span, config.num_hidden_layers, config.vocab_size) == (8192, 12, 258)
    assert (recipe.optimizer, recipe.rate, recipe.clip, recipe.warmup) == ("adagrad", 0.05, 0.03, 32_000)
    small = module.parse(["--architecture", "adaptive_span"])
    assert module.configuration(small).max_span == 1024 and module.recipe(small).batch_size == 8
    by_file = module.parse(["--config", str(module.ROOT / "configs" / "adaptive_span" / "enwik8.json")])
    assert by_file.window == small.window
