"""Words and their ids, vectors from elsewhere, and what a saved folder gives back."""

import pytest
import torch
from transformers import AutoTokenizer

import longspan
from longspan.biblosan.tokenization_biblosan import count_words
from longspan.data import LongDocumentCollator, read_word_vectors

TEXTS = ["The dog doesn't bark.", "A dog's 3.14 bones, the state-of-the-art ones!", "We’ll see."]


@pytest.fixture
def tokenizer():
    return longspan.BiBloSanTokenizer.train(TEXTS, vectors={"bones": 0, "see": 0, "unseen": 0})


def test_words():
    words = count_words(TEXTS)
    assert list(words) == [
        *("the", "dog", "does", "n't", "bark", ".", "a", "'s", "3.14", "bones", ",", "state-of-the-art", "ones", "!"),
        *("we", "'ll", "see"),
    ]
    assert words["the"] == words["dog"] == 2
    with pytest.raises(ValueError, match="got one"):
        count_words("one text")


def test_ids(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert vocabulary["@@@empty"] == tokenizer.pad_token_id == 0
    assert vocabulary["@@@unk"] == tokenizer.unk_token_id == 1
    assert {"bones": 2, "see": 3, "dog": 5}.items() <= vocabulary.items()  # with vectors, then frequent, then first
    assert tokenizer.count_fixed({"bones": 0, "see": 0, "unseen": 0}) == 4
    encoded = tokenizer("The DOG, elsewhere", return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids) == ["the", "dog", ",", "@@@unk"]
    assert encoded.offset_mapping == [(0, 3), (4, 7), (7, 8), (9, 18)]
    assert tokenizer("@@@empty").input_ids == [1, 1, 1, 1]  # a text, not padding


def test_pairs_and_padding(tokenizer):
    batch = tokenizer(["the dog", "see"], ["bones", "the bones bark"], padding=True, return_tensors="pt")
    assert batch.token_type_ids.tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    rows = [dict(tokenizer(*pair)) for pair in (("the dog", "bones"), ("see", "the bones bark"))]
    collated = LongDocumentCollator(tokenizer)([row | {"labels": 1} for row in rows])
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(collated[name], batch[name])
    config = longspan.BiBloSanConfig(block_length=3, vocab_size=len(tokenizer), num_labels=3)
    assert longspan.BiBloSanForSentencePairClassification(config)(**collated).loss > 0


def test_limits():
    few = longspan.BiBloSanTokenizer.train(["a a b b b c"], vectors=["c"], min_frequency=3)
    assert set(few.get_vocab()) == {"@@@empty", "@@@unk", "c", "b"}
    assert set(longspan.BiBloSanTokenizer.train(["a a b b b c"], max_words=1).get_vocab()) == {
        "@@@empty",
        "@@@unk",
        "b",
    }
    with pytest.raises(ValueError, match="min_frequency = 9"):
        longspan.BiBloSanTokenizer.train(["a b"], min_frequency=9)


def test_found_in_a_saved_folder(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = longspan.BiBloSanConfig(block_length=3, vocab_size=len(tokenizer))
    longspan.BiBloSanModel(config).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer) and again.get_vocab() == tokenizer.get_vocab()
    assert dict(again("A dog's", "we'll")) == dict(tokenizer("A dog's", "we'll"))


def test_vectors_from_a_file(tokenizer, tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("see 1 2 3\nbones -1 0.5 2e-1\nunseen 7 7 7\n")
    vectors = read_word_vectors(path, words=tokenizer.get_vocab())
    config = longspan.BiBloSanConfig(
        block_length=3, vocab_size=len(tokenizer), embedding_size=3, num_fixed_embeddings=tokenizer.count_fixed(vectors)
    )
    model = longspan.BiBloSanForSequenceClassification(config)
    before = model.get_input_embeddings().weight.detach().clone()
    assert model.load_word_vectors(vectors, tokenizer.get_vocab()) == 2
    table = model.biblosan.embeddings.word_embeddings.weight
    assert table[2].tolist() == pytest.approx([-1.0, 0.5, 0.2]) and table[3].tolist() == [1, 2, 3]
    assert torch.equal(table[4:], before[4:]) and not table[:2].any()

    with pytest.raises(ValueError, match="stay random: row 2"):
        model.load_word_vectors({"see": vectors["see"]}, tokenizer.get_vocab())
    with pytest.raises(ValueError, match=r"must be \[3\]"):
        model.load_word_vectors({"see": torch.zeros(4)}, tokenizer.get_vocab())
    with pytest.raises(ValueError, match="beyond the table"):
        model.load_word_vectors(vectors, {"see": 1000})
