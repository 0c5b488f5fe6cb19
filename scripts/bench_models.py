"""Longformer as a whole against transformers' Longformer and a dense BERT of the same shape, in one run.

    python scripts/bench_models.py [--threads 2] [--rounds 3] [--length 4096] [--long 16384] [--layers 12]

All models get the same weights. First their outputs are compared (the dense model with windows as long as the text),
then they run in turn, round after round, and medians are printed. Speed is time of the peer over ours. Memory is the
growth of peak resident memory over the loaded model, each figure taken in a process of its own. One global token,
dropout 0, batch 1.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
import transformers

import longspan
from longspan.info import summary
from longspan.training.memory import PeakMemory

OURS, THEIRS, DENSE = "longspan", "transformers' Longformer", "dense BERT, sdpa"


def sizes(options, length: int) -> dict[str, Any]:
    return {
        "vocab_size": 50265,
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "intermediate_size": 4 * options.hidden,
        "max_position_embeddings": length + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def build(name: str, options, length: int, window: int | None = None) -> torch.nn.Module:
    """A model with the weights that seed 0 gives; they are the same tensors for all three, by name."""
    torch.manual_seed(0)
    values = sizes(options, length)
    window = window or options.window
    ours = longspan.LongformerModel(longspan.LongformerConfig(**values, attention_window=window), False)
    if name == OURS:
        return ours.eval()
    state = ours.state_dict()
    del ours
    if name == THEIRS:
        config = transformers.LongformerConfig(**values, attention_window=[window] * options.layers)
        model = transformers.LongformerModel(config, add_pooling_layer=False)
    else:
        values["attn_implementation"] = "sdpa"
        config = transformers.BertConfig(**values)
        model = transformers.BertModel(config, add_pooling_layer=False)
        state = {key: value for key, value in state.items() if "_global" not in key}
        # BERT counts positions from row 0, Longformer from the row after padding.
        positions = "embeddings.position_embeddings.weight"
        state[positions] = state[positions].roll(-2, 0)
    model.load_state_dict(state)
    return model.eval()


def inputs(name: str, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 50265, (1, length), generator=torch.Generator().manual_seed(1))
    if name == DENSE:
        return {"input_ids": ids}
    return {"input_ids": ids, "global_attention_mask": torch.eye(1, length, dtype=torch.long)}


def forward(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).last_hidden_state


def forward_backward(model, batch) -> None:
    model.train()
    model(**batch).last_hidden_state.pow(3).mean().backward()
    model.zero_grad(set_to_none=True)
    model.eval()


WORK = {"forward": forward, "forward and backward": forward_backward}


def check_agreement(options) -> None:
    length = min(options.length, 1024)
    models = {name: build(name, options, length) for name in (OURS, THEIRS)}
    expected, actual = (forward(models[name], inputs(name, length)) for name in (THEIRS, OURS))
    difference = (actual - expected).abs().max().item()
    grads = []
    for name, model in models.items():
        model(**inputs(name, length)).last_hidden_state.pow(3).mean().backward()
        grads.append(model.get_parameter("encoder.layer.0.attention.self.key.weight").grad)
    grad_difference = ((grads[0] - grads[1]).abs().max() / grads[1].abs().max()).item()
    wide, dense = build(OURS, options, length, window=2 * length), build(DENSE, options, length)
    ids = inputs(DENSE, length)
    dense_difference = (forward(wide, ids) - forward(dense, ids)).abs().max().item()
    print(
        f"agreement at {length} tokens: {difference:.1e} with transformers' Longformer (gradient, relative "
        f"{grad_difference:.1e}), {dense_difference:.1e} with dense BERT where windows cover the text\n"
    )
    if max(difference, dense_difference) > 1e-4 or grad_difference > 1e-3:
        sys.exit("the models do not agree: no figures")


def time_in_turn(names, work: str, dtype: torch.dtype, length: int, options) -> dict[str, float]:
    """Median seconds of each model."""
    models = {name: build(name, options, length).to(dtype) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(options.rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            WORK[work](model, inputs(name, length))
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
            gc.collect()
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_memory(name: str, work: str, length: int, options) -> float | None:
    """MiB that one pass of one model takes, in a fresh process."""
    task = json.dumps({"name": name, "work": work, "length": length})
    arguments = [f"--{key}={value}" for key, value in vars(options).items() if key != "memory_of"]
    command = [sys.executable, __file__, *arguments, f"--memory-of={task}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def print_memory(options) -> None:
    task = json.loads(options.memory_of)
    model = build(task["name"], options, task["length"])
    gc.collect()
    with PeakMemory() as memory:
        if task["work"] == "forward":
            forward(model, inputs(task["name"], task["length"]))
        else:  # gradients of the parameters count
            model.train()
            model(**inputs(task["name"], task["length"])).last_hidden_state.pow(3).mean().backward()
    print(json.dumps(memory.mib))


def report(title: str, seconds: dict[str, float], mib: dict[str, float | None]) -> None:
    print(title)
    for name, value in seconds.items():
        line = f"  {name:26}{value:9.3f} s   {seconds[OURS] / value:5.2f} of its time"
        if (memory := mib.get(name)) is not None and (own := mib.get(OURS)) is not None:
            line += f"{memory:9.0f} MiB   {own / memory:5.2f} of its memory"
        print(line)
    print()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--length", type=int, default=4096, help="tokens, forward and backward")
    parser.add_argument("--long", type=int, default=16384, help="tokens of the long forward pass; 0 leaves it out")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768, help="hidden size, heads of 64")
    parser.add_argument("--window", type=int, default=512, help="both sides together")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_memory(options)
        return
    print(summary(), f"{options.threads} threads", sep="\n", end="\n\n")
    check_agreement(options)
    everyone = (OURS, THEIRS, DENSE)
    cases = [
        ("forward", torch.float32, options.length, everyone),
        ("forward", torch.bfloat16, options.length, everyone),
        ("forward and backward", torch.float32, options.length, everyone),
    ]
    if options.long:
        cases.append(("forward", torch.float32, options.long, everyone))
    for work, dtype, length, names in cases:
        seconds = time_in_turn(names, work, dtype, length, options)
        mib = {}
        if dtype == torch.float32:
            mib = {name: measure_memory(name, work, length, options) for name in names}
        report(f"{work}, {str(dtype).removeprefix('torch.')}, {length} tokens", seconds, mib)


if __name__ == "__main__":
    main()
