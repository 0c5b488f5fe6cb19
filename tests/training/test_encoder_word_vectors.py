"""Word vectors out of an encoder: one for each word, of mean 0, kept in a file."""

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from longspan.training.encoder_word_vectors import SPREAD, encoder_word_vectors


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sun", "##shine", "rain", "a"])
    )
    folder = tmp_path / "encoder"
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    return folder


def test_every_word_by_itself_whatever_the_batch(encoder):
    words = ["sunshine", "rain", "a", "sun", "rain"]
    together = encoder_word_vectors(words, encoder)
    apart = encoder_word_vectors(words, encoder, batch_size=1)
    assert set(together) == set(words)
    for word in words:
        torch.testing.assert_close(together[word], apart[word], atol=1e-5, rtol=1e-4)
    table = torch.stack(list(together.values()))
    assert table.shape == (4, 8)
    torch.testing.assert_close(table.mean(0), torch.zeros(8), atol=1e-6, rtol=0)
    assert float(table.std()) == pytest.approx(SPREAD)


def test_kept_for_the_same_words_only(encoder, tmp_path):
    keep = tmp_path / "kept" / "words.pt"
    first = encoder_word_vectors(["sun", "rain"], encoder, keep=keep)
    read = encoder_word_vectors(["rain", "sun"], tmp_path / "gone", keep=keep)
    assert all(torch.equal(first[word], read[word]) for word in first)
    assert set(encoder_word_vectors(["sun", "a"], encoder, keep=keep)) == {"sun", "a"}
