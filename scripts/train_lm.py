"""A byte-level language model on real text, beside what compressors make of the same bytes.

    python scripts/train_lm.py [--corpus wikipedia] [--output runs/train_lm] [--resume]
    python scripts/train_lm.py --text my.txt --config configs/reformer/enwik8.json --set num_hashes=2
    python scripts/train_lm.py --full        # the published enwik8 shape and recipe: for a GPU and days

Any causal architecture of the zoo, by its name or by a configuration file; without either a small Reformer, for minutes
on two cores. A killed run goes on with ``--resume`` from its last checkpoint and ends as if nothing had happened.
"""

import argparse
import difflib
import json
import math
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes as packages

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, set_seed
from transformers.utils import logging as transformers_logging

from longspan.data.byte_windows import RandomWindows, byte_offset
from longspan.data.corpora import CORPORA, Bytes, Corpus, compressor_baselines, load_corpus, read_corpus
from longspan.data.packages import PackageUnavailable
from longspan.registry import ARCHITECTURES
from longspan.training.bits_per_byte import bits_per_byte
from longspan.training.checkpoints import claim_folder
from longspan.training.fine_tuning import has_fast_bf16
from longspan.training.language_modeling import LOG_EVERY, LanguageModelRecipe, build_trainer
from longspan.training.report import heading, save_pretrained, table, write_json

ROOT = Path(__file__).parents[1]
SMALL: dict[str, dict[str, Any]] = {
    "reformer": {
        "vocab_size": 258,
        "eos_token_id": 1,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "attention_head_size": 64,
        "attn_layers": ["local", "lsh"],
        "feed_forward_size": 1024,
        "local_attn_chunk_length": 64,
        "lsh_attn_chunk_length": 64,
        "num_hashes": 2,
        "axial_pos_shape": [32, 64],
        "axial_pos_embds_dim": [64, 192],
        "axial_norm_std": 0.02,  # as small as the words' embeddings, else positions drown them for a long time
        "max_position_embeddings": 2048,
        "is_decoder": True,
        "hidden_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    },
}
"""What is trained where no configuration file is given; `--set` changes single fields."""
FULL = {
    "corpus": "mixed",
    "config": ROOT / "configs" / "reformer" / "enwik8.json",
    "steps": 100_000,
    "window": 65536,
    "batch_size": 1,
    "accumulate": 8,
    "rate": 1e-3,
    "warmup": 2000,
    "schedule": "inverse_sqrt",
    "measure_every": 1000,
    "save_every": 500,
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = configuration(options)
        offset = byte_offset(config.vocab_size)
        check(options, config)
        heading("1  Text")
        corpus = read_corpus(options.text) if options.text else load_corpus(options.corpus)
        windows = RandomWindows(corpus.train, options.window, recipe(options).windows, offset=offset, seed=options.seed)
        checkpoint = claim_folder(options.output, decisive(options, config), resume=options.resume)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    print(f"  {corpus.name}: {megabytes(corpus.train)} to learn from, {megabytes(corpus.validation)} to choose by,")
    print(f"  {megabytes(corpus.test)} to report on; split by position")

    set_seed(options.seed)
    model = AutoModelForCausalLM.from_config(config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    read = recipe(options).windows * options.window
    heading(f"2  {type(model).__name__}, {millions:.1f} M parameters, {options.steps} steps")
    print(f"  windows of {options.window} bytes, {read / 1e6:.1f} MB in all:", end=" ")
    print(f"{read / len(corpus.train):.1f} times the text")
    curve = fit(model, windows, corpus, options, checkpoint)
    folder = save_pretrained(options.output / "model", model, tokenizer_of(config))

    heading("3  Held-out text, every byte predicted once")
    figures = {"curve": curve, "bits per byte": report(model, corpus, options, offset)}
    write_json(options.output / "figures.json", figures)
    print(f"\nModel and figures: {folder.parent}/")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    text = parser.add_argument_group("text")
    text.add_argument("--corpus", default="wikipedia", choices=CORPORA, help="a text that comes as a package")
    text.add_argument("--text", type=Path, help="a file of your own instead, read byte for byte")
    shape = parser.add_argument_group("model")
    shape.add_argument("--architecture", default="reformer", choices=sorted(SMALL), help="a small one of this kind")
    shape.add_argument("--config", type=Path, help="config.json of a byte model instead, of any causal architecture")
    shape.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="change the configuration's fields")
    how = parser.add_argument_group("training")
    how.add_argument("--full", action="store_true", help="the published enwik8 shape and recipe: a GPU and days")
    how.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    how.add_argument("--window", type=int, default=1024, help="bytes in a window")
    how.add_argument("--batch-size", type=int, default=1, help="windows in a pass")
    how.add_argument("--accumulate", type=int, default=1, help="passes in a step")
    how.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    how.add_argument("--warmup", type=int, default=100, help="steps in which it rises")
    how.add_argument("--schedule", default="cosine", choices=["cosine", "inverse_sqrt"], help="how it falls")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--measure-every", type=int, default=1000, help="steps between looks at the validation part")
    how.add_argument(
        "--save-every", type=int, default=500, help=f"steps between checkpoints, a multiple of {LOG_EVERY}"
    )
    how.add_argument("--output", type=Path, default=Path("runs/train_lm"))
    how.add_argument("--resume", action="store_true", help="go on with the run in --output")
    held_out = parser.add_argument_group("held-out text")
    held_out.add_argument("--context", type=int, help="bytes before a window's first prediction (default: half of it)")
    held_out.add_argument("--test-bytes", type=int, help="use the first so many bytes only (default: all)")
    if parser.parse_known_args(argv)[0].full:
        parser.set_defaults(**FULL)
    return parser.parse_args(argv)


def configuration(options: argparse.Namespace) -> PreTrainedConfig:
    """The configuration that the options describe."""
    architecture: str = options.architecture
    if options.config is not None:
        architecture = json.loads(options.config.read_text(encoding="utf8")).get("model_type", "")
    config_class = class_of(architecture)
    changes = dict(setting(text) for text in options.set)
    known = {field.name for field in fields(config_class)}
    for name in changes:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"--set {name}: {config_class.__name__} has no such field{hint}")
    if options.config is None:
        return config_class(**SMALL[architecture] | changes)
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
            return make(model_max_length=config.max_tokens)
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
    return LanguageModelRecipe(
        steps=options.steps,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        rate=options.rate,
        warmup=options.warmup,
        schedule=options.schedule,
        seed=options.seed,
    )


def decisive(options: argparse.Namespace, config: PreTrainedConfig) -> dict[str, Any]:
    """Everything that decides what the run computes."""
    names = ("corpus", "text", "steps", "window", "batch_size", "accumulate", "rate", "warmup", "schedule", "seed")
    values = {name: getattr(options, name) for name in names}
    return values | {"text": options.text and str(options.text), "config": json.loads(config.to_json_string())}


def fit(model: Any, windows: RandomWindows, corpus: Corpus, options: argparse.Namespace, checkpoint: Path | None):
    """Train, and return the curve: loss in bits and the validation part's bits per byte by step."""
    trainer = build_trainer(
        model,
        windows,
        recipe(options),
        folder=options.output,
        measure=lambda model: measure(model, corpus.validation[: 8 * options.window], windows.offset, options),
        measure_every=options.measure_every,
        save_every=options.save_every,
    )
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
    return bits_per_byte(
        model,
        text,
        offset=offset,
        size=options.window,
        context=options.context,
        batch_size=options.batch_size,
        autocast=torch.bfloat16 if has_fast_bf16(model.device) else None,
        label=label,
    )


def report(model: Any, corpus: Corpus, options: argparse.Namespace, offset: int) -> dict[str, float]:
    """Bits per byte of the model and of compressors on the same bytes."""
    text = corpus.test[: options.test_bytes]
    rows = compressor_baselines(text, before=corpus.train)
    rows[f"this model, {options.window} bytes at a time"] = measure(model, text, offset, options, "held-out text")
    print(table([f"{len(text)} bytes", "bits per byte"], [[name, f"{bits:.3f}"] for name, bits in rows.items()]))
    return rows


def megabytes(text: Bytes) -> str:
    return f"{len(text) / 1e6:.2f} MB"


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
