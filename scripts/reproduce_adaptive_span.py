"""Two claims of the paper on attention spans, at a small scale: what heads learn to reach, and when.

    python scripts/reproduce_adaptive_span.py              # minutes on two cores
    python scripts/reproduce_adaptive_span.py --only maxima --steps 10000 --corpus mixed
    python scripts/reproduce_adaptive_span.py --only dynamic

1. One span per head (Sukhbaatar et al. 2019, figures 2 and 3): a byte model is trained with several maximum spans. Low
   layers should stay short and a few heads of upper layers grow long; the average span, and with it the time of a step,
   should hardly grow with the maximum, while a model of fixed spans pays for all of it.
2. A span per head and byte (figure 5): how far heads look at each character of a sentence, and by place in the word.

Run again with the same options, a killed run goes on from its last checkpoints.
"""

import argparse
import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes as packages

import numpy as np
import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from longspan import AdaptiveSpanConfig, AdaptiveSpanForCausalLM
from longspan.data.byte_windows import byte_ids
from longspan.data.corpora import CORPORA, Bytes, Corpus, load_corpus
from longspan.data.packages import PackageUnavailable
from longspan.data.streams import ContiguousRows, take
from longspan.training.byte_models import BYTE_MODELS
from longspan.training.checkpoints import claim_folder
from longspan.training.fine_tuning import has_fast_bf16
from longspan.training.language_modeling import LanguageModelRecipe, build_stream_trainer
from longspan.training.report import heading, table, write_json
from longspan.training.spans import plot_spans, plot_text_spans, span_history, spans_of
from longspan.training.stream_evaluation import stream_bits_per_byte

OFFSET = 2  # id of byte 0
SENTENCE = "The railway to the lighthouse was built in the nineteenth century, and overlooks the harbour."
TIMED_STEPS = 8


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    corpus = load_corpus(options.corpus)
    options.output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    try:
        if options.only != "dynamic":
            figures["maxima"] = maxima(corpus, options)
        if options.only != "maxima":
            figures["dynamic"] = dynamic(corpus, options)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    path = options.output / "figures.json"  # each part may have been run by itself
    write_json(path, (json.loads(path.read_text(encoding="utf8")) if path.exists() else {}) | figures)
    print(f"\nFigures and pictures: {options.output}/")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--only", choices=["maxima", "dynamic"], help="one of the two parts")
    parser.add_argument("--corpus", default="wikipedia", choices=CORPORA)
    parser.add_argument("--maxima", type=int, nargs="+", default=[256, 1024, 4096], help="maximum spans of part 1")
    parser.add_argument("--dynamic-span", type=int, default=256, help="maximum span of part 2")
    parser.add_argument("--sentence", default=SENTENCE, help="what spans are drawn over, after the held-out text")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each model")
    parser.add_argument("--block", type=int, default=256, help="bytes of a row in a step")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--span-rate", type=float, default=20.0, help="that of spans, in bytes a step")
    parser.add_argument("--span-loss", type=float, default=2e-6, help="weight of the mean span in the loss")
    parser.add_argument("--test-bytes", type=int, default=100_000, help="held-out bytes to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/adaptive_span"))
    return parser.parse_args(argv)


def maxima(corpus: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """Part 1."""
    heading(f"1  One span per head: {options.steps} steps with each maximum")
    figures, rows = {}, []
    for maximum in options.maxima:
        model, trainer = train(corpus, options, maximum, "static")
        spans = spans_of(model) or []
        plot_spans(options.output / f"spans_{maximum}.png", spans, maximum=maximum, title=f"at most {maximum} bytes")
        history = span_history(trainer.state.log_history)
        figures[str(maximum)] = {
            "bits per byte": bits(model, corpus.test, options),
            "spans": spans,
            "mean span by step": {step: float(np.mean(table)) for step, table in history.items()},
            "seconds per step": seconds_per_step(model, corpus, options),
            "seconds per step, fixed spans": seconds_per_step(build(options, maximum, "none"), corpus, options),
        }
        one = figures[str(maximum)]
        rows.append(
            [
                str(maximum),
                f"{one['bits per byte']:.3f}",
                f"{np.mean(spans):.0f}",
                f"{np.max(spans):.0f}",
                " ".join(f"{np.mean(layer):.0f}" for layer in spans),
                f"{1000 * one['seconds per step']:.0f}",
                f"{1000 * one['seconds per step, fixed spans']:.0f}",
            ]
        )
    print("  Spans in bytes, with the ramp of 32. Time of the processor for a step, all threads together:")
    header = ["maximum", "bits per byte", "mean span", "longest", "mean by layer", "ms", "ms, fixed spans"]
    print(table(header, rows))
    return figures


def dynamic(corpus: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """Part 2."""
    heading(f"2  A span per head and byte, at most {options.dynamic_span}")
    model, _ = train(corpus, options, options.dynamic_span, "dynamic")
    text = corpus.test[: options.test_bytes]
    sentence = np.frombuffer(f" {options.sentence}".encode("ascii", "replace"), dtype=np.uint8)
    spans, of_sentence = np.split(text_spans(model, np.concatenate([text, sentence]), options), [len(text)])
    places = by_place(text, spans)
    print(f"  {bits(model, text, options):.3f} bits per byte; mean span {spans.mean():.1f} over {len(text)} bytes")
    rows = [[place, str(number), f"{mean:.1f}"] for place, (number, mean) in places.items()]
    print(table(["the byte read is", "bytes", "mean span"], rows))
    picture = options.output / "dynamic_span.png"
    shown, heights = sentence[1:].tobytes().decode("ascii"), [float(span) for span in of_sentence[1:]]
    plot_text_spans(picture, shown, heights, title="mean span of all heads when the character has been read")
    print(f"  drawn: {picture}")
    return {"mean": float(spans.mean()), "by place": places, "sentence": shown, "spans": heights}


def build(options: argparse.Namespace, maximum: int, mode: str) -> AdaptiveSpanForCausalLM:
    set_seed(options.seed)
    shape = BYTE_MODELS["adaptive_span"].shape | {
        "hidden_size": options.hidden,
        "intermediate_size": 4 * options.hidden,
        "num_hidden_layers": options.layers,
        "max_span": maximum,
        "span_mode": mode,
        "span_loss_weight": options.span_loss,
    }
    return AdaptiveSpanForCausalLM(AdaptiveSpanConfig(**shape))


def train(corpus: Corpus, options: argparse.Namespace, maximum: int, mode: str) -> tuple[AdaptiveSpanForCausalLM, Any]:
    """A model and the trainer that trained it; from its last checkpoint, if there is one."""
    model = build(options, maximum, mode)
    recipe = LanguageModelRecipe(
        steps=options.steps,
        batch_size=options.rows,
        rate=options.rate,
        span_rate=options.span_rate / maximum if mode == "static" else options.rate,
        warmup=max(1, options.steps // 10),
        seed=options.seed,
    )
    folder = options.output / f"{mode}_{maximum}"
    claim_folder(folder, vars(recipe) | {"config": model.config.to_json_string(), "block": options.block}, resume=True)
    ids = byte_ids(corpus.train, OFFSET)
    trainer = build_stream_trainer(
        model, ids, ids, recipe, block_size=options.block, folder=folder, save_every=100, label=f"{mode}, {maximum}"
    )
    trainer.train(resume_from_checkpoint=True)
    return model, trainer


def bits(model: AdaptiveSpanForCausalLM, text: Bytes, options: argparse.Namespace) -> float:
    """Bits per byte with the state carried on."""
    autocast = torch.bfloat16 if has_fast_bf16() else None
    held_out = text[: options.test_bytes]
    return stream_bits_per_byte(
        model, held_out, offset=OFFSET, size=options.block, rows=options.rows, autocast=autocast
    )


def seconds_per_step(model: AdaptiveSpanForCausalLM, corpus: Corpus, options: argparse.Namespace) -> float:
    """Processor time of forward and backward pass, with full memories; the least of a few steps."""
    rows = ContiguousRows(byte_ids(corpus.train[: 1 << 22], OFFSET), options.rows, options.block)
    warm = math.ceil(model.config.max_span / options.block)  # blocks until memories are full
    mems, times = None, []
    model.train()
    for block in range(min(rows.blocks, warm + TIMED_STEPS)):
        items = [rows[block * options.rows + row] for row in range(options.rows)]
        ids, targets = (torch.stack([item[name] for item in items]) for name in ("input_ids", "next_ids"))
        learns = block >= warm
        began = time.process_time()
        with torch.set_grad_enabled(learns), torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
            out = model(ids, next_ids=targets, mems=mems, use_mems=True)
        mems = out.mems
        if learns:
            out.loss.backward()
            times.append(time.process_time() - began)
        model.zero_grad()
    return min(times)


@torch.no_grad()
def text_spans(model: AdaptiveSpanForCausalLM, text: Bytes, options: argparse.Namespace) -> np.ndarray:
    """Mean span of all heads at each byte, in bytes without the ramp ``[len(text)]``; the state is carried on."""
    ids, mems, spans = byte_ids(text, OFFSET), None, []
    model.eval()
    for start in range(0, len(ids), options.block):
        block = take(ids, start, start + options.block)[None]
        out = model.base_model(block, mems=mems, use_mems=True, output_spans=True)
        mems = out.mems
        spans.append(torch.stack([layer.float().mean((0, 1)) for layer in out.spans]).mean(0))
    return torch.cat(spans).numpy()


def by_place(text: Bytes, spans: np.ndarray) -> dict[str, tuple[int, float]]:
    """Number of bytes and mean span by what a byte is: a blank, or the n-th letter of a word."""
    letters = np.array([bytes([byte]).isalpha() for byte in range(256)])
    found: dict[str, list[float]] = defaultdict(list)
    place = 0
    for byte, span in zip(text, spans, strict=True):
        place = place + 1 if letters[byte] else 0
        if place or byte == ord(" "):
            name = f"letter {place} of a word" if place < 6 else "letter 6 or later"
            found[name if place else "a blank"].append(float(span))
    return {name: (len(values), float(np.mean(values))) for name, values in sorted(found.items())}


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
