"""The PTX that nvcc makes of the kernels, executed by an interpreter: covers the compiler and the inline assembly."""

import pytest
import torch

from . import cases

WANTED = {
    torch.float16: ("attention_forward", "attention_backward_queries", "attention_backward_keys", "query_deltas"),
    torch.float32: ("attention_forward", "attention_backward_queries", "attention_backward_keys", "query_deltas"),
}


@pytest.mark.parametrize("dtype", WANTED, ids=str)
@pytest.mark.parametrize("name", ["band with dropout", "lsh, deduplicated"])
def test_agrees_with_the_reference(emulator, kernels, name, dtype):
    small = {
        "band with dropout": lambda: cases.banded(70, 64, H=1, window=(12, 5), **cases.DROPOUT),
        "lsh, deduplicated": lambda: cases.lsh(24, 64, chunk_size=8, wrap=True, deduplicate=True),
    }
    interpreting = emulator.interpreting(kernels)
    ran: list[str] = []

    class Computing:
        def __enter__(self):
            ran.append(interpreting.__enter__())

        def __exit__(self, *error):
            return interpreting.__exit__(*error)

    cases.check(small[name](), dtype, Computing())
    for kernel in WANTED[dtype]:
        assert any(kernel in symbol for symbol in ran[0]), kernel


@pytest.mark.parametrize("dtype", WANTED, ids=str)
def test_wide_heads(emulator, kernels, dtype):
    cases.check(cases.banded(9, 70, H=1, window=(4, 1)), dtype, emulator.interpreting(kernels))
