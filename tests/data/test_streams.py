"""Streams cut into rows: what stands where, in every pass and on every process."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from longspan.data.streams import ContiguousRows, StreamBatches, check_ids, collate_rows, take

IDS = np.random.default_rng(0).integers(0, 250, 1000).astype(np.uint8)


def one_pass(data, number=0):
    batches = StreamBatches(data, data.rows, current_pass=lambda: number)
    return list(DataLoader(data, batch_sampler=batches, collate_fn=collate_rows))


@pytest.mark.parametrize(("rows", "size"), [(1, 7), (3, 10), (4, 249), (4, 120), (7, 1), (1, 999)])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_rows_lose_no_target(rows, size, number):
    data = ContiguousRows(IDS, rows, size, seed=3)
    batches = one_pass(data, number)
    assert len(batches) == data.blocks == len(data) // rows
    assert [batch["begins"] for batch in batches] == [True] + [False] * (len(batches) - 1)
    inputs = torch.cat([batch["input_ids"] for batch in batches], 1)
    targets = torch.cat([batch["next_ids"] for batch in batches], 1)
    assert inputs.dtype == targets.dtype == torch.int64 and inputs.shape == (rows, data.blocks * size)
    length = len(IDS) // rows
    start = data.offset(number)
    assert start + inputs.shape[1] < length
    for row in range(rows):
        ids = torch.from_numpy(IDS[row * length : (row + 1) * length].astype("int64"))[start:]
        assert torch.equal(inputs[row], ids[: inputs.shape[1]])
        assert torch.equal(targets[row], ids[1 : inputs.shape[1] + 1])


def test_offsets_differ_by_pass_and_seed_and_leave_little_out():
    data, other = (ContiguousRows(IDS, 2, 50, seed=seed) for seed in (0, 1))
    offsets = [data.offset(number) for number in range(300)]
    assert offsets[0] == 0 and set(offsets) == set(range(50))
    assert offsets == [data.offset(number) for number in range(300)]
    assert offsets != [other.offset(number) for number in range(300)]
    assert data.blocks == 9  # 500 tokens, any offset below 50


def test_items_go_on_in_the_next_pass():
    data = ContiguousRows(IDS, 2, 50, seed=0)
    offset = next(n for n in range(1, 9) if data.offset(n))
    item = data[offset * len(data) + 2 * 3 + 1]  # block 3 of row 1
    start = 500 + data.offset(offset) + 150
    assert item["input_ids"].tolist() == IDS[start : start + 50].tolist()
    assert item["next_ids"].tolist() == IDS[start + 1 : start + 51].tolist() and not item["begins"]
    with pytest.raises(IndexError):
        data[-1]


@pytest.mark.parametrize(("batch_size", "parts", "ranks"), [(3, 2, 2), (1, 1, 4), (2, 3, 1)])
def test_every_row_stays_with_its_process_and_part(batch_size, parts, ranks):
    data = ContiguousRows(IDS, batch_size * parts * ranks, 10)
    whole = list(StreamBatches(data, data.rows))
    split = [list(StreamBatches(data, batch_size, parts=parts, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert all(len(batches) == parts * data.blocks for batches in split)
    for block, expected in enumerate(whole):
        found = [split[rank][block * parts + part] for part in range(parts) for rank in range(ranks)]
        assert [index for batch in found for index in batch] == expected
    for batches in split:
        rows = [[index % data.rows for index in batch] for batch in batches]
        assert all(rows[number] == rows[number % parts] for number in range(len(rows)))


@pytest.mark.parametrize(
    "ids", [IDS.tolist(), torch.from_numpy(IDS), torch.from_numpy(IDS).int(), IDS.astype(np.uint16)], ids=str
)
def test_ids_of_any_integer_type(ids):
    assert torch.equal(take(check_ids(ids, "ids"), 5, 9), torch.from_numpy(IDS[5:9].astype("int64")))
    assert ContiguousRows(ids, 2, 10)[3]["input_ids"].tolist() == IDS[510:520].tolist()


def test_ids_of_a_mapped_file(tmp_path):
    IDS.astype(np.uint16).tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", dtype=np.uint16, mode="r")
    assert ContiguousRows(mapped, 1, 10)[1]["input_ids"].tolist() == IDS[10:20].tolist()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (Dataset.from_dict({"input_ids": [[1, 2], [3]]}), "numpy.concatenate"),
        ([[1, 2], [3]], "numpy.concatenate"),
        ("a text", "got str"),
        (np.zeros((2, 5), dtype=int), r"int64 of shape \[2, 5\]"),
        (torch.zeros(5), r"torch.float32 of shape \[5\]"),
        ([], "got list"),
    ],
    ids=["documents", "lists", "text", "two axes", "floats", "nothing"],
)
def test_what_is_no_stream(ids, message):
    with pytest.raises(ValueError, match=f"train_dataset must be the token ids of one long text.*{message}"):
        check_ids(ids, "train_dataset")


def test_rows_that_are_too_short():
    with pytest.raises(ValueError, match="4 rows of at least 250"):
        ContiguousRows(IDS, 4, 250)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        ContiguousRows(IDS, 4, 0)
