"""Signals of place and step: layouts, places far out, offsets, learned tables and their limits."""

import math

import pytest
import torch

from longspan.layers.coordinates import Coordinates, sinusoid
from longspan.layers.step_tokens import StepTokens


def begin(length=6, batch=1, step=0):
    tokens = StepTokens(None, torch.arange(length)[None].expand(batch, -1))
    return tokens, tokens.begin(step)


def test_layouts_by_their_formulas():
    places, width = torch.tensor([0, 1, 7, 1000]), 8
    theirs = sinusoid(places, width, "tensor2tensor", torch.float64)
    paper = sinusoid(places, width, "paper", torch.float64)
    for row, i in enumerate(places.tolist()):
        for j in range(width // 2):
            angle = i * math.exp(-j * math.log(10000) / (width // 2 - 1))
            assert theirs[row, j].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert theirs[row, width // 2 + j].item() == pytest.approx(math.cos(angle), abs=1e-12)
            angle = (i + 1) / 10000 ** (2 * j / width)
            assert paper[row, 2 * j].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert paper[row, 2 * j + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


@pytest.mark.parametrize("layout", ["tensor2tensor", "paper"])
def test_far_places_and_odd_widths(layout):
    place = torch.tensor([[1_234_567]])
    far = sinusoid(place, 64, layout)
    torch.testing.assert_close(far.double(), sinusoid(place, 64, layout, torch.float64), atol=1e-7, rtol=0)
    odd = sinusoid(torch.arange(4), 7, layout)
    assert odd.shape == (4, 7) and (odd[:, 6] == 0).all()
    assert sinusoid(torch.arange(4), 1, layout).shape == (4, 1)


def test_a_new_table_of_steps_has_unit_variance_in_use():
    torch.manual_seed(0)
    coordinates = Coordinates(256, 16, position="none")
    tokens, at = begin(step=3)
    signal = coordinates(torch.zeros(1, 6, 256), at, coordinates.places(tokens.positions), 16)
    table = coordinates.step_embedding
    assert table is not None
    torch.testing.assert_close(signal[0, 0], table.weight[3] * 16)
    assert (signal[0] == signal[0, :1]).all() and 0.8 < signal[0, 0].std() < 1.2
    assert coordinates.max_steps == 16 and Coordinates(8, 16, step="sinusoid").max_steps is None


@pytest.mark.parametrize("position", ["tensor2tensor", "paper"])
def test_sinusoid_steps_go_on(position):
    coordinates = Coordinates(8, 2, position=position, step="sinusoid")
    tokens, at = begin(step=40)
    out = coordinates(torch.zeros(1, 6, 8), at, coordinates.places(tokens.positions), 41)
    step = sinusoid(torch.tensor(40), 8, coordinates.layout)
    torch.testing.assert_close(out[0], sinusoid(torch.arange(6), 8, coordinates.layout) + step)


@pytest.mark.parametrize(
    ("position", "step", "width"),
    [("tensor2tensor", "learned", 32), ("tensor2tensor", "none", 16), ("none", "sinusoid", 16), ("none", "none", None)],
)
def test_concatenated_signals_are_projected_back(position, step, width):
    coordinates = Coordinates(8, 3, position=position, step=step, timing="concat")
    assert (None if coordinates.projection is None else coordinates.projection.in_features) == width
    tokens, at = begin(batch=2)
    x = torch.randn(2, 6, 8)
    assert coordinates(x, at, coordinates.places(tokens.positions), 3).shape == x.shape


def test_places_move_with_the_steps():
    coordinates = Coordinates(8, 4, step="none", offset="step")
    for step, shift in enumerate([0, 2, 5, 7]):  # floor of 10 * step / 4
        tokens, at = begin(length=10, step=step)
        out = coordinates(torch.zeros(1, 10, 8), at, coordinates.places(tokens.positions), 4)
        torch.testing.assert_close(out[0], sinusoid(torch.arange(10) + shift, 8))


def test_random_places_at_each_step_in_training_only():
    coordinates = Coordinates(8, 4, step="none", offset="random_each_step")
    tokens, at = begin(length=10)
    places, x = coordinates.places(tokens.positions), torch.zeros(1, 10, 8)
    torch.manual_seed(0)
    seen = [coordinates(x, at, places, 4)[0, 0] for _ in range(50)]
    starts = {int(((sinusoid(torch.arange(10), 8) - one).abs().sum(1) < 1e-5).nonzero()) for one in seen}
    assert starts == set(range(10))
    coordinates.eval()
    torch.testing.assert_close(coordinates(x, at, places, 4)[0], sinusoid(torch.arange(10), 8))
