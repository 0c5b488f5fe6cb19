"""The main job in a few minutes: a short encoder becomes a long one and answers questions on whole agreements.

    python scripts/demo.py [--seeds 0 1] [--output runs/demo]

MiniLM (512 positions) is converted to a Longformer that takes whole documents, fine-tuned on short windows of legal
agreements to answer "Which law governs this agreement?", tested on agreements of families it has never seen, each read
whole in one pass, saved, loaded again, and asked through the pipeline. Trivial answers, a 512-token cut and a sliding
512-token window stand beside it on the same questions.
"""

import argparse
import os
import textwrap
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # threads that wait must not spin: it stalls whatever else computes here
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes as packages

import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline, set_seed
from transformers.utils import logging as transformers_logging

import longspan
import longspan.pipelines
from longspan.data import LongDocumentCollator
from longspan.data.packages import PackageUnavailable, minilm_folder
from longspan.data.questions import load_questions
from longspan.data.reading import EncodedQuestion, ShortWindows, encode_questions
from longspan.longformer.tokenization_longformer import to_longformer_tokenizer
from longspan.training import baselines
from longspan.training.evaluation import Result, answer_questions, cut, slide, whole
from longspan.training.fine_tuning import Recipe, build_trainer, freeze_embeddings, has_fast_bf16
from longspan.training.memory import PeakMemory
from longspan.training.progress import progress
from longspan.training.report import bar, heading, plot_by_position, save_pretrained, sentence_around, table, write_json

LONGEST = 20480  # tokens; the longest agreement has 19 131
WINDOW = 256  # tokens, both sides together
SHORT = 512  # positions of the encoder before its conversion
WINDOWS = (200, 500)  # tokens of a training window, question included
OVERLAP = 128  # tokens shared by two 512-token windows
MAX_ANSWER = 12  # tokens
EDGES = (512, 2048, 4096)
PLACES = ("first 512", "512 to 2k", "2k to 4k", "beyond 4k")


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    began = time.perf_counter()

    heading("1  Real agreements and a short encoder")
    short = minilm_folder()
    tokenizer = to_longformer_tokenizer(AutoTokenizer.from_pretrained(short), max_length=LONGEST)
    data = load_questions("governing_law")
    parts = {part: encode_questions(data[part], tokenizer, first_position=1) for part in data}
    train, test = parts["train"], parts["test"][: options.questions]
    describe(train, test, len(set(data["test"]["family"])))

    figures: list[tuple[Result, float | None]] = []
    for seed in options.seeds:
        heading(f"2  MiniLM to Longformer, and {options.batches} steps on short windows (seed {seed})")
        model = convert(short, seed)
        print(f"  {SHORT} positions -> {LONGEST} positions, every token sees {WINDOW // 2} tokens on each side,")
        print("  the tokens of the question see, and are seen by, the whole document")
        fit(model, tokenizer, train, options, seed, WINDOWS, "training")
        heading(f"3  {len(test)} unseen agreements, each read whole, in one pass")
        figures.append(measured(model, test, "whole", whole(LONGEST)))
        print(f"  exact match {figures[-1][0].exact_match:.3f}, F1 {figures[-1][0].f1:.3f}")
        if seed == options.seeds[0]:
            heading("4  The same weights slid over 512-token windows, and an encoder that stops at 512")
            slid = measured(model, test, "slid over 512", slide(SHORT, OVERLAP))
            folder = save_pretrained(options.output / "model", model, tokenizer)
            del model
            cut_result = short_encoder(short, tokenizer, train, test, options, seed)

    heading("5  All of it on the same questions")
    named: dict[str, tuple[Result, float | None]] = {
        "most frequent answer": (baselines.most_frequent(train, test), None),
        "most frequent answer that occurs in the text": (baselines.most_frequent_present(train, test), None),
        'rule: capitals after the first "law(s) of"': (baselines.law_rule(test), None),
        "encoder cut at 512, same steps": cut_result,
        "Longformer weights slid over 512-token windows": slid,
        "Longformer, whole document in one pass": figures[0],
    }
    report(named, figures, options)

    heading("6  Loaded again and asked through the pipeline")
    ask(folder, test)
    seconds = time.perf_counter() - began
    print(f"\nDone in {seconds:.0f} s. Model, figures and plot: {options.output}/\n")
    return {"exact_match": mean([result.exact_match for result, _ in figures]), "seconds": seconds}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="train and test once per seed (default: 0)")
    parser.add_argument("--batches", type=int, default=150, help="optimizer steps (default: 150)")
    parser.add_argument("--batch-size", type=int, default=4, help="windows per step (default: 4)")
    parser.add_argument("--questions", type=int, default=None, help="test on so many questions (default: all)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    return parser.parse_args(argv)


def convert(short: Path, seed: int):
    """The short encoder as a Longformer with a new question-answering head."""
    set_seed(seed)
    return longspan.convert_to_long(
        short,
        max_length=LONGEST,
        attention_window=WINDOW,
        model_class=longspan.LongformerForQuestionAnswering,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def fit(
    model, tokenizer, train: list[EncodedQuestion], options, seed: int, lengths: tuple[int, int], label: str
) -> None:
    """Train on windows of the given lengths around the answers, at their true places."""
    recipe = Recipe(batches=options.batches, batch_size=options.batch_size, seed=seed)
    windows = ShortWindows(
        train,
        batch_size=recipe.batch_size,
        batches=recipe.batches,
        shortest=lengths[0],
        longest=lengths[1],
        seed=seed,
    )
    freeze_embeddings(model.longformer)
    trainer = build_trainer(
        model,
        model.longformer,
        windows,
        LongDocumentCollator(tokenizer),
        recipe,
        folder=options.output,
        label=label,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    print(
        f"  {windows.tokens:,} tokens in {seconds:.0f} s: {len(windows)} windows of {lengths[0]} to {lengths[1]} tokens"
    )


def measured(model, test: list[EncodedQuestion], label: str, windows) -> tuple[Result, float | None]:
    """Answers to all questions, and the peak memory it took."""
    autocast = torch.bfloat16 if has_fast_bf16(model.device) else None
    with PeakMemory() as memory:
        result = answer_questions(
            model, progress(test, label), windows, max_answer_tokens=MAX_ANSWER, autocast=autocast
        )
    return result, memory.mib


def short_encoder(short: Path, tokenizer, train, test, options, seed: int) -> tuple[Result, float | None]:
    """The same encoder, head and number of steps, on the first 512 tokens: what truncation leaves."""
    model = convert(short, seed)
    inside = [question for question in train if question.last + question.special < SHORT]
    print(f"  {len(inside)} of {len(train)} training answers and ", end="")
    print(
        f"{sum(q.last + q.special < SHORT for q in test)} of {len(test)} test answers lie in the first {SHORT} tokens"
    )
    first_tokens = [question.cut(SHORT - question.special) for question in inside]
    fit(model, tokenizer, first_tokens, options, seed, (SHORT, SHORT), "training, cut at 512")
    return measured(model, test, "cut at 512", cut(SHORT))


def describe(train: list[EncodedQuestion], test: list[EncodedQuestion], families: int) -> None:
    lengths = sorted(len(question.document) for question in test)
    inside = sum(question.last + question.special < SHORT for question in test) / len(test)
    print(f"  {train[0].question}")
    print(f"  {len(train)} agreements to train on; {len(test)} to test on, of {families} unseen families")
    print(f"  test agreements: half are longer than {lengths[len(lengths) // 2]:,} tokens, the longest {lengths[-1]:,}")
    print(
        f"  {inside:.0%} of the answers lie in the first {SHORT} tokens: what a {SHORT}-token model can reach at most"
    )


def report(named: dict[str, tuple[Result, float | None]], seeds: list[tuple[Result, float | None]], options) -> None:
    """The table of methods, exact match by place, the plot, and all figures in a file."""
    rows = []
    for name, (result, mib) in named.items():
        cost = [f"{result.tokens:,}", f"{result.seconds:.0f}"] if result.tokens else ["-", "-"]
        memory = "-" if mib is None else f"{mib:.0f}"
        rows.append([name, f"{result.exact_match:.3f}", f"{result.f1:.3f}", *cost, memory])
    print(table(["", "exact match", "F1", "tokens read", "seconds", "MiB"], rows))
    if len(seeds) > 1:
        exact, overlap = (mean([getattr(result, name) for result, _ in seeds]) for name in ("exact_match", "f1"))
        print(f"\n  mean of {len(seeds)} seeds, whole document: exact match {exact:.3f}, F1 {overlap:.3f}")
    print(
        "\n  The accepted answers were found by the wording of the documents, which the rule shares with them.\n"
        "  Cutting loses nearly everything. Sliding a short window does about as well here, for one question whose\n"
        "  answer needs little context: it reads more tokens and merges answers, while one pass needs more memory."
    )

    print("\n  Exact match by the place of the answer")
    shown = [name for name in named if named[name][0].tokens]
    places = {name: named[name][0].by_position(EDGES) for name in shown}
    for name in shown:
        print(f"  {name}")
        for label, (count, exact) in zip(PLACES, places[name], strict=True):
            print(f"    {label:<12}{count:>4} {bar(exact or 0.0)} {'-' if exact is None else format(exact, '.2f')}")
    plot_by_position(
        options.output / "accuracy_by_position.png",
        [f"{label}\n{count} answers" for label, (count, _) in zip(PLACES, places[shown[-1]], strict=True)],
        {name: [exact for _, exact in places[name]] for name in shown},
        f"Which law governs this agreement? Trained on windows of {WINDOWS[0]} to {WINDOWS[1]} tokens",
    )
    content = {
        "seeds": {
            str(seed): {"exact_match": result.exact_match, "f1": result.f1}
            for seed, (result, _) in zip(options.seeds, seeds, strict=True)
        },
        "methods": {
            name: {
                "exact_match": result.exact_match,
                "f1": result.f1,
                "tokens": result.tokens,
                "seconds": round(result.seconds, 1),
                "peak_mib": mib,
            }
            for name, (result, mib) in named.items()
        },
        "exact_match_by_place": {name: dict(zip(PLACES, places[name], strict=True)) for name in shown},
    }
    write_json(options.output / "figures.json", content)


def ask(folder: Path, test: list[EncodedQuestion]) -> None:
    """Two questions on the agreements whose answers lie deepest, from text to text."""
    print(f"  AutoModelForQuestionAnswering.from_pretrained({str(folder)!r})")
    answerer = pipeline(  # pyright: ignore[reportCallIssue]
        "long-question-answering",  # pyright: ignore[reportArgumentType]
        model=AutoModelForQuestionAnswering.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    families = set()
    for question in sorted(test, key=lambda question: -question.first):
        if question.family in families:
            continue
        families.add(question.family)
        answer = answerer(question=question.question, context=question.context)
        place = question.context[: answer["start"]].count(" ")
        print(f"\n  {question.name.split('/')[0]}, {len(question.document):,} tokens: {question.question}")
        print(f"    {answer['answer']}    (score {answer['score']:.2f}, character {answer['start']:,}, word {place:,})")
        print(textwrap.indent(sentence_around(question.context, answer["start"], answer["end"], 110), "    | "))
        if len(families) == 2:
            break


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    try:
        main()
    except PackageUnavailable as error:
        raise SystemExit(str(error)) from None
