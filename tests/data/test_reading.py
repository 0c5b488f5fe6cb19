"""Questions as tokens: readings at true positions, short windows, several questions at once."""

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import TokenizersBackend

from longspan.data.reading import ShortWindows, encode_questions
from longspan.data.several import QuestionGroup, SeveralQuestionWindows, group_questions

WORDS = [f"w{number}" for number in range(600)]


def word_tokenizer():
    """One token per word, framed as BERT frames a pair."""
    vocabulary = {
        word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "what", *WORDS])
    }
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return TokenizersBackend(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def row(name, first, last, *, length=600, question="who", shift=0):
    words = [WORDS[(place + shift) % 600] for place in range(length)]
    start = sum(len(word) + 1 for word in words[:first])
    text = " ".join(words[first : last + 1])
    answers = {"text": [text, "other"], "answer_start": [start, 0]}
    return {"id": name, "family": "f", "question": question, "context": " ".join(words), "answers": answers}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def questions(tokenizer):
    rows = [row("early", 3, 5), row("late", 590, 593, shift=1), row("short", 20, 21, length=120, shift=2)]
    return encode_questions(rows, tokenizer, first_position=1)


def test_a_reading_stands_at_its_true_place(questions, tokenizer):
    late = questions[1]
    assert (late.first, late.last, late.length, late.special) == (590, 593, 600, 4)
    assert late.accepted == [late.context[late.offsets[590, 0] : late.offsets[593, 1]], "other"]
    whole, window = late.reading(0, 600), late.reading(500, 600)
    assert tokenizer.decode(whole["input_ids"][:5]) == "[CLS] who [SEP] w1 w2"
    assert whole["input_ids"] == tokenizer(late.question, late.context)["input_ids"]
    assert whole["position_ids"] == list(range(1, 605))
    assert window["input_ids"] == whole["input_ids"][:3] + whole["input_ids"][503:]
    assert window["position_ids"] == whole["position_ids"][:3] + whole["position_ids"][503:]
    assert window["global_attention_mask"] == [1] * 3 + [0] * 101
    assert window["token_type_ids"] == [0] * 3 + [1] * 101


def test_cut_questions(questions):
    early, late, _ = questions
    assert early.cut(46).length == 46
    assert early.cut(46).reading(0, 46) == early.reading(0, 46)
    with pytest.raises(ValueError, match="late ends at token 593, after the 46"):
        late.cut(46)


def test_short_windows(questions):
    windows = ShortWindows(questions, batch_size=2, batches=60, shortest=20, longest=100, seed=3)
    items = [windows[index] for index in range(len(windows))]
    by_answer = {tuple(q.document[q.first : q.last + 1].tolist()): q for q in questions}
    places, sizes = [], []
    for item in items:
        first, last = item["start_positions"], item["end_positions"]
        question = by_answer[tuple(item["input_ids"][first : last + 1])]  # the answer is in the window, whole
        assert item["position_ids"][first] == 1 + 3 + question.first  # at its true place
        places.append(first / len(item["input_ids"]))
        sizes.append(len(item["input_ids"]))
    assert sizes[::2] == sizes[1::2]  # one length per batch
    assert min(sizes) >= 20 and max(sizes) <= 100 and len(set(sizes)) > 20
    assert min(places) < 0.3 and max(places) > 0.7
    assert sum(sizes) == windows.tokens
    counts = [sum(item["position_ids"][item["start_positions"]] == 4 + q.first for item in items) for q in questions]
    assert counts == [40, 40, 40]


def test_short_windows_depend_on_seed_and_index_alone(questions):
    make = lambda seed: ShortWindows(questions, batch_size=2, batches=9, shortest=20, longest=90, seed=seed)  # noqa: E731
    one, other = make(0), make(0)
    backwards = [one[index] for index in reversed(range(18))][::-1]
    assert backwards == [other[index] for index in range(18)]
    assert backwards != [make(1)[index] for index in range(18)]
    with pytest.raises(IndexError):
        one[18]


def test_a_window_is_never_longer_than_its_document_nor_shorter_than_its_answer(questions):
    windows = ShortWindows(questions, batch_size=1, batches=30, shortest=5, longest=5, seed=0)
    for item in (windows[index] for index in range(30)):
        assert item["end_positions"] < len(item["input_ids"]) - 1
    windows = ShortWindows(questions, batch_size=3, batches=3, shortest=500, longest=500, seed=0)
    assert {len(windows[index]["input_ids"]) for index in range(9)} == {124}  # the short document's length


def test_bad_windows(questions):
    with pytest.raises(ValueError, match="at least one question"):
        ShortWindows([], batch_size=1, batches=1, shortest=1, longest=2, seed=0)
    with pytest.raises(ValueError, match="shortest=9, longest=2"):
        ShortWindows(questions, batch_size=1, batches=1, shortest=9, longest=2, seed=0)
    with pytest.raises(ValueError, match="most must be at least 1"):
        SeveralQuestionWindows(questions, windows=1, shortest=1, longest=2, most=0, seed=0)


@pytest.fixture(scope="module")
def same_document(tokenizer):
    names = [row(f"q{n}", n * 100, n * 100 + 2, question="what who" if n % 2 else "who") for n in range(6)]
    return encode_questions([*names, row("other", 5, 6, shift=9)], tokenizer)


def test_groups(same_document):
    groups = group_questions(same_document, 4)
    assert [[q.name for q in group.questions] for group in groups] == [
        ["q0", "q1", "q2", "q3"],
        ["q4", "q5"],
        ["other"],
    ]


def test_a_group_asks_its_questions_one_after_the_other(same_document, tokenizer):
    group = QuestionGroup(tuple(same_document[:2]))
    reading = group.reading(100, 104)
    assert tokenizer.decode(reading["input_ids"]) == "[CLS] who [SEP] what who [SEP] w100 w101 w102 w103 [SEP]"
    assert reading["question_index"] == [-1, 0, 0, 1, 1, 1, -1, -1, -1, -1, -1]
    assert reading["position_ids"] == [*range(6), *range(106, 111)]
    assert reading["global_attention_mask"] == [1] * 6 + [0] * 5
    assert (group.before, group.special, group.length) == (6, 7, 600)


def test_windows_with_several_questions(same_document):
    windows = SeveralQuestionWindows(same_document, windows=70, shortest=150, longest=450, most=3, seed=1)
    counts = []
    for item in (windows[index] for index in range(70)):
        counts.append(len(item["start_positions"]))
        assert max(item["question_index"]) + 1 == counts[-1] == len(item["end_positions"])
        for number, (first, last) in enumerate(zip(item["start_positions"], item["end_positions"], strict=True)):
            place = item["position_ids"][first] - sum(index >= 0 for index in item["question_index"]) - 1
            asked = [q for q in same_document if q.first == place and q.last - q.first == last - first]
            length = sum(index == number for index in item["question_index"])
            assert length == len(asked[0].prefix) - 1  # the question that this answer belongs to
    assert set(counts) == {1, 2, 3}
    again = SeveralQuestionWindows(same_document, windows=70, shortest=150, longest=450, most=3, seed=1)
    assert again[69] == windows[69]
