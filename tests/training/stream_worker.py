"""A small model that carries state, and a training run of it as a program: to be killed, and to be run by torchrun."""

import argparse
import json
import os
import signal
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, TrainerCallback, TrainingArguments, set_seed
from transformers.modeling_outputs import ModelOutput

from longspan.training.adagrad import ClippedAdagrad, linear_warmup
from longspan.training.streams import StreamTrainer

MEMORY = 24
STREAM = np.frombuffer(b"the quick brown fox jumps over the lazy dog; " * 30, dtype=np.uint8)  # 1350 tokens


class ToyConfig(PreTrainedConfig):
    model_type = "toy_stream"
    dropout: float = 0.0


class ToyModel(PreTrainedModel):
    """One attention layer over what it has read, of which it keeps the newest rows, and a count of tokens."""

    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(128, 16)
        self.map = nn.Linear(16, 16)
        self.score = nn.Linear(16, 128)
        self.read = []  # what came in, for tests
        self.post_init()

    def forward(self, input_ids, next_ids=None, mems=None, use_mems=False):
        self.read.append((input_ids.clone(), None if mems is None else mems["count"].clone()))
        rows, tokens = input_ids.shape
        hidden = self.embed(input_ids)
        old = hidden.new_zeros(rows, MEMORY, 16) if mems is None else mems["layers"][0]
        keys = torch.cat([old, hidden], 1)
        scores = self.map(hidden) @ keys.transpose(1, 2) / 4
        allowed = torch.arange(keys.shape[1]) <= torch.arange(tokens)[:, None] + MEMORY
        weights = F.dropout(scores.masked_fill(~allowed, -torch.inf).softmax(-1), self.config.dropout, self.training)
        logits = self.score(F.gelu(hidden + weights @ keys))
        loss = None if next_ids is None else F.cross_entropy(logits.flatten(0, 1), next_ids.flatten())
        count = torch.full([rows], tokens) + (0 if mems is None else mems["count"])
        state = {"layers": (keys[:, -MEMORY:].detach(),), "count": count} if use_mems else None
        return ModelOutput(loss=loss, logits=logits, mems=state)


def build(dropout=0.0):
    set_seed(5)
    return ToyModel(ToyConfig(dropout=dropout))


class Kill(TrainerCallback):
    """Ends the process as a power cut would."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trainer(folder, *, dropout=0.0, batch_size=4, accumulate=1, steps=60, save_steps=25, adagrad=False, **more):
    """A run over three passes: rows of 1350 // 4 tokens, 20 blocks of 16 in each."""
    model = build(dropout)
    optimizer = ClippedAdagrad(model.parameters(), lr=0.05) if adagrad else torch.optim.AdamW(model.parameters(), 1e-2)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulate,
        save_steps=save_steps,
        save_strategy="steps" if save_steps else "no",
        logging_steps=5,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=5,
    )
    return StreamTrainer(
        model,
        arguments,
        train_dataset=STREAM,
        eval_dataset=STREAM[:501],
        block_size=16,
        optimizers=(optimizer, linear_warmup(optimizer, 5)),
        **more,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--adagrad", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    callbacks = [Kill(options.kill_at)] if options.kill_at else []
    run = trainer(
        options.folder,
        dropout=options.dropout,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        adagrad=options.adagrad,
        callbacks=callbacks,
    )
    run.train(resume_from_checkpoint=True)
    metrics = run.evaluate()
    assert run.model is not None
    if run.is_world_process_zero():
        torch.save(run.model.state_dict(), options.folder / "weights.pt")
        losses = [point["loss"] for point in run.state.log_history if "loss" in point]
        (options.folder / "result.json").write_text(json.dumps({"losses": losses, "eval": metrics}))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
