from types import SimpleNamespace

import pytest
from torch import nn

from longspan.layers.recurrence import ActRecurrence
from longspan.training.ponder_warmup import PonderWarmup


def test_weight_by_share_of_the_training():
    model = nn.ModuleList([ActRecurrence(4, 3, loss_weight=0.2), nn.Linear(2, 2), ActRecurrence(4, 3)])
    callback = PonderWarmup(0.5, 0.75)
    state = SimpleNamespace(global_step=0, max_steps=100)
    callback.on_train_begin(None, state, None, model=model)
    seen = []
    for state.global_step in (0, 50, 55, 75, 99):
        callback.on_step_begin(None, state, None)
        seen.append((model[0].loss_weight, model[2].loss_weight))
    assert seen == [(0, 0), (0, 0), pytest.approx((0.04, 0.002)), (0.2, 0.01), (0.2, 0.01)]
    state.global_step = 10  # stopped early: the model is as it was
    callback.on_step_begin(None, state, None)
    callback.on_train_end(None, state, None)
    assert (model[0].loss_weight, model[2].loss_weight) == (0.2, 0.01)


def test_at_once_or_never():
    assert [PonderWarmup(0.0, 0.0).factor(done) for done in (0.0, 0.5)] == [1.0, 1.0]
    assert [PonderWarmup(1.0, 1.0).factor(done) for done in (0.0, 0.99)] == [0.0, 0.0]
    with pytest.raises(ValueError, match=r"got 0\.7 and 0\.5"):
        PonderWarmup(0.7, 0.5)
