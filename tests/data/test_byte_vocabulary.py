import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.data.byte_vocabulary import byte_pair_vocabulary, byte_vocabulary

TEXTS = ["the sea and the sky and the land", "the land is wide", "and the sea is deep — très profonde"] * 5
BYTES, PIECES = byte_vocabulary(), byte_pair_vocabulary(TEXTS, 300)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=100, deadline=None)
def test_every_text_comes_back_and_bytes_keep_their_ids(text):
    assert BYTES.encode(text).ids == [byte + 2 for byte in text.encode()]
    assert PIECES.decode(PIECES.encode(text).ids) == text
    assert len(PIECES.encode(text).ids) <= len(text.encode())


def test_pieces_stand_behind_the_bytes():
    assert BYTES.get_vocab_size() == 258 and 258 < PIECES.get_vocab_size() <= 300
    shared = BYTES.get_vocab()
    assert shared.items() <= PIECES.get_vocab().items()
    ids = PIECES.encode("and the sea").ids
    assert len(ids) < 5 and any(number >= 258 for number in ids)
    assert PIECES.encode("漢").ids == [byte + 2 for byte in "漢".encode()]
    assert sorted(PIECES.get_vocab().values()) == list(range(PIECES.get_vocab_size()))


def test_sizes_and_errors():
    assert byte_pair_vocabulary([], 1000).get_vocab_size() == 258
    with pytest.raises(ValueError, match="vocab_size must be at least 258, all bytes, got 257"):
        byte_pair_vocabulary(TEXTS, 257)
    with pytest.raises(ValueError, match="texts must be several strings"):
        byte_pair_vocabulary("one text", 300)
