"""The longer recipe: two kinds of questions, several of one agreement answered in one pass.

    python scripts/train_qa.py [--output runs/train_qa] [--resume]

"Which law governs this agreement?" and 'What does "X" mean in this agreement?' are asked together, up to six at a
time, of short windows in training and of whole agreements of unseen families in the test. A killed run goes on with
``--resume`` from its last checkpoint and ends as if nothing had happened.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes as packages

import torch
from transformers import AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging

import longspan
from longspan.data import LongDocumentCollator
from longspan.data.packages import PackageUnavailable, minilm_folder
from longspan.data.questions import load_questions
from longspan.data.reading import EncodedQuestion, encode_questions
from longspan.data.several import QuestionGroup, SeveralQuestionWindows, group_questions
from longspan.longformer.tokenization_longformer import to_longformer_tokenizer
from longspan.training import baselines
from longspan.training.checkpoints import claim_folder
from longspan.training.evaluation import Result, cut, whole
from longspan.training.fine_tuning import Recipe, build_trainer, freeze_embeddings, has_fast_bf16
from longspan.training.pointer import LongformerForSeveralQuestions, answer_groups
from longspan.training.progress import progress
from longspan.training.report import bar, heading, save_pretrained, table, write_json

KINDS = ("definitions", "governing_law")
LONGEST = 20480  # tokens; the longest agreement has 19 131
WINDOW = 256  # tokens, both sides together
SHORT = 512  # tokens of the cut encoder, questions included
WINDOWS = (400, 1000)  # document tokens of a training window
MAX_ANSWER = {"definitions": 110, "governing_law": 12}  # tokens
EDGES = (512, 2048, 4096)
PLACES = ("first 512", "512 to 2k", "2k to 4k", "beyond 4k")


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    options = parse(argv)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    decisive = {name: getattr(options, name) for name in ("batches", "windows", "most", "seed", "cut")}
    try:
        checkpoint = claim_folder(options.output, decisive, resume=options.resume)
    except ValueError as error:
        raise SystemExit(str(error)) from None

    heading("1  Questions and a short encoder")
    short = minilm_folder()
    tokenizer = to_longformer_tokenizer(AutoTokenizer.from_pretrained(short), max_length=LONGEST)
    questions = {kind: load_parts(kind, tokenizer) for kind in KINDS}
    for kind, parts in questions.items():
        counts = ", ".join(f"{len(asked)} {part}" for part, asked in parts.items())
        print(f"  {kind}: {counts}")

    heading(f"2  {options.batches} steps of {options.windows} windows, up to {options.most} questions in each")
    set_seed(options.seed)
    model = longspan.convert_to_long(
        short,
        max_length=LONGEST,
        attention_window=WINDOW,
        model_class=LongformerForSeveralQuestions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    pool = [*questions["definitions"]["train"], *questions["governing_law"]["train"] * 2]  # the rarer kind twice
    if options.cut:
        pool = cut_to_short(pool)
    fit(model, tokenizer, pool, options, checkpoint)
    folder = save_pretrained(options.output / "model", model, tokenizer)

    heading("3  Unseen agreements, " + (f"the first {SHORT} tokens" if options.cut else "each read whole, in one pass"))
    figures = {}
    for part in options.parts:
        for kind in KINDS:
            figures[f"{kind}, {part}"] = test(model, questions[kind], part, kind, options)
    write_json(options.output / "figures.json", figures)
    print(f"\nModel and figures: {folder.parent}/")
    return figures


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--batches", type=int, default=450, help="optimizer steps (default: 450)")
    parser.add_argument("--windows", type=int, default=2, help="windows per step (default: 2)")
    parser.add_argument("--most", type=int, default=6, help="questions per window (default: 6)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cut", action="store_true", help="train and test on the first 512 tokens, for comparison")
    parser.add_argument("--parts", nargs="+", default=["test"], choices=["validation", "test"], help="what to test on")
    parser.add_argument("--groups", type=int, default=None, help="test on so many groups of questions (default: all)")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints (default: 50)")
    parser.add_argument("--output", type=Path, default=Path("runs/train_qa"), help="default: runs/train_qa")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    return parser.parse_args(argv)


def load_parts(kind: str, tokenizer) -> dict[str, list[EncodedQuestion]]:
    data = load_questions(kind)
    return {str(part): encode_questions(data[part], tokenizer, first_position=1) for part in data}


def cut_to_short(pool: list[EncodedQuestion]) -> list[EncodedQuestion]:
    """The questions whose answers lie in what a short encoder sees of the document beside several questions."""
    kept = SHORT - 80
    inside = [question.cut(kept) for question in pool if question.last < kept]
    print(f"  {len(inside)} of {len(pool)} training answers lie in the first {kept} tokens")
    return inside


def fit(model, tokenizer, pool: list[EncodedQuestion], options, checkpoint: Path | None) -> None:
    recipe = Recipe(options.batches, batch_size=1, body_rate=3e-4, head_rate=1e-3, warmup=0.08, seed=options.seed)
    shortest, longest = (SHORT, SHORT) if options.cut else WINDOWS
    windows = SeveralQuestionWindows(
        pool,
        windows=options.batches * options.windows,
        shortest=shortest,
        longest=longest,
        most=options.most,
        seed=options.seed,
    )
    freeze_embeddings(model.longformer)
    trainer = build_trainer(
        model,
        model.longformer,
        windows,
        LongDocumentCollator(tokenizer),
        recipe,
        folder=options.output,
        accumulate=options.windows,  # windows differ in their number of questions: one forward pass each
        save_every=options.save_every,
    )
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    print(f"  {time.perf_counter() - began:.0f} s" + (f" from {checkpoint.name}" if checkpoint else ""))


def test(model, parts: dict[str, list[EncodedQuestion]], part: str, kind: str, options) -> dict[str, float]:
    """Exact match and F1 of one kind of questions, with the answers that need no model beside it."""
    groups: list[QuestionGroup] = group_questions(parts[part], options.most)[: options.groups]
    asked = [question for group in groups for question in group.questions]
    result = answer_groups(
        model,
        progress(groups, f"{kind}, {part}"),
        cut(SHORT) if options.cut else whole(LONGEST),
        max_answer_tokens=MAX_ANSWER[kind],
        autocast=torch.bfloat16 if has_fast_bf16(model.device) else None,
    )
    rows: dict[str, Result] = {}
    if kind == "governing_law":
        rows["most frequent answer that occurs in the text"] = baselines.most_frequent_present(parts["train"], asked)
        rows['rule: capitals after the first "law(s) of"'] = baselines.law_rule(asked)
    else:
        rows["rule: what follows the quoted term"] = baselines.definition_rule(asked)
    rows["this model, first 512 tokens" if options.cut else "this model, whole documents"] = result
    cells = [[name, f"{row.exact_match:.3f}", f"{row.f1:.3f}"] for name, row in rows.items()]
    print(table([f"{len(asked)} questions", "exact match", "F1"], cells))
    for label, (count, exact) in zip(PLACES, result.by_position(EDGES), strict=True):
        print(f"    {label:<12}{count:>4} {bar(exact or 0.0)} {'-' if exact is None else format(exact, '.2f')}")
    return {name: value for name, row in rows.items() for name, value in scores(name, row).items()}


def scores(name: str, row: Result) -> dict[str, float]:
    return {f"{name}: exact match": row.exact_match, f"{name}: F1": row.f1}


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
