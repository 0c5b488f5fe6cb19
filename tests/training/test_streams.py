"""Training over a stream: what the model reads, and that kills, accumulation and processes change nothing."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments

from longspan.data.streams import ContiguousRows, take
from longspan.training.adagrad import ClippedAdagrad, linear_warmup
from longspan.training.checkpoints import last_checkpoint
from longspan.training.streams import StreamTrainer

WORKER = Path(__file__).with_name("stream_worker.py")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def worker(stream_worker):
    return stream_worker


def losses(trained):
    return [point["loss"] for point in trained.state.log_history if "loss" in point]


def assert_same(model, weights, **tolerance):
    for name, tensor in model.state_dict().items():
        if tolerance:
            torch.testing.assert_close(
                tensor, weights[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance
            )
        else:
            assert torch.equal(tensor, weights[name]), name


def test_reads_the_stream_in_order_with_its_state(worker, tmp_path):
    trained = worker.trainer(tmp_path, steps=45, save_steps=None)
    trained.train()
    data = ContiguousRows(worker.STREAM, 4, 16, seed=5)
    assert data.blocks == 20 and len(trained.model.read) == 45
    for step, (ids, count) in enumerate(trained.model.read):
        number, block = divmod(step, 20)
        starts = [row * data.length + data.offset(number) + block * 16 for row in range(4)]
        assert torch.equal(ids, torch.stack([take(worker.STREAM, start, start + 16) for start in starts]))
        assert count is None if block == 0 else count.tolist() == [16 * block] * 4
    assert trained.state.epoch == 45 / 20


def test_is_a_plain_loop(worker, tmp_path):
    trained = worker.trainer(tmp_path, steps=30, save_steps=None, adagrad=True)
    trained.train()
    model = worker.build()
    optimizer = ClippedAdagrad(model.parameters(), lr=0.05)
    schedule = linear_warmup(optimizer, 5)
    data, mems, points = ContiguousRows(worker.STREAM, 4, 16, seed=5), None, []
    for step in range(30):
        items = [data[4 * step + row] for row in range(4)]
        ids, targets = (torch.stack([item[name] for item in items]) for name in ("input_ids", "next_ids"))
        out = model(ids, targets, None if items[0]["begins"] else mems, use_mems=True)
        mems = out.mems
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        schedule.step()
        points.append(out.loss.item())
    assert_same(trained.model, model.state_dict())
    assert losses(trained) == pytest.approx([sum(points[i : i + 5]) / 5 for i in range(0, 30, 5)])


def test_accumulation_splits_the_rows(worker, tmp_path):
    whole, parts = (
        worker.trainer(tmp_path, steps=25, save_steps=None, batch_size=4 // n, accumulate=n) for n in (1, 4)
    )
    whole.train()
    parts.train()
    assert len(parts.model.read) == 100
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert_same(parts.model, whole.model.state_dict(), rtol=1e-4, atol=1e-5)


class Stop(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("save_steps", "stop", "read_before"),
    [(10, 12, 160), (15, 37, 160), (20, 47, None)],
    ids=["first pass", "second pass", "between passes"],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(worker, tmp_path, save_steps, stop, read_before):
    options = dict(dropout=0.2, save_steps=save_steps, batch_size=2, accumulate=2)
    whole = worker.trainer(tmp_path / "whole", **options)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        worker.trainer(tmp_path / "run", callbacks=[Stop(stop)], **options).train(resume_from_checkpoint=True)
    half_written = tmp_path / "run" / f"checkpoint-{stop}"
    half_written.mkdir()  # the newest, but no whole one
    resumed = worker.trainer(tmp_path / "run", **options)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    for _, count in resumed.model.read[:2]:
        assert count is None if read_before is None else count.tolist() == [read_before] * 2
    assert_same(resumed.model, whole.model.state_dict())
    assert losses(resumed) == losses(whole)


def test_a_run_that_had_ended_makes_no_further_step(worker, tmp_path):
    whole = worker.trainer(tmp_path, steps=10, save_steps=10)
    whole.train()
    again = worker.trainer(tmp_path, steps=10, save_steps=10)
    again.train(resume_from_checkpoint=True)
    assert not again.model.read and again.state.global_step == 10 and losses(again) == losses(whole)
    assert_same(again.model, whole.model.state_dict())
    further = worker.trainer(tmp_path, steps=12, save_steps=10)
    further.train(resume_from_checkpoint=True)
    assert len(further.model.read) == 2


@pytest.mark.slow
def test_after_kill_9(worker, tmp_path):
    command = [sys.executable, str(WORKER), str(tmp_path / "run"), "--dropout", "0.2", "--kill-at", "57"]
    killed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "checkpoint-50"
    resumed = worker.trainer(tmp_path / "run", dropout=0.2)
    resumed.train(resume_from_checkpoint=True)
    whole = worker.trainer(tmp_path / "whole", dropout=0.2)
    whole.train()
    assert len(resumed.model.read) == 10
    assert_same(resumed.model, whole.model.state_dict())
    assert losses(resumed) == losses(whole)


@pytest.mark.slow
def test_two_processes_do_what_one_does(worker, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, str(WORKER), str(tmp_path / "two"), "--batch-size", "1", "--accumulate", "2", "--adagrad"]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    two = torch.load(tmp_path / "two" / "weights.pt")
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    whole = worker.trainer(tmp_path / "one", adagrad=True)
    whole.train()
    assert_same(whole.model, two, rtol=1e-4, atol=1e-5)
    assert result["losses"] == pytest.approx(losses(whole), rel=1e-5)
    same_rows = worker.trainer(tmp_path / "one", batch_size=2)
    same_rows.model.load_state_dict(two)
    assert result["eval"]["eval_loss"] == pytest.approx(same_rows.evaluate()["eval_loss"], rel=1e-5)

    (tmp_path / "two" / "checkpoint-60" / "trainer_state.json").unlink()  # the two had come as far as step 50
    alone = worker.trainer(tmp_path / "two", adagrad=True)
    alone.train(resume_from_checkpoint=True)
    assert alone.model.read[0][1].tolist() == [160] * 4 and len(alone.model.read) == 10
    assert_same(alone.model, two, rtol=1e-4, atol=1e-5)


def test_evaluation_counts_every_token_once_with_what_came_before(worker, tmp_path):
    trainer = worker.trainer(tmp_path, batch_size=1, unit="byte")
    metrics = trainer.evaluate({"short": worker.STREAM[:30], "long": worker.STREAM[:777]})
    model = worker.build().eval()
    ids = take(worker.STREAM, 0, 30)[None]
    with torch.no_grad():
        first = model(ids[:, :16], ids[:, 1:17], use_mems=True)
        second = model(ids[:, 16:29], ids[:, 17:30], first.mems)
    assert metrics["eval_short_loss"] == pytest.approx(
        (16 * float(first.loss) + 13 * float(second.loss)) / 29, rel=1e-6
    )
    assert metrics["eval_long_bits_per_byte"] == pytest.approx(metrics["eval_long_loss"] / math.log(2))
    assert trainer.state.log_history[-1]["eval_long_loss"] == metrics["eval_long_loss"]
    with pytest.raises(ValueError, match="eval_dataset must be given"):
        StreamTrainer(worker.build(), trainer.args, block_size=4).evaluate()


def test_what_cannot_be_done_is_said_at_once(worker, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=2)
    stateless = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="GPT2LMHeadModel takes no mems"):
        StreamTrainer(stateless, arguments, train_dataset=worker.STREAM, block_size=4)
    with pytest.raises(ValueError, match="train_dataset must be the token ids"):
        StreamTrainer(worker.build(), arguments, train_dataset=[{"input_ids": [1]}], block_size=4)
    model = worker.build()
    optimizer = ClippedAdagrad(model.parameters())
    with pytest.raises(ValueError, match=r"max_grad_norm must be 0 .* got 1.0"):
        StreamTrainer(model, arguments, train_dataset=worker.STREAM, block_size=4, optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="train_dataset must be given"):
        StreamTrainer(model, arguments, block_size=4).train()
    with pytest.raises(ValueError, match="take fewer rows or shorter blocks"):
        StreamTrainer(model, arguments, train_dataset=worker.STREAM, block_size=400).train()


def test_a_state_is_not_carried_on_over_other_rows(worker, tmp_path):
    worker.trainer(tmp_path, steps=20).train()
    with pytest.raises(ValueError, match=r"rows = 4 \(now 2\)"):
        worker.trainer(tmp_path, batch_size=2).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-20" / "stream_state_0.pt").unlink()
    with pytest.raises(ValueError, match="written by StreamTrainer"):
        worker.trainer(tmp_path).train(resume_from_checkpoint=True)
