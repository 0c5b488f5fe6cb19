"""Any band, any mask, any split of the keys: banded attention is softmax over a dense float64 mask."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from longspan.ops import banded_attention, merge

from .brute_force import band_mask, masked_attention, random_inputs

sides = st.one_of(st.none(), st.integers(0, 70))


@st.composite
def problems(draw):
    heads = draw(st.integers(1, 3))
    windows = [(draw(sides), draw(st.one_of(sides, st.just(-1)))) for _ in range(heads)]
    dilations = [draw(st.one_of(st.integers(1, 4), st.integers(1, 10**6))) for _ in range(heads)]
    tokens, cached = draw(st.integers(0, 150)), draw(st.integers(0, 60))
    return dict(
        batch=draw(st.integers(0, 2)),
        heads=heads,
        tokens=tokens,
        keys=tokens + cached,
        head_size=draw(st.integers(1, 40)),
        window=windows,
        dilation=dilations,
        seen=draw(st.floats(0, 1)),
        seed=draw(st.integers(0, 2**31)),
    )


def tensors(problem, dtype):
    torch.manual_seed(problem["seed"])
    shape = [problem[name] for name in ("batch", "heads", "tokens", "keys", "head_size")]
    mask = torch.rand(problem["batch"], problem["keys"]) < problem["seen"]
    return random_inputs(*shape, dtype), mask


without_deadline = settings(
    deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@without_deadline
@given(problems())
def test_is_softmax_over_the_mask(problem):
    inputs, mask = tensors(problem, torch.float32)
    out, lse = banded_attention(
        *inputs, window=problem["window"], dilation=problem["dilation"], key_mask=mask, return_lse=True
    )
    band = band_mask(problem["heads"], problem["tokens"], problem["keys"], problem["window"], problem["dilation"])
    wanted, wanted_lse = masked_attention(*(x.double() for x in inputs), band & mask[:, None, None])
    assert_close(out.double(), wanted, atol=2e-5, rtol=0)
    assert_close(lse.double(), wanted_lse, atol=2e-5, rtol=1e-6)


@without_deadline
@given(problems())
def test_merging_a_split_of_the_keys_changes_nothing(problem):
    inputs, mask = tensors(problem, torch.float64)
    options = dict(window=problem["window"], dilation=problem["dilation"], return_lse=True)
    parts = [banded_attention(*inputs, key_mask=half, **options) for half in (mask, ~mask)]
    out, lse = merge([part[0] for part in parts], [part[1] for part in parts])
    whole, whole_lse = banded_attention(*inputs, **options)
    assert_close(out, whole)
    assert_close(lse, whole_lse)


@without_deadline
@given(problems(), st.integers(1, 40))
def test_padding_on_either_side_changes_nothing(problem, padding):
    (query, key, value), mask = tensors(problem | {"keys": problem["tokens"]}, torch.float64)
    options = dict(window=problem["window"], dilation=problem["dilation"])
    wanted = banded_attention(query, key, value, key_mask=mask, **options)
    for left, right in ((padding, 0), (0, padding)):
        longer = [torch.nn.functional.pad(x, (0, 0, left, right), value=3.0) for x in (query, key, value)]
        longer_mask = torch.nn.functional.pad(mask, (left, right), value=False)
        out = banded_attention(*longer, key_mask=longer_mask, **options)
        assert_close(out[:, :, left : left + problem["tokens"]], wanted)
