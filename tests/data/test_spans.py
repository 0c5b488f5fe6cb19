"""Windows, offsets and span decoding against brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.spans import (
    Span,
    best_spans,
    char_span_to_tokens,
    merge_spans,
    split_windows,
    token_span_to_chars,
)


@given(length=st.integers(0, 200), size=st.integers(1, 60), data=st.data())
def test_windows_cover_everything_and_share_the_overlap(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    windows = split_windows(length, size, overlap)
    assert {t for start, end in windows for t in range(start, end)} == set(range(length))
    assert all(end - start == min(size, length) for start, end in windows)
    for (_, end), (start, _) in itertools.pairwise(windows):
        assert end - start >= overlap
    if windows:  # no window more than needed
        step = size - overlap
        assert len(windows) == max(1, -(-(length - size) // step) + 1)


def test_windows_of_a_short_document():
    assert split_windows(0, 10, 2) == []
    assert split_windows(10, 10, 2) == [(0, 10)]
    assert split_windows(11, 10, 2) == [(0, 10), (1, 11)]


@pytest.mark.parametrize(("length", "size", "overlap"), [(-1, 4, 0), (9, 4, 4), (9, 0, 0), (9, 4, -1)])
def test_windows_refuse_what_would_not_advance(length, size, overlap):
    with pytest.raises(ValueError, match=r"length|size|overlap"):
        split_windows(length, size, overlap)


#        [CLS]  the     law   of     Norway   .        [SEP]  pad
OFFSETS = [(0, 0), (0, 3), (4, 7), (8, 10), (11, 17), (17, 18), (0, 0), None]


def test_characters_to_tokens_and_back():
    assert char_span_to_tokens(OFFSETS, 11, 17) == (4, 4)
    assert char_span_to_tokens(OFFSETS, 4, 17) == (2, 4)
    assert char_span_to_tokens(OFFSETS, 5, 6) == (2, 2)  # inside a token: the whole token
    assert char_span_to_tokens(OFFSETS, 3, 7) == (2, 2)  # a leading space belongs to no token
    assert token_span_to_chars(OFFSETS, 2, 4) == (4, 17)
    assert token_span_to_chars(OFFSETS, 0, 1) == (0, 3)  # special tokens at the edge add nothing


@pytest.mark.parametrize(
    "container", [list, lambda x: np.array([p or (0, 0) for p in x]), lambda x: torch.tensor([p or (0, 0) for p in x])]
)
def test_offsets_may_be_list_array_or_tensor(container):
    assert char_span_to_tokens(container(OFFSETS), 11, 18) == (4, 5)
    assert token_span_to_chars(container(OFFSETS), 4, 5) == (11, 18)


@pytest.mark.parametrize("span", [(11, 30), (18, 20), (17, 17), (-1, 3), (3, 4)])
def test_characters_that_the_tokens_do_not_hold(span):
    with pytest.raises(ValueError, match="span"):
        char_span_to_tokens(OFFSETS, *span)


def test_a_window_does_not_hold_what_lies_before_it():
    with pytest.raises(ValueError, match=r"outside the tokens given, which cover characters \[8, 18\)"):
        char_span_to_tokens(OFFSETS[3:], 4, 17)


@pytest.mark.parametrize("span", [(0, 0), (6, 7), (3, 2), (4, 8), (-1, 2)])
def test_tokens_without_text_or_out_of_range(span):
    with pytest.raises(ValueError, match=r"first|no text"):
        token_span_to_chars(OFFSETS, *span)


def brute_force(start, end, longest, allowed):
    spans = []
    for first in range(len(start)):
        for last in range(first, min(first + longest, len(start))):
            if all(allowed[first : last + 1]):
                spans.append((float(start[first] + end[last]), first, last))
    return sorted(spans, key=lambda s: (-s[0], s[1], s[2]))


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 24), longest=st.integers(1, 30), top_k=st.integers(1, 6), seed=st.integers(0, 999))
def test_best_spans_equal_brute_force(length, longest, top_k, seed):
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, length, generator=generator)
    allowed = torch.rand(length, generator=generator) < 0.7
    found = best_spans(start, end, max_answer_tokens=longest, top_k=top_k, allowed=allowed)
    wanted = brute_force(start, end, longest, allowed)[:top_k]
    assert [(s.first, s.last) for s in found] == [(first, last) for _, first, last in wanted]
    torch.testing.assert_close([s.score for s in found], [score for score, _, _ in wanted])
    assert len(set(found)) == len(found)


def test_best_spans_take_bf16_logits_and_ignore_impossible_tokens():
    start = torch.tensor([0.0, 5.0, -torch.inf, 1.0], dtype=torch.bfloat16)
    end = torch.tensor([9.0, -torch.inf, 2.0, 1.0], dtype=torch.bfloat16)
    assert best_spans(start, end, max_answer_tokens=4, top_k=2) == [Span(9.0, 0, 0), Span(7.0, 1, 2)]
    assert best_spans(start, end, max_answer_tokens=4, allowed=[False] * 4) == []


@pytest.mark.parametrize(
    "bad", [{"max_answer_tokens": 0}, {"max_answer_tokens": 2, "top_k": 0}, {"max_answer_tokens": 2, "allowed": [True]}]
)
def test_best_spans_refuse(bad):
    with pytest.raises(ValueError, match=r"max_answer_tokens|top_k|allowed"):
        best_spans(torch.zeros(3), torch.zeros(3), **bad)
    with pytest.raises(ValueError, match=r"\[3\] and \[4\]"):
        best_spans(torch.zeros(3), torch.zeros(4), max_answer_tokens=2)


def test_merge_moves_to_the_document_and_keeps_the_better_of_overlapping_answers():
    windows = [[Span(1.0, 8, 9), Span(0.5, 0, 1)], [Span(2.0, 3, 4), Span(0.7, 6, 6)]]
    assert merge_spans(windows, [0, 5]) == [Span(2.0, 8, 9), Span(0.7, 11, 11), Span(0.5, 0, 1)]
    assert merge_spans(windows, [0, 5], top_k=1) == [Span(2.0, 8, 9)]
    assert merge_spans([[], []], [0, 5]) == []
    with pytest.raises(ValueError, match="2 windows"):
        merge_spans(windows, [0])


def test_merged_windows_find_what_the_whole_document_holds():
    start, end = torch.randn(2, 90, generator=torch.Generator().manual_seed(3))
    windows = split_windows(90, 32, 8)  # answers of up to 8 tokens fit in the overlap
    found = [best_spans(start[a:b], end[a:b], max_answer_tokens=8) for a, b in windows]
    merged = merge_spans(found, [a for a, _ in windows])
    assert merged[0] == best_spans(start, end, max_answer_tokens=8)[0]
