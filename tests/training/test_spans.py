"""Spans in training: in range, in the log, drawn; and a whole run of the original's recipe over a stream."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import Trainer, TrainingArguments

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM
from longspan.adaptive_span.conversion import from_original
from longspan.data.streams import ContiguousRows
from longspan.training.adagrad import ClippedAdagrad, linear_warmup
from longspan.training.spans import SpanCallback, plot_spans, plot_text_spans, span_history, spans_of
from longspan.training.streams import StreamTrainer

REFERENCE = Path(__file__).parents[1] / "golden" / "adaptive_span" / "train_01.safetensors"


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(**fields):
    torch.manual_seed(0)
    shape = dict(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=8)
    return AdaptiveSpanForCausalLM(AdaptiveSpanConfig(**shape | dict(max_span=32, span_ramp=4) | fields))


def arguments(folder, **fields):
    options = dict(max_steps=6, logging_steps=2, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True)
    return TrainingArguments(str(folder), **options | fields)


def test_the_original_recipe_over_a_stream(tmp_path):
    """The reference run: losses, rates and spans of every step. Its rows are one block longer than a pass of ours."""
    with safe_open(REFERENCE, "pt") as data:
        given = {name: data.get_tensor(name) for name in data.keys()}  # noqa: SIM118
        settings = json.loads(data.metadata()["config"])
    config = AdaptiveSpanConfig(
        vocab_size=settings["vocab"],
        hidden_size=settings["d_model"],
        num_attention_heads=settings["heads"],
        num_hidden_layers=settings["layers"],
        intermediate_size=settings["d_ff"],
        max_span=settings["max_span"],
        span_ramp=settings["ramp"],
        span_loss_weight=settings["span_loss"],
        relu_dropout=0.0,
        attention_dropout=0.0,
    )
    model = AdaptiveSpanForCausalLM(config)
    weights = {name.removeprefix("weight/"): x for name, x in given.items() if name.startswith("weight/")}
    model.load_state_dict(from_original(weights, config))
    stream, steps = given["input/tokens"].flatten(), 11
    assert ContiguousRows(stream, 4, settings["block"]).blocks == steps
    optimizer = ClippedAdagrad(model.parameters(), lr=settings["lr"], clip=settings["grad_clip"])
    trainer = StreamTrainer(
        model,
        arguments(tmp_path, max_steps=steps, logging_steps=1, per_device_train_batch_size=4, max_grad_norm=0.0),
        train_dataset=stream,
        block_size=settings["block"],
        optimizers=(optimizer, linear_warmup(optimizer, settings["warmup"])),
    )
    trainer.train()
    points = [point for point in trainer.state.log_history if "loss" in point]
    for row, point in zip(settings["rows"][:steps], points, strict=True):
        assert point["loss"] == pytest.approx(row["nll"] + row["span_loss"], abs=1e-5)
        assert point["learning_rate"] == pytest.approx(row["lr"])
    for step, spans in span_history(trainer.state.log_history).items():
        expected = given[f"output/z_frac/step{step - 1}"] * settings["max_span"] + settings["ramp"]
        torch.testing.assert_close(torch.tensor(spans), expected, atol=0.01, rtol=0)


def test_any_trainer_clamps_logs_and_draws(tmp_path):
    model = tiny(span_loss_weight=5.0)  # spans want to be shorter than nothing

    class Watch(SpanCallback):
        def on_step_end(self, args, state, control, model: Any = None, **kwargs):
            assert all(torch.equal(p, p.clamp(0, 1)) for p in model.span_parameters())

        def on_log(self, args, state, control, logs=None, **kwargs):
            super().on_log(args, state, control, logs=logs, **kwargs)
            seen.append(logs)

    seen = []
    windows = [{"input_ids": torch.arange(12) % 7, "labels": torch.arange(12) % 7} for _ in range(50)]
    callback = Watch(picture=tmp_path / "pictures" / "spans.png")
    trainer = Trainer(model, arguments(tmp_path, learning_rate=0.5), train_dataset=windows, callbacks=[callback])
    trainer.train()
    history = span_history(trainer.state.log_history)
    assert list(history) == [2, 4, 6] and history[6] == spans_of(model)
    assert [logs["span_mean"] for logs in seen if "loss" in logs] == [
        pytest.approx(sum(map(sum, spans)) / 4) for spans in history.values()
    ]
    assert [max(map(max, spans)) for spans in history.values()] == [
        point["span_max"] for point in trainer.state.log_history if "loss" in point
    ]
    assert history[6] == [[4.0, 4.0], [4.0, 4.0]]  # the ramp alone
    json.dumps(trainer.state.log_history)
    assert Image.open(tmp_path / "pictures" / "spans.png").size[0] > 500
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["spans.png"]


def test_dynamic_spans_have_no_table(tmp_path):
    model = tiny(span_mode="dynamic")
    assert spans_of(model) is None
    stream = torch.arange(500) % 19
    trainer = StreamTrainer(model, arguments(tmp_path, max_steps=2), train_dataset=stream, block_size=4)
    trainer.train()
    assert not span_history(trainer.state.log_history) and trainer.state.global_step == 2


def test_pictures(tmp_path):
    plot_spans(tmp_path / "spans.png", [[32.0, 40.0], [33.0, 900.0]], maximum=1024, title="two layers")
    plot_text_spans(tmp_path / "text.png", "to be", [5.0, 4.0, 3.0, 7.0, 2.0])
    for name in ("spans", "text"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        assert pixels.min() < 100 and pixels.max() == 255
    with pytest.raises(ValueError, match="got 5 characters and 1 spans"):
        plot_text_spans(tmp_path / "text.png", "to be", [1.0])
