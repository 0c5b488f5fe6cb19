"""Language models on bytes: what evaluation counts, and that a killed run goes on as if nothing had happened."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, set_seed
from transformers.modeling_outputs import CausalLMOutput

from longspan.data.byte_windows import RandomWindows
from longspan.training.bits_per_byte import bits_per_byte, scored_windows
from longspan.training.checkpoints import last_checkpoint
from longspan.training.language_modeling import LanguageModelRecipe, build_trainer
from longspan.training.parameters import parameter_groups
from longspan.training.progress import ProgressCallback

TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 40, dtype=np.uint8)


def tiny():
    config = GPT2Config(vocab_size=258, n_embd=16, n_layer=1, n_head=2, n_positions=64)  # dropout 0.1 everywhere
    set_seed(0)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, 101])
@pytest.mark.parametrize(("size", "context"), [(16, 1), (16, 8), (16, 15), (2, 1)])
def test_every_byte_is_scored_once(length, size, context):
    scored = []
    for start, first in scored_windows(length, size, context):
        assert 0 <= start < first < start + size
        assert start + size <= max(length, size)  # whole windows, unless the text is shorter than one
        assert first - start >= context or start == 0
        scored += range(first, min(start + size, length))
    assert scored == list(range(1, length))


def test_context_below_the_window():
    for wrong in (0, 16):
        with pytest.raises(ValueError, match=r"\[1, 16\)"):
            scored_windows(100, 16, wrong)


class Remembering(nn.Module):
    """Says what it likes about each byte by the bytes before it in the window: enough to tell wrong bookkeeping."""

    device = torch.device("cpu")

    def forward(self, input_ids, labels):
        seen = input_ids.cumsum(1) % 97
        logits = torch.sin(seen[..., None] * torch.arange(1, 259) * 0.37) * 3
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("length", [10, 64, 333])
def test_bits_per_byte_against_one_byte_at_a_time(length, batch_size):
    text, model, size, context = TEXT[:length], Remembering(), 32, 8
    bits = 8.0
    for position in range(1, length):  # byte by byte, from the start that the position's window has
        start = next(
            start for start, first in scored_windows(length, size, context) if first <= position < start + size
        )
        ids = torch.from_numpy(text[start : position + 1].astype("int64"))[None] + 2
        logits = model(ids, ids).logits[0, -2]
        bits -= float(F.log_softmax(logits, 0)[ids[0, -1]]) / math.log(2)
    found = bits_per_byte(model, text, offset=2, size=size, context=context, batch_size=batch_size)
    assert found == pytest.approx(bits / length, rel=1e-5)


def test_uniform_predictions_cost_all_bits():
    model = tiny()
    nn.init.zeros_(model.lm_head.weight)  # tied with the embeddings: logits are 0
    model.train()
    assert bits_per_byte(model, TEXT[:300], offset=2, size=64) == pytest.approx((8 + 299 * math.log2(258)) / 300)
    assert model.training
    with pytest.raises(ValueError, match="at least one byte"):
        bits_per_byte(model, TEXT[:0], offset=2, size=64)


def test_matrices_decay_and_nothing_else():
    model = nn.ModuleDict({"word": nn.Embedding(4, 3), "map": nn.Linear(3, 4), "norm": nn.LayerNorm(3)})
    decaying, others = parameter_groups(model, 0.1)
    assert [id(p) for p in decaying["params"]] == [id(model["map"].weight)] and decaying["weight_decay"] == 0.1
    assert len(others["params"]) == 4 and others["weight_decay"] == 0.0
    model["map"].weight = model["word"].weight  # tied: an embedding
    assert parameter_groups(model, 0.1)[0]["params"] == []


RECIPE = LanguageModelRecipe(steps=40, batch_size=2, rate=1e-2, warmup=8, seed=3)


def trainer(folder, **options):
    model = tiny()
    windows = RandomWindows(TEXT, 32, RECIPE.windows, offset=2, seed=RECIPE.seed)

    def measure(model):
        return bits_per_byte(model, TEXT[:200], offset=2, size=32)

    return build_trainer(model, windows, RECIPE, folder=folder, measure=measure, measure_every=20, **options)


def curve(trained):
    keep = ("step", "loss", "grad_norm", "learning_rate", "eval_bits_per_byte")
    return [{name: point[name] for name in keep if name in point} for point in trained.state.log_history[:-1]]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_learns_and_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, monkeypatch, capsys):
    whole = trainer(tmp_path / "whole")
    whole.train()
    points = curve(whole)
    assert [point["step"] for point in points] == [10, 20, 20, 30, 40, 40]
    measured = [point["eval_bits_per_byte"] for point in points if "eval_bits_per_byte" in point]
    assert measured[-1] < measured[0] < 8 and points[-2]["loss"] < 3.5 < points[0]["loss"]
    assert "bits per byte" in capsys.readouterr().err
    assert not list((tmp_path / "whole").glob("*"))

    step = ProgressCallback.on_step_end

    def killed(self, args, state, control, **kwargs):
        step(self, args, state, control, **kwargs)
        if state.global_step == 27:  # between two points of the curve
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "killed", save_every=10).train()
    checkpoint = last_checkpoint(tmp_path / "killed")
    assert checkpoint is not None and checkpoint.name == "checkpoint-20"
    torch.manual_seed(99)  # whatever happened in between
    resumed = trainer(tmp_path / "killed", save_every=10)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert curve(resumed) == points
    assert whole.model is not None and resumed.model is not None
    expected = whole.model.state_dict()
    finished = trainer(tmp_path / "killed", save_every=10)
    finished.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-40"))  # killed after its last step
    assert finished.model is not None and finished.state.log_history == resumed.state.log_history[:-1]
    for model in (resumed.model, finished.model):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, expected[name]), name


def test_warm_up_and_decay(tmp_path):
    for schedule, last in (("cosine", 0.0), ("inverse_sqrt", 1e-2 * math.sqrt(8 / 39))):
        windows = RandomWindows(TEXT, 8, 80, offset=2, seed=0)
        recipe = LanguageModelRecipe(steps=40, batch_size=2, rate=1e-2, warmup=8, schedule=schedule)
        trained = build_trainer(tiny(), windows, recipe, folder=tmp_path, measure=lambda model: 0.0)
        trained.train()
        rates = [point["learning_rate"] for point in trained.state.log_history if "learning_rate" in point]
        assert max(rates) == rates[0] and rates[-1] == pytest.approx(last, abs=1e-4), schedule


def test_checkpoints_fall_on_points_of_the_curve(tmp_path):
    with pytest.raises(ValueError, match="multiple of 10 steps, got 25"):
        trainer(tmp_path, save_every=25)
