"""Files of word vectors: GloVe's and word2vec's text form, and those that are neither."""

import pytest

from longspan.data import read_word_vectors


def written(tmp_path, text):
    path = tmp_path / "vectors.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_words_in_their_order(tmp_path):
    vectors = read_word_vectors(written(tmp_path, "the 0.5 -1\n, 2 3e-1\nthe 9 9\nnaïve\u2028x 1 2\n"))
    assert list(vectors) == ["the", ",", "naïve\u2028x"]
    assert vectors["the"].tolist() == [0.5, -1.0]
    assert vectors[","].tolist() == pytest.approx([2, 0.3])


def test_wanted_words_only(tmp_path):
    assert list(read_word_vectors(written(tmp_path, "a 1 2\nb 3 4\n"), words=["b", "z"])) == ["b"]


def test_a_header_and_words_with_spaces(tmp_path):
    vectors = read_word_vectors(written(tmp_path, "2 3\nto 1 2 3\n. . . 4 5 6\n"))
    assert {word: vector.tolist() for word, vector in vectors.items()} == {"to": [1, 2, 3], ". . .": [4, 5, 6]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no word vectors"),
        ("words only\n", "a word and numbers"),
        ("a 1 2\nb 3\n", "line 2"),
        ("a 1 2\nb 3 x\n", "line 2"),
    ],
)
def test_lines_that_do_not_fit(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_word_vectors(written(tmp_path, text))
