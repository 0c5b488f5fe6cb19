import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizer,
    RobertaTokenizer,
    Trainer,
    TrainingArguments,
)

from longspan import LongformerConfig, LongformerForQuestionAnswering
from longspan.data.collators import LongDocumentCollator
from longspan.longformer.tokenization_longformer import (
    LongformerTokenizer,
    mark_global_tokens,
    to_longformer_tokenizer,
)

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] which law governs this agreement is by the state of new york ? . ##s"
QUESTIONS = ["which law governs ?", "which state ?"]
DOCUMENTS = [
    "this agreement is by the law of new york . the state governs .",
    "new york is the state of this agreement . which law is this ? the law of the state of new york .",
]


def word_piece():
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS.split())}, model_max_length=32)


def byte_pair():
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(QUESTIONS + DOCUMENTS, vocab_size=300, special_tokens=special, show_progress=False)
    model = json.loads(trained._tokenizer.to_str())["model"]
    merges: Any = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=32)


KINDS = {"word-piece": word_piece, "byte-pair": byte_pair}


@pytest.fixture(params=KINDS, scope="module")
def plain(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def tokenizer(plain):
    return to_longformer_tokenizer(plain, 64)


def expected_mask(ids, question_ids, tokenizer):
    """Read off the ids alone: the classification token, the question and the separators behind it."""
    ids = list(ids)
    begin = ids.index(tokenizer.cls_token_id)
    end = begin + 1 + len(question_ids)
    assert ids[begin + 1 : end] == list(question_ids)
    while ids[end] == tokenizer.sep_token_id:
        end += 1
    return [int(begin <= position < end) for position in range(len(ids))]


def rows(values):
    return values.tolist() if hasattr(values, "tolist") else values


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tensors", [None, "pt", "np"])
@pytest.mark.parametrize("overflow", [False, True], ids=["whole", "overflowing"])
def test_a_pair_marks_the_question_and_its_separators(tokenizer, side, tensors, overflow):
    options = {"padding": True, "padding_side": side, "return_tensors": tensors}
    if overflow:
        options |= {"truncation": "only_second", "max_length": 20, "stride": 4, "return_overflowing_tokens": True}
    encoded = tokenizer(QUESTIONS, DOCUMENTS, return_offsets_mapping=True, **options)

    samples = rows(encoded["overflow_to_sample_mapping"]) if overflow else [0, 1]
    assert len(samples) > 2 or not overflow
    assert type(encoded["global_attention_mask"]) is type(encoded["input_ids"])
    masks, ids = rows(encoded["global_attention_mask"]), rows(encoded["input_ids"])
    for mask, row, sample in zip(masks, ids, samples, strict=True):
        question = tokenizer(QUESTIONS[sample], add_special_tokens=False)["input_ids"]
        assert mask == expected_mask(row, question, tokenizer)
    assert any(row[0] == tokenizer.pad_token_id for row in ids) == (side == "left")


def test_a_single_text_marks_its_first_token(tokenizer):
    encoded = tokenizer(DOCUMENTS[0])
    assert encoded["global_attention_mask"] == [1] + [0] * (len(encoded["input_ids"]) - 1)
    batch = tokenizer(DOCUMENTS, padding="max_length", max_length=64, padding_side="left", return_tensors="pt")
    first = batch["attention_mask"].argmax(1)
    assert torch.equal(batch["global_attention_mask"], torch.nn.functional.one_hot(first, 64))


def test_one_pair_comes_without_a_batch_dimension_unless_tensors_are_asked_for(tokenizer):
    encoded = tokenizer(QUESTIONS[0], DOCUMENTS[0])
    assert encoded["global_attention_mask"][0] == 1 and encoded["global_attention_mask"][-1] == 0
    tensors = tokenizer(QUESTIONS[0], DOCUMENTS[0], return_tensors="pt")
    assert tensors["global_attention_mask"].tolist() == [encoded["global_attention_mask"]]


def test_ids_and_offsets_are_those_of_the_plain_tokenizer(plain, tokenizer):
    for texts in ((QUESTIONS, DOCUMENTS), (DOCUMENTS[1], None), ("Naïve «law» 法律 🙂?", " the  state ")):
        ours = tokenizer(*texts, return_offsets_mapping=True, return_special_tokens_mask=True)
        theirs = plain(*texts, return_offsets_mapping=True, return_special_tokens_mask=True)
        assert set(ours) == {*theirs, "global_attention_mask"}
        assert all(ours[name] == theirs[name] for name in theirs)


def test_pad_gives_the_mask_zeros_on_the_side_of_the_padding(tokenizer):
    features = [tokenizer(question, document) for question, document in zip(QUESTIONS, DOCUMENTS, strict=True)]
    missing = len(features[1]["input_ids"]) - len(features[0]["input_ids"])
    assert missing > 0
    mask = features[0]["global_attention_mask"]
    for side, wanted in (("right", mask + [0] * missing), ("left", [0] * missing + mask)):
        padded = tokenizer.pad([dict(f) for f in features], padding_side=side, return_tensors="pt")
        assert padded["global_attention_mask"].tolist() == [wanted, features[1]["global_attention_mask"]]
        assert ((padded["attention_mask"] == 1) | (padded["global_attention_mask"] == 0)).all()


def test_pad_keeps_masks_that_say_minus_one_for_local(tokenizer):
    features = [
        {"input_ids": [5, 6], "global_attention_mask": [1, -1]},
        {"input_ids": [5], "global_attention_mask": [1]},
    ]
    assert tokenizer.pad(features)["global_attention_mask"] == [[1, -1], [1, 0]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("collator", [DataCollatorWithPadding, LongDocumentCollator])
def test_collators_carry_the_mask(plain, collator, side):
    tokenizer = to_longformer_tokenizer(plain)
    tokenizer.padding_side = side
    features = [dict(tokenizer(question, document)) for question, document in zip(QUESTIONS, DOCUMENTS, strict=True)]
    batch = collator(tokenizer)(features)
    for row, feature in enumerate(features):
        real = batch["attention_mask"][row].bool()
        assert batch["global_attention_mask"][row][real].tolist() == feature["global_attention_mask"]
        assert batch["global_attention_mask"][row][~real].sum() == 0


def test_the_mask_reaches_the_model_through_trainer(plain, tmp_path):
    datasets = pytest.importorskip("datasets")
    tokenizer = to_longformer_tokenizer(plain)
    table = datasets.Dataset.from_dict({"question": QUESTIONS, "context": DOCUMENTS, "note": ["a", "b"]})
    table = table.map(
        lambda rows: {
            **tokenizer(rows["question"], rows["context"], return_offsets_mapping=True),
            "start_positions": [6, 6],
            "end_positions": [7, 7],
        },
        batched=True,
    )
    config = LongformerConfig(
        vocab_size=400,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        attention_window=8,
    )
    model = LongformerForQuestionAnswering(config)
    seen = []
    model.register_forward_pre_hook(lambda module, positional, named: seen.append(named), with_kwargs=True)
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=table, data_collator=LongDocumentCollator(tokenizer)).train()
    (inputs,) = seen
    assert inputs["input_ids"].shape == inputs["global_attention_mask"].shape
    wanted = {tuple(row) for row in table["global_attention_mask"]}
    masks = zip(inputs["global_attention_mask"], inputs["attention_mask"], strict=True)
    assert {tuple(mask[attention.bool()].tolist()) for mask, attention in masks} == wanted


def test_other_rules_for_what_is_global(plain):
    pair = (QUESTIONS[0], DOCUMENTS[0])
    first = to_longformer_tokenizer(plain)(*pair)["global_attention_mask"]
    second = to_longformer_tokenizer(plain, global_tokens="second_sequence")(*pair)["global_attention_mask"]
    token = to_longformer_tokenizer(plain, global_tokens="first_token")(*pair)["global_attention_mask"]
    assert [a + b for a, b in zip(first, second, strict=True)] == [1] * len(first)
    assert token == [1] + [0] * (len(first) - 1)
    with pytest.raises(ValueError, match=r"global_tokens must be one of .*'first_token'.*got 'question'"):
        rule: Any = "question"
        to_longformer_tokenizer(plain, global_tokens=rule)


def test_the_mask_can_be_left_out(tokenizer):
    assert "global_attention_mask" not in tokenizer(DOCUMENTS, return_global_attention_mask=False)
    silent = to_longformer_tokenizer(tokenizer)
    silent.model_input_names.remove("global_attention_mask")
    assert "global_attention_mask" not in silent(DOCUMENTS)
    assert "global_attention_mask" in silent(DOCUMENTS, return_global_attention_mask=True)


def test_mark_global_tokens_by_hand():
    ids = [None, None, 0, 0, None, None, 1, 1, None]  # padding, <s>, question, </s></s>, document, </s>
    attention = [0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert mark_global_tokens(ids, attention) == [0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert mark_global_tokens(ids, attention, "second_sequence") == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    assert mark_global_tokens(ids, attention, "first_token") == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert mark_global_tokens([0, 0, 0]) == [1, 0, 0]
    assert mark_global_tokens([None, None], [0, 0]) == [0, 0]
    assert mark_global_tokens([]) == []


def test_conversion_keeps_the_vocabulary_and_the_tokenizer_it_came_from(plain):
    plain.truncation_side = "left"
    plain(DOCUMENTS, truncation=True, padding="max_length", max_length=8)  # leaves its state behind in the backend
    long = to_longformer_tokenizer(plain, 4096)
    assert (long.model_max_length, plain.model_max_length) == (4096, 32)
    assert long.truncation_side == "left"
    assert long.backend_tokenizer.truncation is None and long.backend_tokenizer.padding is None
    assert len(long(" ".join(DOCUMENTS))["input_ids"]) > 8
    assert long.get_vocab() == plain.get_vocab()
    assert long.special_tokens_map == plain.special_tokens_map
    assert long("the [MASK]<mask> law")["input_ids"] == plain("the [MASK]<mask> law")["input_ids"]
    again = to_longformer_tokenizer(long)
    assert again.model_max_length == 4096
    assert again.model_input_names.count("global_attention_mask") == 1
    plain.truncation_side = "right"


def test_extra_special_tokens_come_along(plain):
    grown = to_longformer_tokenizer(plain)
    grown.add_special_tokens({"extra_special_tokens": ["<definition>"]})
    again = to_longformer_tokenizer(grown, 128)
    assert again.extra_special_tokens == ["<definition>"]
    assert again("<definition> law")["input_ids"] == grown("<definition> law")["input_ids"]
    assert len(again("<definition>", add_special_tokens=False)["input_ids"]) == 1


def test_conversion_refuses_what_it_cannot_use(plain):
    with pytest.raises(ValueError, match="max_length must be a positive number of tokens or None, got 0"):
        to_longformer_tokenizer(plain, 0)

    class Letters(PreTrainedTokenizer):
        @property
        def vocab_size(self):
            return 26

        def get_vocab(self):
            return {}

    with pytest.raises(ValueError, match=r"tokenizer must be one that runs on `tokenizers`.*got Letters"):
        letters: Any = Letters()
        to_longformer_tokenizer(letters)


@pytest.fixture
def folder(tmp_path):
    """A saved Longformer folder, yet without a tokenizer."""
    config = LongformerConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    return tmp_path


def test_auto_tokenizer_finds_ours_in_a_saved_folder(tokenizer, folder):
    saved = to_longformer_tokenizer(tokenizer, 1000, global_tokens="first_token")
    saved.padding_side = "left"
    saved.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is LongformerTokenizer
    assert (loaded.model_max_length, loaded.padding_side, loaded.global_tokens) == (1000, "left", "first_token")
    assert dict(loaded(QUESTIONS, DOCUMENTS)) == dict(saved(QUESTIONS, DOCUMENTS))


def test_auto_tokenizer_finds_a_plain_tokenizer(plain, folder):
    plain.save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert dict(loaded(QUESTIONS, DOCUMENTS)) == dict(plain(QUESTIONS, DOCUMENTS))
    ours = LongformerTokenizer.from_pretrained(folder)
    assert dict(ours(QUESTIONS, DOCUMENTS)) == dict(to_longformer_tokenizer(plain)(QUESTIONS, DOCUMENTS))


def test_auto_tokenizer_finds_a_lone_vocabulary(plain, folder):
    plain.backend_tokenizer.save(str(folder / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded) is LongformerTokenizer
    assert dict(loaded(QUESTIONS, DOCUMENTS)) == dict(to_longformer_tokenizer(plain)(QUESTIONS, DOCUMENTS))
    assert (loaded.pad_token, loaded.cls_token) == (plain.pad_token, plain.cls_token)
    assert len({len(row) for row in loaded(DOCUMENTS, padding=True)["input_ids"]}) == 1


def test_a_vocabulary_built_with_tokenizers_serves_as_it_is(plain):
    backend = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    ours = LongformerTokenizer(tokenizer_object=backend, model_max_length=50)
    assert dict(ours(QUESTIONS, DOCUMENTS)) == dict(to_longformer_tokenizer(plain)(QUESTIONS, DOCUMENTS))


def test_without_longspan_the_folder_loads_as_a_plain_tokenizer_with_the_same_ids(tmp_path):
    long = to_longformer_tokenizer(word_piece(), 64)
    long.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "longspan_longformer"}')
    script = (
        "from transformers import AutoTokenizer; import json, sys; "
        "t = AutoTokenizer.from_pretrained(sys.argv[1]);"
        "print(json.dumps([type(t).__name__, t(sys.argv[2]).input_ids]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), DOCUMENTS[0]],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert json.loads(run.stdout) == ["TokenizersBackend", long(DOCUMENTS[0])["input_ids"]]


def test_pretokenized_words(tokenizer):
    encoded = tokenizer([["which", "law"]], [["the", "law", "of", "york"]], is_split_into_words=True)
    ids = encoded.sequence_ids(0)
    assert encoded["global_attention_mask"][0] == [int(position < ids.index(1)) for position in range(len(ids))]
