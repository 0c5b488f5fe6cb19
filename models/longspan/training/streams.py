"""Training models that carry state over one long stream, with `transformers.Trainer`.

A model carries state when its forward takes ``mems``, what it keeps of the blocks that it has read, and returns them.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from longspan.data.streams import ContiguousRows, Ids, StreamBatches, check_ids, collate_rows
from longspan.training.adagrad import ClippedAdagrad
from longspan.training.checkpoints import last_checkpoint, load_finished
from longspan.training.parameters import parameter_groups
from longspan.training.spans import SpanCallback
from longspan.training.stream_evaluation import stream_nats
from longspan.training.stream_state import State, StreamPlace, load_states, map_tensors, save_states


def carries_state(model: nn.Module) -> bool:
    """Whether the model's backbone takes what it returned for the block before."""
    backbone = getattr(model, "base_model", model)  # heads are shared with architectures that carry none
    return "mems" in inspect.signature(backbone.forward).parameters


class StreamTrainer(Trainer):
    """Trains a causal model that carries state over one long stream of tokens.

    ```python
    trainer = StreamTrainer(
        model=longspan.AdaptiveSpanForCausalLM(config),
        args=TrainingArguments(
            "runs/mine", max_steps=10_000, learning_rate=1e-3, per_device_train_batch_size=16, save_steps=500
        ),
        train_dataset=ids,  # token ids of the whole text, a 1-D integer array
        eval_dataset=held_out_ids,
        block_size=512,
    )
    trainer.train(resume_from_checkpoint=True)  # goes on from the last checkpoint, or begins
    ```

    The stream is cut into as many rows as a step has texts: batch size times accumulation times processes. Each step
    reads the next block of every row, with the state that the model returned for the block before; no target is lost
    between blocks. An epoch is one pass over the rows. The next one begins without state, at an offset of its own.
    Of several processes (``torchrun``) each has some of the rows, and a step is what one process with all rows does.

    Checkpoints hold the state too: a run that is killed and resumed ends with the same weights, bit by bit. It may go
    on with another number of processes, as long as the number of rows stays.

    Evaluation reads the held-out stream with its state carried on, ``per_device_eval_batch_size`` rows at a time; every
    token but the first is predicted once. Spans that are learnt are clamped after each step and logged, see
    `SpanCallback`.

    Args:
        model: a causal model that carries state.
        args: of Trainer.
        train_dataset: token ids of one long text; several are joined first.
        eval_dataset: held-out ids, or a dictionary of such.
        block_size: tokens of a row in a step. Gradients reach no further back; the state does.
        unit: what a token is, for the name of the figure ``eval_bits_per_<unit>``.
        **kwargs: of Trainer.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Ids | None = None,
        eval_dataset: Ids | Mapping[str, Ids] | None = None,
        block_size: int,
        unit: str = "token",
        **kwargs: Any,
    ) -> None:
        if not carries_state(model):
            raise ValueError(
                f"model must carry state, but {type(model).__name__} takes no mems: train it on windows of the text, "
                "with transformers.Trainer"
            )
        for name, ids in {"train_dataset": train_dataset, **_by_name(eval_dataset, "eval_dataset")}.items():
            if ids is not None:
                check_ids(ids, name)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)  # pyright: ignore
        self.block_size, self.unit = block_size, unit
        if self.args.n_gpu > 1:
            raise ValueError(
                f"a process must have one device, got {self.args.n_gpu}: start as many with "
                f"torchrun --nproc_per_node {self.args.n_gpu}"
            )
        if isinstance(self.optimizer, ClippedAdagrad) and self.args.max_grad_norm:
            raise ValueError(
                "max_grad_norm must be 0 with ClippedAdagrad, which clips by itself, tensor by tensor; got "
                f"{self.args.max_grad_norm}"
            )
        watched = any(isinstance(callback, SpanCallback) for callback in self.callback_handler.callbacks)
        if hasattr(model, "clamp_spans") and not watched:
            self.add_callback(SpanCallback())
        self._states: list[State] = []  # one for each part of a block
        self._part = 0  # the part that comes next

    def get_train_dataloader(self) -> DataLoader:
        """This process's rows, block by block."""
        rows, batches = self._rows()
        return DataLoader(
            rows,
            batch_sampler=batches,
            collate_fn=collate_rows,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            prefetch_factor=self.args.dataloader_prefetch_factor,
            persistent_workers=self.args.dataloader_persistent_workers,
            generator=torch.Generator(),  # so that nothing is drawn from the generator that the model uses
        )

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """What ``weight_decay`` applies to: matrices of linear maps. Spans and embeddings of positions have none."""
        matrices, *_ = parameter_groups(model, 0.0)
        decaying = {id(parameter) for parameter in matrices["params"]}
        return [name for name, parameter in model.named_parameters() if id(parameter) in decaying]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("a stream is not predicted text by text: evaluate(ids) gives its loss, the model the rest")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; with ``resume_from_checkpoint=True`` from the last complete checkpoint, where there is one."""
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = last_checkpoint(Path(str(self.args.output_dir)))
        rows, batches = self._rows()
        self._part, self._states = 0, [None] * len(batches.first_rows)
        if checkpoint is not None:
            checkpoint = str(checkpoint)
            self._states = load_states(Path(checkpoint), self._place(rows), batches.first_rows, batches.batch_size)
        steps = self.args.max_steps if self.args.max_steps > 0 else math.ceil(self.args.num_train_epochs * rows.blocks)
        return load_finished(self, checkpoint, steps) or super().train(checkpoint, *args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the next block of some rows, which takes their state on."""
        state = None if inputs["begins"] else self._states[self._part]
        outputs = model(
            input_ids=inputs["input_ids"],
            next_ids=inputs["next_ids"],
            mems=map_tensors(lambda tensor: tensor.to(self.args.device), state),
            use_mems=True,
        )
        self._states[self._part] = map_tensors(torch.Tensor.detach, outputs.mems)
        self._part = (self._part + 1) % len(self._states)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(
        self,
        eval_dataset: Ids | Mapping[str, Ids] | None = None,  # pyright: ignore
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Mean loss in nats and bits over every token of a held-out stream but its first."""
        streams = self.eval_dataset if eval_dataset is None else eval_dataset
        if streams is None:
            raise ValueError("eval_dataset must be given, here or to StreamTrainer, got None")
        metrics = {}
        for prefix, ids in _by_name(streams, metric_key_prefix).items():
            began = time.perf_counter()
            nats, count = stream_nats(
                self.model,
                ids,
                rows=self.args.eval_batch_size * self.args.world_size,
                block_size=self.block_size,
                rank=self.args.process_index,
                ranks=self.args.world_size,
            )
            sums = torch.tensor([nats, count], dtype=torch.float64, device=self.args.device)
            nats, count = (float(value) for value in self.accelerator.reduce(sums, "sum"))
            metrics |= {
                f"{prefix}_loss": nats / count,
                f"{prefix}_bits_per_{self.unit}": nats / count / math.log(2),
                f"{prefix}_runtime": time.perf_counter() - began,
            }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in a checkpoint also the state, before what says that the checkpoint is complete."""
        super().save_model(output_dir, _internal_call)
        if _internal_call and self.is_in_train:
            assert output_dir is not None
            rows, batches = self._rows()
            rank, ranks = self.args.process_index, self.args.world_size
            save_states(Path(output_dir), self._place(rows), self._states, batches.first_rows, rank=rank, ranks=ranks)
            self.accelerator.wait_for_everyone()

    def _rows(self) -> tuple[ContiguousRows, StreamBatches]:
        """The stream as rows, and which of them this process reads."""
        if self.train_dataset is None:
            raise ValueError("train_dataset must be given to train, got None")
        batch_size, parts, ranks = (
            self.args.train_batch_size,
            self.args.gradient_accumulation_steps,
            self.args.world_size,
        )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        rows = ContiguousRows(self.train_dataset, batch_size * parts * ranks, self.block_size, seed=seed)  # pyright: ignore
        batches = StreamBatches(
            rows,
            batch_size,
            parts=parts,
            rank=self.args.process_index,
            ranks=ranks,
            current_pass=lambda: self.state.global_step // rows.blocks,
        )
        return rows, batches

    @staticmethod
    def _place(rows: ContiguousRows) -> StreamPlace:
        return StreamPlace(tokens=len(rows.ids), rows=rows.rows, block_size=rows.block_size, seed=rows.seed)


def _by_name(streams: Any, name: str) -> dict[str, Any]:
    """``{name: stream}``, or ``{name_key: stream}`` of a dictionary of streams."""
    if isinstance(streams, Mapping):
        return {f"{name}_{key}": stream for key, stream in streams.items()}
    return {name: streams}
