import math

import pytest

from longspan.training.bleu import corpus_bleu, words


def test_a_value_worked_out_by_hand():
    # 1-grams 6 of 7, 2-grams 4 of 6, 3-grams 3 of 5, 4-grams 2 of 4; 7 words for 8.
    prediction, reference = "the cat sat on the red mat", "the cat sat on the mat by me"
    share = (6 / 7) * (4 / 6) * (3 / 5) * (2 / 4)
    assert corpus_bleu([prediction], [reference]) == pytest.approx(100 * share**0.25 * math.exp(1 - 8 / 7))


def test_repeated_words_count_as_often_as_they_are_wanted():
    # Of seven "the" two are right: 2 of 7; the rest comes from the second pair, all right: 5, 4, 3, 2 of 5, 4, 3, 2.
    found = corpus_bleu(["the the the the the the the", "a b c d e"], ["the cat and the dog", "a b c d e"])
    share = (7 / 12) * (4 / 10) * (3 / 8) * (2 / 6)
    assert found == pytest.approx(100 * share**0.25)


def test_ends_of_the_scale():
    text = "In the beginning God created the heaven and the earth."
    assert corpus_bleu([text], [text]) == pytest.approx(100)
    assert corpus_bleu(["something else entirely, my friend"], [text]) == 0
    assert corpus_bleu([""], [text]) == 0
    longer = corpus_bleu([text + " And more words follow here."], [text])
    assert 40 < longer < 100 and corpus_bleu([text[:-20]], [text]) < 100


def test_marks_are_words():
    assert words("Don’t go, he said: “No!”") == ["Don’t", "go", ",", "he", "said", ":", "“", "No", "!", "”"]


def test_errors():
    with pytest.raises(ValueError, match="as many, got 1 and 2"):
        corpus_bleu(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="got 0 and 0"):
        corpus_bleu([], [])
