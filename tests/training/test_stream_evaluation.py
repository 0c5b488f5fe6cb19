"""A held-out text read with its state carried on: every token counts once, however it is split."""

import math

import numpy as np
import pytest
import torch

from longspan.data.streams import take
from longspan.training.stream_evaluation import stream_bits_per_byte, stream_nats


@pytest.fixture
def model(stream_worker):
    return stream_worker.build()


def one_token_at_a_time(model, ids, starts):
    nats, mems = 0.0, None
    model.eval()
    for place in range(len(ids) - 1):
        token = take(ids, place, place + 2)[None]
        with torch.no_grad():
            out = model(token[:, :1], token[:, 1:], None if place in starts else mems, use_mems=True)
        nats, mems = nats + float(out.loss), out.mems
    return nats


@pytest.mark.parametrize("length", [2, 17, 33, 250])
@pytest.mark.parametrize(("rows", "block_size"), [(1, 1), (1, 16), (3, 16), (5, 7), (4, 500)])
def test_is_what_one_token_at_a_time_gives(model, stream_worker, length, rows, block_size):
    ids = stream_worker.STREAM[:length]
    row = -(-(length - 1) // rows)
    model.train()
    model.config.dropout = 0.5  # which evaluation does not have
    nats, count = stream_nats(model, ids, rows=rows, block_size=block_size)
    assert count == length - 1 and model.training
    short_memory = block_size > 24  # the model sees 24 tokens back from a block's beginning, and all of the block
    if not short_memory or row <= 24:
        expected = one_token_at_a_time(model, ids, set(range(0, length, row)))
        assert nats == pytest.approx(expected, rel=0.02 if block_size > 1 else 1e-6)


@pytest.mark.parametrize(("rows", "ranks"), [(4, 2), (3, 3), (2, 5), (5, 2)])
def test_processes_share_the_rows(model, stream_worker, rows, ranks):
    ids = stream_worker.STREAM[:97]
    whole = stream_nats(model, ids, rows=rows, block_size=8)
    parts = [stream_nats(model, ids, rows=rows, block_size=8, rank=rank, ranks=ranks) for rank in range(ranks)]
    assert sum(nats for nats, _ in parts) == pytest.approx(whole[0], rel=1e-5)
    assert sum(count for _, count in parts) == whole[1] == 96


def test_bits_per_byte(model, stream_worker, capsys):
    text = stream_worker.STREAM[:200]
    nats, count = stream_nats(model, text.astype(np.int32) + 2, block_size=16)
    bits = stream_bits_per_byte(model, text, offset=2, size=16, label="reading")
    assert bits == pytest.approx((8 + nats / math.log(2)) / 200) and count == 199
    assert "reading" in capsys.readouterr().err
    assert stream_bits_per_byte(model, text[:1], offset=0, size=16) == 8.0
    for wrong in (text[:0], text[:1]):
        with pytest.raises(ValueError, match="at least two tokens"):
            stream_nats(model, wrong, block_size=16)
    with pytest.raises(ValueError, match="at least one byte"):
        stream_bits_per_byte(model, text[:0], offset=0, size=16)
