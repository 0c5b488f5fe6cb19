"""Ids of published vocabularies are those of the file they were read from; texts come back as they were."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, TokenizersBackend

from longspan.adaptive_span.tokenization_adaptive_span import AdaptiveSpanTokenizer, LongspanAdaptiveSpanTokenizer

TEXT = "<page>\n  é on a line\n\nend\n"
BYTES = AdaptiveSpanTokenizer.byte_level()


def as_numbers(text):
    """As the script that prepares enwik8 writes it: numbers and blanks, and newlines as they are."""
    return " ".join("\n" if byte == 10 else str(byte) for byte in text.encode())


def as_characters(text):
    """As the script that prepares text8 writes it."""
    return " ".join("_" if character == " " else character for character in text)


@pytest.fixture
def from_text(tmp_path):
    def make(content, protocol, **options):
        path = tmp_path / "train.txt"
        path.write_text(content, newline="\n")
        return AdaptiveSpanTokenizer.from_training_file(path, protocol, **options)

    return make


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_text_is_its_bytes(text):
    ids = BYTES(text).input_ids
    assert ids == [byte + 2 for byte in text.encode()] == BYTES.encode_bytes(text.encode())
    assert BYTES.decode(ids) == text
    assert BYTES.decode_bytes(torch.tensor([0, *ids, 1])) == text.encode()


def test_all_bytes():
    assert len(BYTES) == 258
    assert (BYTES.pad_token_id, BYTES.eos_token_id, BYTES.unk_token_id) == (0, 1, None)
    assert BYTES.decode_bytes(BYTES.encode_bytes(bytes(range(256)))) == bytes(range(256))
    text = "a <pad> b</s>"
    assert BYTES(text).input_ids == [byte + 2 for byte in text.encode()]
    padded = BYTES(["ab", "a"], padding=True, padding_side="left")
    assert padded.input_ids == [[99, 100], [0, 99]] and padded.attention_mask == [[1, 1], [0, 1]]
    offsets = BYTES("é!", return_offsets_mapping=True).offset_mapping
    assert offsets == [(0, 1), (0, 1), (1, 2)]


def test_bytes_are_numbered_as_they_first_appear(from_text):
    tokenizer = from_text(as_numbers(TEXT), "bytes")
    order = list(dict.fromkeys(TEXT.encode()))
    assert len(tokenizer) == len(order)
    assert tokenizer(TEXT).input_ids == [order.index(byte) for byte in TEXT.encode()]
    assert tokenizer.encode_bytes(TEXT.encode()) == tokenizer(TEXT).input_ids
    assert tokenizer.eos_token_id == order.index(10) == 6  # "<page>" has six symbols, and then ends the first line
    assert tokenizer.pad_token_id is None
    assert tokenizer.decode(tokenizer(TEXT).input_ids, skip_special_tokens=True) == TEXT
    assert tokenizer.decode_bytes(tokenizer(TEXT).input_ids) == TEXT.encode()


def test_file_and_text_give_the_same_ids(from_text, tmp_path):
    for protocol, write in (("bytes", as_numbers), ("characters", as_characters), ("words", str)):
        text = TEXT if protocol == "bytes" else "on a line\n\nand a line\n"
        tokenizer = from_text(write(text), protocol)
        ids = tokenizer.encode_file(tmp_path / "train.txt")
        assert ids.dtype == torch.int64
        whole = write(text)
        if not whole.endswith("\n"):  # the last line of a file ends there too
            text += "\n"
        assert ids.tolist() == tokenizer(text).input_ids
        assert tokenizer.decode(ids).split() == text.split()


def test_characters(from_text):
    tokenizer = from_text(as_characters("ab ba c"), "characters")
    assert tokenizer("a cab\n").input_ids == [0, 2, 3, 0, 1, 4]
    assert tokenizer.decode([0, 2, 3, 0, 1, 4]) == "a cab\n"
    assert tokenizer.eos_token_id == 4


def test_words(from_text):
    text = "the cat\nthe dog and the <unk>\n"
    assert from_text(text, "words")("dog the cat\n").input_ids == [3, 0, 1, 2]
    tokenizer = from_text(text, "words", by_frequency=True)
    assert tokenizer("the \n cat").input_ids == [0, 1, 2]
    assert tokenizer("the bird").input_ids == [0, tokenizer.unk_token_id] == [0, 5]


def test_without_line_ends(from_text):
    tokenizer = from_text(as_numbers(TEXT), "bytes", line_ends=False)
    order = list(dict.fromkeys(TEXT.replace("\n", "").encode()))
    assert len(tokenizer) == len(order)
    assert tokenizer(TEXT).input_ids == [order.index(byte) for byte in TEXT.encode() if byte != 10]
    assert tokenizer.encode_bytes(TEXT.encode()) == tokenizer(TEXT).input_ids
    assert tokenizer.eos_token_id is None
    words = from_text("a b\nc", "words", line_ends=False)
    assert words("c\na b").input_ids == [2, 0, 1]
    with_newline = from_text("97 10 98", "bytes", line_ends=False)
    assert with_newline("b\n").input_ids == [2, 1]


def test_saved_and_found(from_text, tmp_path):
    """The end of a line survives, and is still part of decoded texts; another process needs longspan's import alone."""
    tokenizer = from_text(as_numbers(TEXT), "bytes")
    ids = tokenizer(TEXT).input_ids
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AdaptiveSpanTokenizer.from_pretrained(tmp_path / "saved")
    assert type(again) is LongspanAdaptiveSpanTokenizer
    assert (again.protocol, again.eos_token_id, len(again)) == ("bytes", tokenizer.eos_token_id, len(tokenizer))
    assert again(TEXT).input_ids == ids
    assert again.decode(ids, skip_special_tokens=True) == TEXT
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(TEXT).input_ids == ids
    plain = TokenizersBackend.from_pretrained(tmp_path / "saved")
    assert plain(TEXT).input_ids == ids
    BYTES.save_pretrained(tmp_path / "bytes")
    again = AdaptiveSpanTokenizer.from_pretrained(tmp_path / "bytes")
    assert (len(again), again.pad_token_id, again.eos_token_id) == (258, 0, 1)
    assert again("<pad>\n").input_ids == BYTES("<pad>\n").input_ids


def test_auto_tokenizer_in_another_process(from_text, tmp_path):
    from_text(as_numbers(TEXT), "bytes").save_pretrained(tmp_path)
    code = (
        "import longspan, sys; from transformers import AutoTokenizer;"
        "t = AutoTokenizer.from_pretrained(sys.argv[1]); print(type(t).__name__, t.encode('<page>\\n'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert result.stdout.strip() == "LongspanAdaptiveSpanTokenizer [0, 1, 2, 3, 4, 5, 6]", result.stderr


def test_symbols_that_do_not_belong(from_text, tmp_path):
    with pytest.raises(ValueError, match="decimal numbers below 256 as symbols, got '256'"):
        from_text("12 256", "bytes")
    with pytest.raises(ValueError, match="decimal numbers below 256 as symbols, got 'the'"):
        from_text("the cat", "bytes")
    with pytest.raises(ValueError, match="single characters as symbols, got 'the'"):
        from_text("the cat", "characters")
    with pytest.raises(ValueError, match="'10' stands for a newline, as the ends of lines do: take line_ends=False"):
        from_text("97 \n 10 98", "bytes")
    with pytest.raises(ValueError, match="holds no symbol"):
        from_text("", "bytes")


def test_symbols_that_the_training_file_lacks(from_text, tmp_path):
    tokenizer = from_text("97 98", "bytes")
    with pytest.raises(ValueError, match="holds a symbol that this vocabulary lacks"):
        tokenizer("abc")
    with pytest.raises(ValueError, match="byte 99, which the training file"):
        tokenizer.encode_bytes(b"abc")
    (tmp_path / "valid.txt").write_text("97 98\n97 99\n")
    with pytest.raises(ValueError, match=r"line 2 of .*valid\.txt holds '99', which the vocabulary lacks"):
        tokenizer.encode_file(tmp_path / "valid.txt")
    tokenizer = from_text("97 98", "bytes", unknown=True)
    assert tokenizer("abc").input_ids == [0, 1, 3]
    assert tokenizer.encode_file(tmp_path / "valid.txt").tolist() == [0, 1, 2, 0, 3, 2]
    assert len(tokenizer) == 4
    with pytest.raises(ValueError, match="data must be bytes, got a string"):
        BYTES.encode_bytes("abc")
    words = from_text("a b", "words")
    with pytest.raises(ValueError, match="are words, not bytes"):
        words.encode_bytes(b"a")
