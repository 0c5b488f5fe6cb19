import subprocess
import sys

import pytest
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from longspan.universal_transformer import UniversalTransformerConfig
from longspan.universal_transformer.tokenization_universal_transformer import (
    LongspanUniversalTransformerTokenizer,
    UniversalTransformerTokenizer,
)

TEXTS = ["In the beginning was the Word, and the Word was with God", "and without him was not any thing made"] * 4
BYTES = UniversalTransformerTokenizer.byte_level()


@pytest.fixture(scope="module")
def pieces():
    return UniversalTransformerTokenizer.train(TEXTS, vocab_size=300)


def test_bytes_as_in_tensor2tensor_with_the_end_behind():
    assert BYTES("né").input_ids == [ord("n") + 2, 0xC3 + 2, 0xA9 + 2, 1]
    assert (BYTES.pad_token_id, BYTES.eos_token_id, len(BYTES)) == (0, 1, 258)
    assert BYTES("ab", add_special_tokens=False).input_ids == [99, 100]
    assert BYTES.decode(BYTES("né").input_ids, skip_special_tokens=True) == "né"
    assert BYTES("a", "b").input_ids == [99, 1, 100, 1]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_any_text_comes_back(kind, pieces):
    tokenizer = BYTES if kind == "bytes" else pieces
    for text in (*TEXTS[:2], " lead", "trail  ", "\n\n", "", "<pad> and </s>", "漢字"):
        ids = tokenizer(text).input_ids
        assert ids[-1] == 1 and 1 not in ids[:-1]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_pieces_are_learnt_and_fit_a_model(pieces):
    assert 258 < len(pieces) <= 300
    assert len(pieces(TEXTS[0]).input_ids) < 0.7 * len(BYTES(TEXTS[0]).input_ids)
    config = UniversalTransformerConfig()
    assert (pieces.pad_token_id, pieces.eos_token_id) == (config.pad_token_id, config.eos_token_id)


def test_targets_and_batches_of_pairs(pieces):
    rows = [pieces(text, text_target=text.upper()) for text in TEXTS[:2]]
    assert all(row["labels"][-1] == 1 for row in rows)
    batch = DataCollatorForSeq2Seq(pieces)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert ((batch["input_ids"] == 0) == (batch["attention_mask"] == 0)).all() and (batch["labels"] == -100).any()


def test_truncation_keeps_the_end():
    short = UniversalTransformerTokenizer.byte_level(model_max_length=6)
    assert short("abcdefgh", truncation=True).input_ids == [99, 100, 101, 102, 103, 1]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_saved_folder(kind, pieces, tmp_path):
    tokenizer = BYTES if kind == "bytes" else pieces
    tokenizer.save_pretrained(tmp_path)
    UniversalTransformerConfig().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is LongspanUniversalTransformerTokenizer
    assert loaded(TEXTS[0]).input_ids == tokenizer(TEXTS[0]).input_ids
    assert loaded("a </s> b").input_ids == tokenizer("a </s> b").input_ids


def test_a_folder_loads_without_longspan(pieces, tmp_path):
    pieces.save_pretrained(tmp_path)
    code = "import sys, transformers as t; print(t.AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2]).input_ids)"
    command = [sys.executable, "-c", code, str(tmp_path), TEXTS[0]]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(pieces(TEXTS[0]).input_ids)


def test_errors():
    with pytest.raises(ValueError, match="vocab_size must be at least 258"):
        UniversalTransformerTokenizer.train(TEXTS, vocab_size=100)
