"""States of rows on disk: written by some processes, read by others."""

import pytest
import torch

from longspan.training.stream_state import StreamPlace, load_states, map_tensors, save_states

PLACE = StreamPlace(tokens=100, rows=12, block_size=4, seed=0)


def state_of(rows):
    """A nested state whose tensors say which rows they are."""
    numbers = torch.tensor(rows, dtype=torch.float64)
    return {"layers": (numbers[:, None, None].expand(-1, 3, 2).bfloat16(), [numbers]), "none": None}


def layout(batch_size, parts, ranks):
    """First rows of each rank's parts."""
    return [[(part * ranks + rank) * batch_size for part in range(parts)] for rank in range(ranks)]


LAYOUTS = [(12, 1, 1), (1, 12, 1), (1, 1, 12), (3, 2, 2), (4, 1, 3), (2, 2, 3)]


@pytest.mark.parametrize("written", LAYOUTS)
@pytest.mark.parametrize("read", LAYOUTS)
def test_any_number_of_processes_reads_what_others_wrote(tmp_path, written, read):
    batch_size, _, ranks = written
    for rank, first_rows in enumerate(layout(*written)):
        states = [state_of(range(first, first + batch_size)) for first in first_rows]
        save_states(tmp_path, PLACE, states, first_rows, rank=rank, ranks=ranks)
    for first_rows in layout(*read):
        for first, found in zip(first_rows, load_states(tmp_path, PLACE, first_rows, read[0]), strict=True):
            expected = state_of(range(first, first + read[0]))
            assert found["none"] is None and isinstance(found["layers"], tuple) and isinstance(found["layers"][1], list)
            assert torch.equal(found["layers"][0], expected["layers"][0])
            assert found["layers"][0].dtype == torch.bfloat16
            assert torch.equal(found["layers"][1][0], expected["layers"][1][0])


def test_files_of_an_earlier_run_with_more_processes_do_not_count(tmp_path):
    for rank in range(3):
        save_states(tmp_path, PLACE, [state_of([99] * 4)], [4 * rank], rank=rank, ranks=3)
    save_states(tmp_path, PLACE, [state_of(range(12))], [0])
    (found,) = load_states(tmp_path, PLACE, [0], 12)
    assert found["layers"][1][0].tolist() == list(range(12))


def test_what_was_loaded_outlives_the_file(tmp_path):
    save_states(tmp_path, PLACE, [state_of(range(12))], [0])
    (found,) = load_states(tmp_path, PLACE, [0], 12)
    save_states(tmp_path, PLACE, [state_of([7] * 12)], [0])
    assert found["layers"][1][0].tolist() == list(range(12))


def test_other_streams_and_incomplete_checkpoints(tmp_path):
    with pytest.raises(ValueError, match=r"must hold stream_state_0.pt"):
        load_states(tmp_path, PLACE, [0], 12)
    save_states(tmp_path, PLACE, [state_of(range(6))], [0], rank=0, ranks=2)
    with pytest.raises(ValueError, match=r"must hold stream_state_1.pt"):
        load_states(tmp_path, PLACE, [0], 12)
    other = StreamPlace(tokens=100, rows=12, block_size=8, seed=1)
    with pytest.raises(ValueError, match=r"block_size = 4 \(now 8\), seed = 0 \(now 1\)"):
        load_states(tmp_path, other, [0], 12)


def test_only_tensors_are_carried():
    with pytest.raises(TypeError, match="tuples, lists and dicts, got str"):
        map_tensors(torch.clone, ["no tensor"])
