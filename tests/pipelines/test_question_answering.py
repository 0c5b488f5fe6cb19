import copy
import inspect
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import RobertaTokenizer

import longspan.pipelines
from longspan.pipelines import LongQuestionAnsweringPipeline

QUESTION = "which law governs ?"
pipeline: Any = transformers.pipeline  # its type knows the tasks of transformers only


@pytest.fixture
def ask(question_model, tokenizer):
    return LongQuestionAnsweringPipeline(model=question_model, tokenizer=tokenizer, device="cpu")


def logits_of(model, question_ids, document_ids):
    """[CLS] question [SEP] document [SEP], the question global: the logits of all tokens."""
    ids = [2, *question_ids, 3, *document_ids, 3]
    before = len(question_ids) + 2
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "token_type_ids": torch.tensor([[0] * before + [1] * (len(ids) - before)]),
    }
    if "global_attention_mask" in inspect.signature(model.forward).parameters:
        inputs["global_attention_mask"] = torch.tensor([[1] * before + [0] * (len(ids) - before)])
    with torch.no_grad():
        out = model(**inputs)
    return out.start_logits[0].double(), out.end_logits[0].double(), before


def brute_force(model, tokenizer, question, text, windows, longest):
    """All spans of all windows as (score, start, end), from the definition of the score in the pipeline's docs."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    question_ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    starts, ends = [{} for _ in windows], [{} for _ in windows]
    for number, (first, last) in enumerate(windows):
        start, end, before = logits_of(model, question_ids, ids[first:last])
        for token in range(first, last):
            starts[number][token] = float(start[before + token - first])
            ends[number][token] = float(end[before + token - first])
    normalisers = []
    for side in (starts, ends):
        highest = {token: max(w[token] for w in side if token in w) for token in range(len(ids))}
        normalisers.append(sum(math.exp(value) for value in highest.values()))
    spans = []
    for number, (first, last) in enumerate(windows):
        for i in range(first, last):
            for j in range(i, min(i + longest, last)):
                score = math.exp(starts[number][i] + ends[number][j]) / math.prod(normalisers)
                spans.append((score, offsets[i][0], offsets[j][1]))
    return sorted(spans, key=lambda span: -span[0])


def token_count(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def close(result, wanted):
    score, start, end = wanted
    assert (result["start"], result["end"]) == (start, end)
    assert result["score"] == pytest.approx(score, rel=1e-4)


def test_one_window_is_the_direct_computation(ask, question_model, tokenizer, document):
    text = document(20)
    result = ask(QUESTION, text)
    close(result, brute_force(question_model, tokenizer, QUESTION, text, [(0, token_count(tokenizer, text))], 64)[0])
    assert text[result["start"] : result["end"]] == result["answer"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("longest", [1, 7])
def test_many_windows_give_the_best_span_of_all(ask, question_model, tokenizer, document, seed, longest):
    text = document(150, seed)
    tokens, room = token_count(tokenizer, text), 48 - 4 - 3
    starts = [*range(0, tokens - room, room - 10), tokens - room]
    windows = [(start, start + room) for start in starts]
    assert len(windows) > 3
    wanted = brute_force(question_model, tokenizer, QUESTION, text, windows, longest)
    close(ask(QUESTION, text, stride=10, max_answer_len=longest), wanted[0])

    several = ask(QUESTION, text, stride=10, max_answer_len=longest, top_k=4)
    taken = []
    for span in wanted:  # greedily, the next best that overlaps none before
        if all(span[2] <= start or end <= span[1] for _, start, end in taken):
            taken.append(span)
    assert len(several) == 4
    for result, span in zip(several, taken[:4], strict=True):
        close(result, span)


def test_offsets_point_into_the_text_as_given(ask, document):
    for seed in range(5):
        text = document(60, seed)
        for answer in ask(QUESTION, text, top_k=8, max_answer_len=5):
            assert text[answer["start"] : answer["end"]] == answer["answer"]
            assert answer["answer"] == answer["answer"].strip() != ""


def test_answers_hold_no_outer_spaces_where_tokens_do(bert):
    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])}
    vocab |= {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()), len(vocab))}
    merges: Any = [("Ġ", "a"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("a", "b"), ("Ġ", "b")]
    vocab |= {"".join(merge): index for index, merge in enumerate(merges, len(vocab))}
    spaced = RobertaTokenizer(vocab=vocab, merges=merges, trim_offsets=False)
    bert.resize_token_embeddings(len(vocab))
    with torch.no_grad():
        bert.get_input_embeddings().weight.normal_()
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=spaced, device="cpu")
    text = "  ab a\n\n b é \n ab  法 a" * 3
    assert any(token.startswith("Ġ") and len(token) > 1 for token in spaced.tokenize(text))
    for longest in (1, 3):
        answers = ask("a b", text, top_k=50, max_answer_len=longest)
        assert len(answers) > 5
        for answer in answers:
            assert text[answer["start"] : answer["end"]] == answer["answer"] == answer["answer"].strip() != ""


@pytest.mark.parametrize("side", ["right", "left"])
def test_batching_and_padding_side_do_not_change_answers(question_model, tokenizer, document, side):
    lengths = [3, 130, 40, 10, 75]
    inputs = [{"question": QUESTION, "context": document(length, length)} for length in lengths]
    inputs[1]["question"] = "which state of the agreement ?"
    padded = copy.deepcopy(tokenizer)
    padded.padding_side = side
    ask = LongQuestionAnsweringPipeline(model=question_model, tokenizer=padded, device="cpu")
    alone = [ask(item) for item in inputs]
    for batch_size in (2, 7):
        for one, other in zip(alone, ask(inputs, batch_size=batch_size), strict=True):
            assert one["score"] == pytest.approx(other.pop("score"), rel=1e-4)
            assert {**other, "score": one["score"]} == one


def test_ways_to_ask(ask, document):
    one, two = document(10, 1), document(10, 2)
    other = "which state ?"
    first, second, third = ask(QUESTION, one), ask(other, one), ask(QUESTION, two)
    assert isinstance(first, dict)
    assert ask(question=QUESTION, context=one) == first
    assert ask({"question": QUESTION, "context": one}) == first
    assert ask([{"question": QUESTION, "context": one, "id": 7}]) == [first]
    assert ask(question=[QUESTION, other], context=one) == [first, second]
    assert ask([QUESTION, other], one) == [first, second]
    assert ask(QUESTION, [one, two]) == [first, third]
    assert ask([QUESTION, other], [one, one]) == [first, second]
    assert ask([]) == [] == ask([], one)
    assert ask(QUESTION, one, top_k=2)[0] == first


def test_generators_and_datasets_are_streamed(ask, document):
    items = [{"question": QUESTION, "context": document(10, seed)} for seed in range(3)]
    wanted = [ask(item) for item in items]

    seen = []

    def stream():
        for item in items:
            seen.append(item)
            yield item

    results = ask(stream())
    assert next(results) == wanted[0]
    assert len(seen) < 3
    assert list(results) == wanted[1:]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(items)

        def __getitem__(self, index):
            return items[index]

    assert list(ask(Rows(), batch_size=2)) == wanted


def test_a_table_of_questions(ask, document):
    datasets = pytest.importorskip("datasets")
    items = [{"question": QUESTION, "context": document(10, seed)} for seed in range(3)]
    assert ask(datasets.Dataset.from_list(items)) == [ask(item) for item in items]


def test_no_answer_is_one_more_outcome(ask, question_model, tokenizer, document):
    text = document(20)
    question_ids = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start, end, before = logits_of(question_model, question_ids, ids)
    rows = [torch.cat([side[:1], side[before:-1]]).softmax(0) for side in (start, end)]
    null = float(rows[0][0] * rows[1][0])

    answers = ask(QUESTION, text, handle_impossible_answer=True, top_k=5)
    empty = [
        answer for answer in ask(QUESTION, text, handle_impossible_answer=True, top_k=1000) if not answer["answer"]
    ]
    assert len(empty) == 1 and empty[0]["score"] == pytest.approx(null, rel=1e-4)
    assert (empty[0]["start"], empty[0]["end"]) == (0, 0)
    assert all(answer["no_answer_score"] == pytest.approx(null, rel=1e-4) for answer in answers)
    assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
    without = ask(QUESTION, text)
    with_null = next(answer for answer in answers if answer["answer"])
    assert with_null["answer"] == without["answer"]
    assert with_null["score"] < without["score"]


def test_no_answer_wins_when_the_classification_token_does(bert, tokenizer, document):
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=tokenizer, device="cpu")

    def favour_first_token(module, inputs, output):
        output.start_logits[:, 0] = output.end_logits[:, 0] = 50.0

    bert.register_forward_hook(favour_first_token)
    result = ask(QUESTION, document(200), handle_impossible_answer=True)
    assert result["answer"] == "" and result["score"] == pytest.approx(1.0)
    assert ask(QUESTION, document(200))["answer"] != ""


def test_one_window_with_an_answer_outweighs_those_without(bert, tokenizer):
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=tokenizer, device="cpu")
    york = tokenizer.convert_tokens_to_ids("york")

    def find_york(module, arguments, inputs, output):
        found = inputs["input_ids"] == york
        output.start_logits.copy_(found * 30.0)
        output.end_logits.copy_(found * 30.0)
        output.start_logits[:, 0] = output.end_logits[:, 0] = (~found.any(1)) * 30.0

    bert.register_forward_hook(find_york, with_kwargs=True)
    text = "the law of " * 60 + "York " + "the law " * 50
    result = ask(QUESTION, text, handle_impossible_answer=True, batch_size=3)
    assert result["answer"] == "York" and text[result["start"] :].startswith("York")
    assert result["score"] > 0.999 and result["no_answer_score"] < 1e-6


def test_an_answer_longer_than_allowed_is_not_given(ask, tokenizer, document):
    text = document(60, 3)
    for longest in (1, 3):
        for answer in ask(QUESTION, text, max_answer_len=longest, top_k=6):
            assert 1 <= token_count(tokenizer, answer["answer"]) <= longest


def test_lengths_of_the_windows(ask, question_model, tokenizer, document):
    lengths = []
    question_model.register_forward_pre_hook(
        lambda module, arguments, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    text = document(200)
    ask(QUESTION, text)
    assert max(lengths) == 48 and len(lengths) > 4
    lengths.clear()
    ask(QUESTION, text, max_seq_len=20, stride=3)
    assert max(lengths) == 20 and len(lengths) == 1 + math.ceil((token_count(tokenizer, text) - 13) / 10)
    lengths.clear()
    tokenizer.model_max_length, before = 30, tokenizer.model_max_length
    ask(QUESTION, text)
    tokenizer.model_max_length = before
    assert max(lengths) == 30


def test_the_tokenizer_marks_the_question_and_so_does_the_pipeline_without_it(
    question_model, tokenizer, long_tokenizer, document
):
    if "global_attention_mask" not in inspect.signature(question_model.forward).parameters:
        pytest.skip("the model takes no global attention mask")
    masks = []
    question_model.register_forward_pre_hook(
        lambda module, arguments, inputs: masks.append(inputs["global_attention_mask"].tolist()), with_kwargs=True
    )
    text = document(60)
    answers = []
    for one in (tokenizer, long_tokenizer):
        ask = LongQuestionAnsweringPipeline(model=question_model, tokenizer=one, device="cpu")
        answers.append(ask(QUESTION, text))
    assert answers[0] == answers[1]
    assert masks[: len(masks) // 2] == masks[len(masks) // 2 :]
    assert all(sum(row) == 6 and row[:6] == [1] * 6 for mask in masks for row in mask)


def test_dropout_is_off_even_for_a_model_in_training(bert, tokenizer, document):
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=tokenizer, device="cpu")
    text = document(40)
    wanted = ask(QUESTION, text)
    bert.train()
    bert.qa_outputs.eval()
    assert ask(QUESTION, text) == wanted
    assert bert.training and not bert.qa_outputs.training


def test_half_precision_runs(bert, tokenizer, document):
    ask = LongQuestionAnsweringPipeline(model=bert.to(torch.bfloat16), tokenizer=tokenizer, device="cpu")
    answer = ask(QUESTION, document(60), batch_size=2)
    assert 0 < answer["score"] <= 1


def test_made_by_name_from_a_saved_folder(ask, long_tokenizer, document, tmp_path):
    text = document(100)
    wanted = ask(QUESTION, text)
    ask.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    again = pipeline("long-question-answering", model=str(tmp_path), device="cpu", max_answer_len=5)
    assert type(again) is LongQuestionAnsweringPipeline
    assert again(QUESTION, text, max_answer_len=64) == wanted
    assert again(QUESTION, text) == ask(QUESTION, text, max_answer_len=5)

    LongQuestionAnsweringPipeline(model=ask.model, tokenizer=long_tokenizer, device="cpu").save_pretrained(tmp_path)
    assert pipeline("long-question-answering", model=str(tmp_path), device="cpu")(QUESTION, text) == wanted


def test_registering_twice_is_silent(caplog):
    longspan.pipelines.register_pipelines()
    assert "already registered" not in caplog.text


BAD = {
    "no question": ((), {"context": "law"}, "question is missing"),
    "no context": (
        (QUESTION,),
        {},
        r"context is missing: wanted a document beside the question 'which law governs \?'",
    ),
    "empty question": ((" ", "law"), {}, "question must hold some text, got ' '"),
    "empty context": ((QUESTION, ""), {}, "context must hold some text, got ''"),
    "only dropped characters": ((QUESTION, "\u200b\u0000"), {}, "context holds nothing but spaces"),
    "question of wrong type": ((3, "law"), {}, "question must be a str, got int"),
    "context of wrong type": ((QUESTION, 3.5), {}, "context must be a str, got float"),
    "missing key": (({"question": QUESTION},), {}, r"context missing: wanted question and context, got \['question'\]"),
    "wrong keys": (({"query": "x", "text": "y"},), {}, "question and context missing"),
    "bad item of a list": (
        ([{"question": QUESTION, "context": "law"}, {"question": QUESTION, "context": ""}],),
        {},
        r"inputs\[1\]: context must hold some text",
    ),
    "a list of questions without a context": (([QUESTION],), {}, r"inputs\[0\]: context is missing"),
    "neither dict nor text": ((7,), {}, "wanted a dict with the keys question and context, got int"),
    "unequal lists": (([QUESTION] * 2, ["law"] * 3), {}, "got 2 questions and 3 contexts"),
    "question twice": ((QUESTION, "law"), {"question": QUESTION}, "question was given twice"),
    "question longer than a window": (
        ("which law " * 30, "law " * 60),
        {},
        "the question with its separators takes 63 tokens and leaves no room .* in windows of 48 tokens",
    ),
    "window beyond the positions": ((QUESTION, "law"), {"max_seq_len": 49}, "max_seq_len must be at most 48.*got 49"),
    "window of no tokens": (
        (QUESTION, "law"),
        {"max_seq_len": 0},
        "max_seq_len must be an integer of at least 1, got 0",
    ),
    "stride as long as a window": (
        (QUESTION, "law " * 60),
        {"stride": 41},
        "stride must be smaller than the 41 document tokens",
    ),
    "negative stride": ((QUESTION, "law"), {"stride": -1}, "stride must be an integer of at least 0, got -1"),
    "no answers": ((QUESTION, "law"), {"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
    "half an answer": ((QUESTION, "law"), {"max_answer_len": 0.5}, "max_answer_len must be an integer .* got 0.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(bert, tokenizer, name):
    arguments, options, message = BAD[name]
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=tokenizer, device="cpu")
    with pytest.raises(ValueError, match=message):
        ask(*arguments, **options)


def test_a_model_without_start_and_end_is_refused(class_model, tokenizer):
    ask = LongQuestionAnsweringPipeline(
        model=class_model, tokenizer=tokenizer, task="long-question-answering", device="cpu"
    )
    with pytest.raises(ValueError, match=r"model must return start_logits and end_logits .* has no start_logits"):
        ask(QUESTION, "law")


def test_logits_that_are_not_finite_are_reported(bert, tokenizer):
    with torch.no_grad():
        bert.qa_outputs.bias.fill_(float("nan"))
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=tokenizer, device="cpu")
    with pytest.raises(ValueError, match="returned no finite logit"):
        ask(QUESTION, "law", handle_impossible_answer=True)


def test_a_tokenizer_is_needed(bert):
    with pytest.raises(ValueError, match=r"tokenizer must be one that runs on `tokenizers`.*got None"):
        LongQuestionAnsweringPipeline(model=bert, device="cpu")


def test_a_real_vocabulary(bert, minilm):
    """Offsets with the word pieces of bert-base-uncased, which lower-case and strip accents."""
    real = transformers.AutoTokenizer.from_pretrained(minilm)
    bert.resize_token_embeddings(len(real))
    with torch.no_grad():
        bert.get_input_embeddings().weight.normal_()
    ask = LongQuestionAnsweringPipeline(model=bert, tokenizer=real, device="cpu")
    text = "  «Ce contrat» — l’État de Nouveau-Brunswick, 法律 §12.3 🙂 e\u0301te\u0301 \u00a0 ﬁn İstanbul\n" * 12
    answers = ask("Quelle loi s'applique ?", text, top_k=20, max_answer_len=6)
    assert len(answers) == 20
    for answer in answers:
        assert text[answer["start"] : answer["end"]] == answer["answer"] == answer["answer"].strip() != ""


def test_importing_longspan_makes_the_tasks_known():
    script = (
        "import longspan; from transformers.pipelines import get_supported_tasks as tasks; "
        "print({'long-question-answering', 'long-text-classification'} <= set(tasks()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"
