"""Rotations from a seed of their own."""

import torch

from longspan.ops.rotations import seeded_rotations


def test_the_numbers_of_a_fresh_generator():
    state = torch.get_rng_state()
    actual = seeded_rotations(torch.zeros(1, dtype=torch.bfloat16), 7, (2, 3, 4, 5))
    assert torch.equal(actual, torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(7)))
    assert actual.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)
    assert seeded_rotations(torch.zeros(1), -(2**63), (1, 1, 1, 1)).isfinite().all()


def test_operator_contract():
    operator = torch.ops.longspan.seeded_rotations.default
    torch.library.opcheck(operator, (torch.zeros(1), 7, [2, 3, 4, 5]))


def test_compiled():
    compiled = torch.compile(lambda x: x + seeded_rotations(x, 3, (1, 2, 3, 4)), fullgraph=True, backend="aot_eager")
    x = torch.zeros(1, 2, 3, 4)
    assert torch.equal(compiled(x), seeded_rotations(x, 3, (1, 2, 3, 4)))
