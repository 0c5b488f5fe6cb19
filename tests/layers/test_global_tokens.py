"""Which tokens are global, and how a batch gathers them."""

import pytest
import torch

from longspan.layers.global_tokens import (
    collect_global_tokens,
    mark_after_separator,
    mark_before_separator,
    mark_first_token,
)

SEP = 2


def flags(text):
    return torch.tensor([[character == "1" for character in row] for row in text.split()])


def test_positions_are_gathered_in_order():
    tokens = collect_global_tokens(flags("0110 0000 1001"))
    assert tokens is not None
    assert tokens.index.tolist() == [[1, 2], [0, 0], [0, 3]]
    assert tokens.filled.tolist() == [[True, True], [False, False], [True, True]]


def test_none_where_nothing_is_global():
    assert collect_global_tokens(flags("000 000")) is None
    assert collect_global_tokens(torch.zeros(0, 5, dtype=torch.bool)) is None


def test_a_limit_that_is_passed_is_an_error_that_names_it():
    tokens = collect_global_tokens(flags("0110"), limit=2)
    assert tokens is not None and tokens.index.tolist() == [[1, 2]]
    with pytest.raises(ValueError, match="marks 3 tokens of one example, max_global_tokens = 2"):
        collect_global_tokens(flags("0110 1101"), limit=2)


def test_first_token_is_behind_padding_on_the_left():
    assert torch.equal(mark_first_token(flags("111 011 001 000 101")), flags("100 010 001 000 100"))


@pytest.mark.parametrize(
    ("ids", "tokens", "expected"),
    [
        ([0, 7, 7, 2, 2, 8, 8, 2], "11111111", "11100000"),  # question and text, RoBERTa's two separators
        ([0, 7, 7, 2, 8, 8, 8, 2], "11111111", "11100000"),  # BERT's one
        ([0, 7, 7, 2, 2, 8, 2, 8], "11111111", "11100000"),  # more separators in the text
        ([0, 7, 7, 2, 1, 1, 1, 1], "11110000", "10000000"),  # a single text, padded
        ([1, 1, 0, 7, 2, 8, 8, 2], "00111111", "00110000"),  # padding on the left
        ([0, 7, 7, 7, 7, 7, 7, 7], "11111111", "10000000"),  # no separator
        ([0, 7, 7, 7, 7, 7, 7, 2], "11111111", "10000000"),  # one at the very end
        ([0, 7, 7, 7, 7, 2, 2, 2], "11111111", "11111000"),  # question and an empty text
        ([1, 1, 1, 1, 1, 1, 1, 1], "00000000", "00000000"),  # nothing but padding
    ],
)
def test_the_question_is_what_stands_before_the_separator(ids, tokens, expected):
    assert torch.equal(mark_before_separator(torch.tensor([ids]), flags(tokens), SEP), flags(expected))


@pytest.mark.parametrize(
    ("ids", "tokens", "expected"),
    [
        ([0, 7, 7, 2, 2, 8, 8, 2], "11111111", "00000111"),
        ([0, 7, 7, 2, 8, 8, 8, 2], "11111111", "00001111"),
        ([1, 1, 0, 7, 2, 2, 8, 2], "00111111", "00000011"),
        ([0, 7, 7, 2, 2, 8, 2, 1], "11111110", "00000110"),
        ([0, 7, 7, 2, 1, 1, 1, 1], "11110000", "10000000"),
        ([0, 7, 7, 7, 7, 7, 7, 7], "11111111", "10000000"),
    ],
)
def test_the_choice_is_what_stands_behind_the_separator(ids, tokens, expected):
    assert torch.equal(mark_after_separator(torch.tensor([ids]), flags(tokens), SEP), flags(expected))
