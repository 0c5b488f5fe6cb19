import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, TokenizersBackend

import longspan  # registers the class
from longspan import ReformerConfig
from longspan.reformer.tokenization_reformer import LongspanReformerTokenizer, ReformerTokenizer

TEXTS = [
    "On an exceptionally hot evening early in July a young man came out of the garret in which he lodged.",
    "He had successfully avoided meeting his landlady on the staircase.\nHis garret was under the roof.",
    "“He was so badly dressed,” she said — that même day.",
]
BYTES = ReformerTokenizer.byte_level()


@pytest.fixture(scope="module")
def pieces():
    return ReformerTokenizer.train(TEXTS, vocab_size=120)


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_text_is_its_utf8_plus_two_and_comes_back(text):
    ids = BYTES(text).input_ids
    assert ids == [byte + 2 for byte in text.encode()] == BYTES.encode_bytes(text.encode())
    assert BYTES.decode(ids) == text
    assert BYTES.decode_bytes(ids) == text.encode()


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_bytes_come_back(data):
    assert BYTES.decode_bytes(BYTES.encode_bytes(data)) == data
    assert BYTES.decode_bytes(torch.tensor([0, *BYTES.encode_bytes(data), 1, 0])) == data, (
        "padding and ends are no bytes"
    )


def test_bytes_of_no_text_decode_with_replacements():
    assert BYTES.decode(BYTES.encode_bytes(b"a\xff\xc3")) == "a��"


@pytest.mark.parametrize("text", ["a <pad> b", "</s>", "<unk>", "▁ Ġ", " lead", "trail  ", "\n\n", "\x00", ""])
def test_names_of_special_tokens_in_a_text_are_text(text):
    assert BYTES.decode_bytes(BYTES(text).input_ids) == text.encode()


def test_sizes_and_special_tokens(pieces):
    assert len(BYTES) == BYTES.vocab_size == 258
    assert (BYTES.pad_token_id, BYTES.eos_token_id, BYTES.unk_token_id) == (0, 1, None)
    assert len(pieces) == 120
    assert (pieces.pad_token_id, pieces.unk_token_id, pieces.eos_token_id) == (0, 1, 2)


def test_the_default_size_is_the_published_one():
    corpus = [f"{TEXTS[n % 3]} {n} {n * 7919 % 1013}" for n in range(300)]
    trained = ReformerTokenizer.train(corpus)
    assert len(trained) == 320 == ReformerConfig().vocab_size
    assert trained.model_max_length == 524288


def test_pieces_join_letters_and_come_back(pieces):
    for text in [*TEXTS, " the garret  in July\n\n", "he had"]:
        ids = pieces(text).input_ids
        assert pieces.decode(ids) == text
        assert len(ids) < len(text)
    assert any(piece.startswith(" ") and len(piece) > 2 for piece in pieces.vocab), "a space belongs to its word"
    ids = pieces("漢 he").input_ids
    assert ids[0] == pieces.unk_token_id and pieces.unk_token_id not in ids[1:]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_on_either_side(kind, side, pieces):
    tokenizer = BYTES if kind == "bytes" else pieces
    texts = ["he was", "a young man"]
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    for row, text in enumerate(texts):
        alone = tokenizer(text).input_ids
        assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == alone
        padding = batch.input_ids.shape[1] - len(alone)
        assert batch.attention_mask[row].tolist() == (
            [0] * padding + [1] * len(alone) if side == "left" else [1] * len(alone) + [0] * padding
        )
        assert tokenizer.decode(batch.input_ids[row], skip_special_tokens=True) == text
    padded = tokenizer.pad({"input_ids": [[5, 6], [7]]}, padding_side=side, pad_to_multiple_of=4)
    assert [len(ids) for ids in padded["input_ids"]] == [4, 4]


def test_truncation_and_windows():
    text = "0123456789"
    assert BYTES(text, truncation=True, max_length=4).input_ids == BYTES("0123").input_ids
    left = ReformerTokenizer.byte_level(truncation_side="left")
    assert left(text, truncation=True, max_length=4).input_ids == BYTES("6789").input_ids
    windows = BYTES(text, truncation=True, max_length=4, stride=1, return_overflowing_tokens=True).input_ids
    assert [BYTES.decode(ids) for ids in windows] == ["0123", "3456", "6789"]
    assert BYTES.model_max_length == 65536


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_offsets_are_characters(kind, pieces):
    tokenizer = BYTES if kind == "bytes" else pieces
    text = "“He was — that même day"
    encoded = tokenizer(text, return_offsets_mapping=True)
    if kind == "bytes":
        expected = [(n, n + 1) for n, character in enumerate(text) for _ in character.encode()]
        assert [tuple(span) for span in encoded.offset_mapping] == expected
    else:
        assert "".join(text[begin:end] for begin, end in encoded.offset_mapping) == text


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_found_by_auto_tokenizer(kind, pieces, tmp_path):
    tokenizer = BYTES if kind == "bytes" else pieces
    ReformerConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, LongspanReformerTokenizer)
    text = "a <pad> même garret </s>"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.pad_token_id == 0 and loaded.eos_token == tokenizer.eos_token
    assert loaded.model_max_length == tokenizer.model_max_length
    loaded.save_pretrained(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again")(text).input_ids == tokenizer(text).input_ids
    if kind == "bytes":
        assert loaded.decode_bytes(loaded.encode_bytes(b"\xff\x00")) == b"\xff\x00"


def test_loads_without_longspan(pieces, tmp_path):
    text = "a <pad> même garret"
    for name, tokenizer in (("bytes", BYTES), ("pieces", pieces)):
        tokenizer.save_pretrained(tmp_path / name)
        assert TokenizersBackend.from_pretrained(tmp_path / name)(text).input_ids == tokenizer(text).input_ids
    code = f"""
from transformers import AutoTokenizer
for name in ("bytes", "pieces"):
    print(AutoTokenizer.from_pretrained({str(tmp_path)!r} + "/" + name)({text!r}).input_ids)
"""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=offline)
    assert run.stdout.splitlines() == [str(tokenizer(text).input_ids) for tokenizer in (BYTES, pieces)]


def test_language_modelling_collator():
    collate = DataCollatorForLanguageModeling(BYTES, mlm=False)
    batch = collate([BYTES("he"), BYTES("a young man")])
    assert batch["labels"][0].tolist() == BYTES("he").input_ids + [-100] * 9


def test_errors_tell_the_mend(pieces):
    with pytest.raises(ValueError, match=r"tokens are not bytes.*byte_level"):
        pieces.encode_bytes(b"abc")
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 258\), got 258"):
        BYTES.decode_bytes([3, 258])
    with pytest.raises(ValueError, match="several strings, got one"):
        ReformerTokenizer.train("one text")
    with pytest.raises(ValueError, match="vocab_size must exceed the 3 special tokens, got 3"):
        ReformerTokenizer.train(TEXTS, vocab_size=3)


def test_public_name():
    assert longspan.ReformerTokenizer is ReformerTokenizer
