"""From King James's English to today's: a sequence-to-sequence Universal Transformer on 26,505 verses.

    python scripts/train_translation.py [--output runs/translation] [--resume]
    python scripts/train_translation.py --model "UT + ACT"      # adaptive computation time

Verses of the King James Version and of the World English Bible, split by chapters. Learns a vocabulary of pieces from
the training verses, trains with `Seq2SeqTrainer`, and translates held-out verses greedily. A killed run goes on with
``--resume``. BLEU stands beside that of the source itself: many words stay as they are.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes as packages

import torch
from datasets import DatasetDict, disable_progress_bars
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from longspan.data.epochs import LengthGroupedEpochs
from longspan.data.packages import PackageUnavailable
from longspan.data.verses import load_verses
from longspan.training.bleu import corpus_bleu
from longspan.training.checkpoints import claim_folder, load_finished
from longspan.training.comparison import KINDS, Setting, add_setting_options, chosen_setting, comparison_config
from longspan.training.language_modeling import LOG_EVERY
from longspan.training.progress import ProgressCallback, progress
from longspan.training.report import heading, save_pretrained, table, write_json
from longspan.universal_transformer import UniversalTransformerForConditionalGeneration
from longspan.universal_transformer.tokenization_universal_transformer import UniversalTransformerTokenizer


@dataclass(frozen=True)
class Translation(Setting):
    """Setting and the size of the texts.

    Args:
        vocabulary: pieces that are learnt.
        longest: pieces of the longest verse; longer ones are left out of training, and cut in the test.
    """

    vocabulary: int = 4000
    longest: int = 64


SCALED = Translation(hidden=128, updates=6000, batch=16, rate=1.5e-3, warmup=500)  # no dropout: too few to overfit
LARGE = Translation(512, 8, 6, 30_000, 128, rate=7e-4, warmup=4000, dropout=0.3, vocabulary=8000, longest=160)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    setting = chosen_setting(options, SCALED, LARGE)
    decisive = {**vars(setting), "model": options.model, "seed": options.seed}
    try:
        checkpoint = claim_folder(options.output, decisive, resume=options.resume)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    heading("1  Verses")
    verses = load_verses()
    tokenizer = UniversalTransformerTokenizer.train(
        [*verses["train"]["kjv"], *verses["train"]["web"]], setting.vocabulary, model_max_length=setting.longest
    )
    rows = encode(verses, tokenizer, setting.longest)
    kept = len(rows["train"]) / len(verses["train"])
    print(f"  {len(rows['train'])} pairs of up to {setting.longest} pieces to learn from ({100 * kept:.0f} % of all)")

    set_seed(options.seed)
    config = comparison_config(options.model, setting, vocab_size=len(tokenizer), label_smoothing=0.1)
    model = UniversalTransformerForConditionalGeneration(config)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    heading(f"2  {options.model}, {millions:.1f} M parameters, {setting.updates} updates of {setting.batch} pairs")
    trainer = build_trainer(model, rows, tokenizer, setting, options)
    if load_finished(trainer, checkpoint, setting.updates) is None:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save_pretrained(options.output / "model", model, tokenizer)
    points = trainer.state.log_history
    figures: dict[str, Any] = {
        "loss": {point["step"]: point["loss"] for point in points if "loss" in point},
        "validation": {point["step"]: point["eval_loss"] for point in points if "eval_loss" in point},
    }
    for step, loss in figures["validation"].items():
        print(f"    after {step:>6} updates: loss {loss:.3f} on the validation chapters")

    heading(f"3  {options.cases} verses of held-out chapters")
    figures |= report(model, tokenizer, verses["test"], setting, options)
    write_json(options.output / "figures.json", figures)
    print(f"\nModel and figures: {options.output}/")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="UT", choices=KINDS)
    add_setting_options(parser, SCALED, LARGE)
    parser.add_argument("--cases", type=int, default=300, help="held-out verses to translate")
    parser.add_argument("--save-every", type=int, default=500, help="updates between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/translation"))
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    options = parser.parse_args(argv)
    if options.save_every % LOG_EVERY:  # what a point of the curve has gathered is not kept in a checkpoint
        parser.error(f"--save-every must be a multiple of {LOG_EVERY} updates, got {options.save_every}")
    return options


def encode(verses: DatasetDict, tokenizer: Any, longest: int) -> DatasetDict:
    """``input_ids``, ``attention_mask`` and ``labels`` of the verses that are short enough on both sides."""

    def ids(batch: dict[str, list[str]]) -> dict[str, Any]:
        return dict(tokenizer(batch["kjv"], text_target=batch["web"]))

    rows = verses.map(ids, batched=True, remove_columns=verses["train"].column_names, keep_in_memory=True)
    return rows.filter(lambda row: max(len(row["input_ids"]), len(row["labels"])) <= longest, keep_in_memory=True)


def build_trainer(
    model: Any, rows: DatasetDict, tokenizer: Any, setting: Translation, options: argparse.Namespace
) -> Seq2SeqTrainer:
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(options.output),
        max_steps=setting.updates,
        per_device_train_batch_size=setting.batch,
        per_device_eval_batch_size=setting.batch,
        train_sampling_strategy="sequential",  # the order is drawn already
        learning_rate=setting.rate,
        warmup_steps=setting.warmup,
        lr_scheduler_type="cosine",
        adam_beta2=0.98,
        max_grad_norm=1.0,
        use_cpu=not torch.cuda.is_available(),
        seed=options.seed,
        logging_steps=LOG_EVERY,
        eval_strategy="steps",
        eval_steps=max(LOG_EVERY, setting.updates // 4),
        save_steps=options.save_every,
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    pairs = [dict(row) for row in rows["train"]]
    drawn = LengthGroupedEpochs(
        pairs,
        setting.updates * setting.batch,
        lengths=[len(pair["input_ids"]) for pair in pairs],
        batch_size=setting.batch,
        seed=options.seed,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=drawn,
        eval_dataset=[dict(row) for row in rows["validation"].select(range(min(256, len(rows["validation"]))))],  # pyright: ignore
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        callbacks=[ProgressCallback(options.model)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def translate(model: Any, tokenizer: Any, texts: list[str], longest: int, batch_size: int = 50) -> list[str]:
    """Greedily, in the order of ``texts``."""
    model.eval()
    written: dict[int, str] = {}
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for numbers in progress(
        [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)], "translating"
    ):
        batch = tokenizer([texts[n] for n in numbers], truncation=True, padding=True, return_tensors="pt").to(
            model.device
        )
        ids = model.generate(**batch, max_new_tokens=longest, do_sample=False)
        written |= zip(numbers, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True)
    return [written[number] for number in range(len(texts))]


def report(model: Any, tokenizer: Any, test: Any, setting: Translation, options: argparse.Namespace) -> dict[str, Any]:
    rows = test.shuffle(seed=0).select(range(min(options.cases, len(test))))
    sources, references = list(rows["kjv"]), list(rows["web"])
    written = translate(model, tokenizer, sources, setting.longest)
    for source, text, reference in list(zip(sources, written, references, strict=True))[:3]:
        print(f"  King James     {source}\n  this model     {text}\n  World English  {reference}\n")
    bleu = {"the source as it is": corpus_bleu(sources, references), "this model": corpus_bleu(written, references)}
    print(table(["", "BLEU"], [[name, f"{value:.1f}"] for name, value in bleu.items()]))
    return {"BLEU": bleu}


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
