"""What is remembered from block to block: the newest rows, of each row of the batch its own."""

import pytest
import torch

from longspan.layers.span_memory import next_memory


def states(batch, length, first=1):
    """Row t of a stream is filled with t + 1, and 100 more for each row of the batch."""
    rows = torch.arange(first, first + length, dtype=torch.float32)
    return (rows + 100 * torch.arange(batch)[:, None])[..., None].expand(-1, -1, 3).clone()


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("blocks", [[3, 4, 2], [9], [1] * 9, [0, 9]])
def test_the_newest_rows_however_they_came(rows, blocks):
    memory, first = None, 1
    for length in blocks:
        memory = next_memory(memory, states(2, length, first), rows)
        first += length
    torch.testing.assert_close(memory, states(2, 9)[:, -rows:])


def test_growth_by_one_block_at_a_time():
    memory = next_memory(None, states(1, 4), 4)
    assert next_memory(memory, states(1, 3, 5), 20)[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert next_memory(memory, states(1, 3, 5), 2)[0, :, 0].tolist() == [6, 7]


def test_zeros_in_front_of_a_stream_alone():
    assert next_memory(None, states(1, 2), 5, zeros=True)[0, :, 0].tolist() == [0, 0, 0, 1, 2]
    assert next_memory(None, states(1, 2), 5)[0, :, 0].tolist() == [1, 2]
    assert next_memory(states(1, 2), states(1, 1, 3), 5, zeros=True)[0, :, 0].tolist() == [1, 2, 3]
    assert next_memory(None, states(2, 0), 3, zeros=True).shape == (2, 3, 3)


def test_rows_of_different_lengths():
    """Padding behind the tokens is not remembered; a row that is short has zeros in front."""
    lengths = torch.tensor([3, 1, 0])
    memory = next_memory(None, states(3, 3), 3, lengths=lengths)
    assert memory[..., 0].tolist() == [[1, 2, 3], [0, 0, 101], [0, 0, 0]]
    memory = next_memory(memory, states(3, 2, 50), 3, lengths=torch.tensor([0, 2, 1]))
    assert memory[..., 0].tolist() == [[1, 2, 3], [101, 150, 151], [0, 0, 250]]


def test_it_is_a_constant_that_holds_nothing_else_alive():
    hidden = states(2, 50).requires_grad_()
    memory = next_memory(None, hidden, 4)
    assert not memory.requires_grad
    assert memory.untyped_storage().nbytes() == memory.numel() * 4
