"""A byte-level language model on real text, beside what compressors make of the same bytes.

    python scripts/train_lm.py [--architecture adaptive_span] [--corpus wikipedia] [--output runs/train_lm] [--resume]
    python scripts/train_lm.py --text my.txt --config configs/reformer/enwik8.json --set num_hashes=2
    python scripts/train_lm.py --architecture adaptive_span --full    # the published enwik8 shape and recipe

Any causal architecture of the zoo, by its name or by a configuration file; by name it is a small one, for minutes on
two cores. A model that carries state reads the text as a stream, block by block, and keeps what it remembers; others
read windows from anywhere. A killed run goes on with ``--resume`` from its last checkpoint and ends as if nothing had
happened. ``torchrun --nproc_per_node 2 scripts/train_lm.py ...`` has two processes, each with its own windows.
"""

import argparse
import difflib
import json
import math
import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes as packages

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, set_seed
from transformers.utils import logging as transformers_logging

from longspan.data.byte_windows import RandomWindows, byte_ids, byte_offset
from longspan.data.corpora import CORPORA, Bytes, Corpus, compressor_baselines, load_corpus, read_corpus
from longspan.data.packages import PackageUnavailable
from longspan.registry import ARCHITECTURES
from longspan.training.bits_per_byte import bits_per_byte
from longspan.training.byte_models import BYTE_MODELS
from longspan.training.checkpoints import claim_folder
from longspan.training.fine_tuning import has_fast_bf16
from longspan.training.language_modeling import LOG_EVERY, LanguageModelRecipe, build_stream_trainer, build_trainer
from longspan.training.report import heading, save_pretrained, table, write_json
from longspan.training.spans import plot_spans, span_history, spans_of
from longspan.training.stream_evaluation import stream_bits_per_byte
from longspan.training.streams import carries_state

ROOT = Path(__file__).parents[1]
RECIPE = [field.name for field in fields(LanguageModelRecipe)]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    first_process = os.environ.get("RANK", "0") == "0"
    if not first_process:  # one of them is enough to read
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = configuration(options)
        offset = byte_offset(config.vocab_size)
        check(options, config)
        heading("1  Text")
        corpus = read_corpus(options.text) if options.text else load_corpus(options.corpus)
        set_seed(options.seed)
        model = AutoModelForCausalLM.from_config(config)
        trainer = build(model, corpus, options, offset)
        checkpoint = claim_folder(options.output, decisive(options, config), resume=options.resume)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"  {corpus.name}: {megabytes(corpus.train)} to learn from, {megabytes(corpus.validation)} to choose by,")
    print(f"  {megabytes(corpus.test)} to report on; split by position")

    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    read = recipe(options).windows * trainer.args.world_size * options.window
    heading(f"2  {type(model).__name__}, {millions:.1f} M parameters, {options.steps} steps")
    kind = "rows of a stream, blocks" if carries_state(model) else "windows"
    print(f"  {kind} of {options.window} bytes, {read / 1e6:.1f} MB in all:", end=" ")
    print(f"{read / len(corpus.train):.1f} times the text")
    figures: dict[str, Any] = {"curve": fit(trainer, checkpoint)}
    if first_process:
        folder = save_pretrained(options.output / "model", model, tokenizer_of(config))
        heading("3  Held-out text, every byte predicted once")
        figures["bits per byte"] = report(model, corpus, options, offset)
        spans = span_history(trainer.state.log_history)
        if spans:
            figures["spans"] = spans
            report_spans(model, options.output / "spans.png")
        write_json(options.output / "figures.json", figures)
        print(f"\nModel and figures: {folder.parent}/")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    text = parser.add_argument_group("text")
    text.add_argument("--corpus", default="wikipedia", choices=CORPORA, help="a text that comes as a package")
    text.add_argument("--text", type=Path, help="a file of your own instead, read byte for byte")
    shape = parser.add_argument_group("model")
    shape.add_argument(
        "--architecture", default="reformer", choices=sorted(BYTE_MODELS), help="a small one of this kind"
    )
    shape.add_argument("--config", type=Path, help="config.json of a byte model instead, of any causal architecture")
    shape.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="change the configuration's fields")
    how = parser.add_argument_group("training (defaults: those of the architecture)")
    how.add_argument("--full", action="store_true", help="the published enwik8 shape and recipe: a GPU and days")
    how.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    how.add_argument("--window", type=int, default=1024, help="bytes in a window; with state: in a block")
    how.add_argument("--batch-size", type=int, default=1, help="windows in a pass; with state: rows of the text")
    how.add_argument("--accumulate", type=int, default=1, help="passes in a step")
    how.add_argument("--optimizer", default="adamw", choices=["adamw", "adagrad"], help="adagrad clips each tensor")
    how.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    how.add_argument("--span-rate", type=float, help="that of learnt spans (default: the same)")
    how.add_argument("--clip", type=float, default=1.0, help="norm that gradients are clipped to")
    how.add_argument("--warmup", type=int, default=100, help="steps in which the rate rises")
    schedules = ["cosine", "inverse_sqrt", "constant"]
    how.add_argument("--schedule", default="cosine", choices=schedules, help="how it falls")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--measure-every", type=int, default=1000, help="steps between looks at the validation part")
    how.add_argument(
        "--save-every", type=int, default=500, help=f"steps between checkpoints, a multiple of {LOG_EVERY}"
    )
    how.add_argument("--output", type=Path, default=Path("runs/train_lm"))
    how.add_argument("--resume", action="store_true", help="go on with the run in --output")
    held_out = parser.add_argument_group("held-out text")
    held_out.add_argument("--context", type=int, help="bytes before a window's first prediction (default: half of it)")
    held_out.add_argument("--held-out-rows", type=int, default=8, help="with state: rows that are read side by side")
    held_out.add_argument("--test-bytes", type=int, help="use the first so many bytes only (default: all)")
    given, _ = parser.parse_known_args(argv)
    model = BYTE_MODELS.get(given.architecture if given.config is None else architecture_of(given.config) or "")
    if model is not None:
        parser.set_defaults(
            **(model.full | {"config": ROOT / "configs" / model.full["config"]} if given.full else model.small)
        )
    return parser.parse_args(argv)


def architecture_of(path: Path) -> str | None:
    """Name of the zoo's architecture that a configuration file is of."""
    try:
        model_type = json.loads(path.read_text(encoding="utf8")).get("model_type", "")
    except (OSError, ValueError):
        return None  # said when the configuration is made
    return next((name for name in BYTE_MODELS if name in model_type), None)


def configuration(options: argparse.Namespace) -> PreTrainedConfig:
    """The configuration that the options describe."""
    architecture: str = options.architecture
    if options.config is not None:
        architecture = json.loads(options.config.read_text(encoding="utf8")).get("model_type", "")
    config_class = class_of(architecture)
    changes: dict[str, Any] = dict(setting(text) for text in options.set)
    known = {field.name for field in fields(config_class)}
    for name in changes:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"--set {name}: {config_class.__name__} has no such field{hint}")
    if options.config is None:
        return config_class(**BYTE_MODELS[architecture].shape | changes)
    if options.full:
        changes = BYTE_MODELS[options.architecture].full_shape | changes
    return config_class.from_pretrained(options.config, **changes)


def check(options: argparse.Namespace, config: PreTrainedConfig) -> None:
    """Raise ValueError for what would only fail after minutes."""
    longest = getattr(config, "max_tokens", options.window)
    if options.window > longest:
        raise ValueError(f"--window must not exceed the {longest} positions of the model, got {options.window}")
    if options.save_every % LOG_EVERY:
        raise ValueError(f"--save-every must be a multiple of {LOG_EVERY}, got {options.save_every}")
    if options.context is not None and not 1 <= options.context < options.window:
        raise ValueError(f"--context must lie in [1, {options.window}), got {options.context}")


def class_of(model_type: str) -> type[PreTrainedConfig]:
    """The zoo's configuration class for a ``model_type`` or an architecture's name, else transformers' own."""
    for architecture in ARCHITECTURES:
        config_class = architecture.config_class
        if model_type in (architecture.name, config_class.model_type, *config_class.file_model_types):
            return config_class
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"model_type must be one of the zoo's or of transformers', got {model_type!r}")
    return CONFIG_MAPPING[model_type]


def tokenizer_of(config: PreTrainedConfig) -> Any:
    """The byte tokenizer of the configuration's architecture, where it has one."""
    for architecture in ARCHITECTURES:
        make = getattr(architecture.tokenizer_class, "byte_level", None)
        if isinstance(config, architecture.config_class) and make is not None:
            longest = getattr(config, "max_tokens", None)
            return make() if longest is None else make(model_max_length=longest)
    return None


def setting(text: str) -> tuple[str, Any]:
    """``FIELD=VALUE`` with a value in JSON, or a plain word."""
    name, given, value = text.partition("=")
    if not given:
        raise ValueError(f"--set takes FIELD=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def recipe(options: argparse.Namespace) -> LanguageModelRecipe:
    return LanguageModelRecipe(**{name: getattr(options, name) for name in RECIPE if hasattr(options, name)})


def decisive(options: argparse.Namespace, config: PreTrainedConfig) -> dict[str, Any]:
    """Everything that decides what the run computes."""
    values = {name: getattr(options, name) for name in ("corpus", "window", *RECIPE) if hasattr(options, name)}
    return values | {"text": options.text and str(options.text), "config": json.loads(config.to_json_string())}


def build(model: Any, corpus: Corpus, options: argparse.Namespace, offset: int) -> Any:
    """The trainer: over the text as a stream, for a model that carries state; else over windows from anywhere."""
    looks = dict(folder=options.output, measure_every=options.measure_every, save_every=options.save_every)
    glance = corpus.validation[: 8 * options.window * options.batch_size]
    if carries_state(model):
        train, held_out = byte_ids(corpus.train, offset), byte_ids(glance, offset)
        return build_stream_trainer(model, train, held_out, recipe(options), block_size=options.window, **looks)
    count = recipe(options).windows * int(os.environ.get("WORLD_SIZE", "1"))
    windows = RandomWindows(corpus.train, options.window, count, offset=offset, seed=options.seed)
    return build_trainer(
        model, windows, recipe(options), measure=lambda model: measure(model, glance, offset, options), **looks
    )


def fit(trainer: Any, checkpoint: Path | None) -> dict[str, dict[int, float]]:
    """Train, and return the curve: loss in bits and the validation part's bits per byte by step."""
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    print(f"  {time.perf_counter() - began:.0f} s" + (f" from {checkpoint.name}" if checkpoint else ""))
    points = trainer.state.log_history
    curve = {
        "training": {point["step"]: point["loss"] / math.log(2) for point in points if "loss" in point},
        "validation": {point["step"]: point["eval_bits_per_byte"] for point in points if "eval_bits_per_byte" in point},
    }
    for step, bits in curve["validation"].items():
        print(f"    after {step:>6} steps {bits:.3f} bits per byte of the validation part's beginning")
    return curve


def measure(model: Any, text: Bytes, offset: int, options: argparse.Namespace, label: str | None = None) -> float:
    common: dict[str, Any] = dict(
        offset=offset,
        size=options.window,
        autocast=torch.bfloat16 if has_fast_bf16(model.device) else None,
        label=label,
    )
    if carries_state(model):
        return stream_bits_per_byte(model, text, rows=options.held_out_rows, **common)
    return bits_per_byte(model, text, context=options.context, batch_size=options.batch_size, **common)


def report(model: Any, corpus: Corpus, options: argparse.Namespace, offset: int) -> dict[str, float]:
    """Bits per byte of the model and of compressors on the same bytes."""
    text = corpus.test[: options.test_bytes]
    rows = compressor_baselines(text, before=corpus.train)
    how = f"{options.held_out_rows} rows with state" if carries_state(model) else f"{options.window} bytes at a time"
    rows[f"this model, {how}"] = measure(model, text, offset, options, "held-out text")
    print(table([f"{len(text)} bytes", "bits per byte"], [[name, f"{bits:.3f}"] for name, bits in rows.items()]))
    return rows


def report_spans(model: Any, picture: Path) -> None:
    """How far each head looks, layer by layer."""
    spans = spans_of(model) or []
    heading(f"4  Bytes that each head reaches, of {model.config.max_span}")
    rows = [
        [f"layer {number}", f"{sum(layer) / len(layer):.0f}", " ".join(f"{span:.0f}" for span in layer)]
        for number, layer in enumerate(spans, 1)
    ]
    print(table(["", "mean", "heads"], rows))
    print(f"\n  drawn: {picture}")
    plot_spans(picture, spans, maximum=model.config.max_span, title=f"{type(model).__name__}, a dot for each head")


def megabytes(text: Bytes) -> str:
    return f"{len(text) / 1e6:.2f} MB"


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
