"""Windows of byte texts: places, ids, targets."""

import numpy as np
import pytest
import torch

from longspan.data.byte_windows import RandomWindows, byte_ids, byte_offset, to_ids

TEXT = np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8)


def test_ids():
    assert [byte_offset(size) for size in (256, 258, 259)] == [0, 2, 3]
    for wrong in (255, 320):
        with pytest.raises(ValueError, match=f"got {wrong}"):
            byte_offset(wrong)
    ids = to_ids(np.array([[0, 255]], dtype=np.uint8), 2)
    assert ids.dtype == torch.int64 and ids.tolist() == [[2, 257]]


def test_ids_of_a_whole_text_in_two_bytes_each():
    ids = byte_ids(np.array([0, 255], dtype=np.uint8), 2)
    assert ids.dtype == np.uint16 and ids.tolist() == [2, 257]


def test_random_windows_are_places_of_the_text_and_depend_on_their_number_alone():
    windows = RandomWindows(TEXT, 10, 5000, offset=2, seed=1)
    again = RandomWindows(TEXT, 10, 6000, offset=2, seed=1)
    other = RandomWindows(TEXT, 10, 5000, offset=2, seed=2)
    text = TEXT.tobytes()
    starts = set()
    for number in reversed(range(0, 5000, 50)):
        item = windows[number]
        assert torch.equal(item["input_ids"], item["labels"])
        assert torch.equal(item["input_ids"], again[number]["input_ids"])
        starts.add(text.index(bytes((item["input_ids"] - 2).tolist())))
    assert len(starts) > 80 and min(starts) < 100 and max(starts) > 890
    assert any(not torch.equal(windows[i]["input_ids"], other[i]["input_ids"]) for i in range(5))
    with pytest.raises(IndexError):
        windows[5000]


def test_both_ends_of_the_text_are_reached():
    windows = RandomWindows(TEXT[:12], 10, 100, offset=0, seed=0)
    assert {bytes(window["input_ids"].tolist()) for window in windows} == {TEXT[i : i + 10].tobytes() for i in range(3)}
    assert len(RandomWindows(TEXT, 1000, 1, offset=0, seed=0)[0]["input_ids"]) == 1000
    with pytest.raises(ValueError, match="from 2 to 1000 bytes"):
        RandomWindows(TEXT, 1001, 1, offset=0, seed=0)
