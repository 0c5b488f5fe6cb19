"""The pretended GPU of ``pretend_cuda`` refuses what a GPU refuses, and notes what makes the host wait."""

from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from longspan import ops

from .pretend_cuda import PretendTensor, pretend_cuda

MISTAKES = {
    "a mask on the CPU": lambda x: x.masked_fill(torch.arange(4) > 2, 0.0),
    "an index on the CPU": lambda x: x.gather(1, torch.zeros(2, 1, dtype=torch.int64)),
    "labels on the CPU": lambda x: F.cross_entropy(x, torch.zeros(2, dtype=torch.int64)),
    "a matrix on the CPU": lambda x: x @ torch.eye(4),
    "parts of both": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "a generator of the CPU": lambda x: torch.rand(4, device=x.device, generator=torch.Generator()),
    "a seed on the CPU": lambda x: torch.ops.longspan.seeded_dropout.default(x, torch.tensor(1), 0.5),
    "numpy": lambda x: x.numpy(),
}
STOPS = {
    "item": lambda x: x.sum().item(),
    "if": lambda x: bool((x > 0).any()),
    "tolist": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "list": lambda x: x[[1, 0]],
    "to": lambda x: x + torch.ones(4).to(x.device),
    "tensor": lambda x: torch.tensor([1.0], device=x.device),
    "fill": lambda x: x.index_fill(0, torch.tensor([0], device="cuda"), 1.0),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_pretended_gpu_refuses(mistake):
    with pretend_cuda() as gpu, pytest.raises(RuntimeError, match=r"one device|generator|numpy"):
        MISTAKES[mistake](gpu.put(torch.ones(2, 4)))


@pytest.mark.parametrize("stop", STOPS)
def test_the_pretended_gpu_notes_waits(stop, monkeypatch):
    with pretend_cuda() as gpu:
        x = gpu.put(torch.ones(2, 4))
        monkeypatch.setattr(gpu, "note", gpu.waits.append)
        STOPS[stop](x)
        assert len(gpu.waits) == 1
        gpu.waits.clear()
        assert isinstance(x * torch.tensor(2.0) + ops.transfers.put_integers([1, 2, 3, 4], x.device), PretendTensor)
        assert not gpu.waits


def test_the_pretended_gpu_casts_as_autocast_does():
    """Every function that autocast has a rule for on CUDA is in one of the lists, and the casts have gradients."""
    with pretend_cuda() as gpu, torch.autocast("cuda", dtype=torch.float16):
        x = gpu.put(torch.randn(3, 3)).requires_grad_()
        narrow = x @ x
        assert narrow.dtype == torch.float16 and narrow.exp().dtype == torch.float32
        assert torch.cat([narrow, x]).dtype == torch.float32
        assert F.layer_norm(narrow, (3,)).dtype == torch.float32 and narrow.tanh().dtype == torch.float16
        narrow.float().sum().backward()
        assert x.grad.dtype == torch.float32
        unlisted = mock.Mock(__name__="binary_cross_entropy", return_value=x)  # autocast forbids it
        with pytest.raises(AssertionError, match="rule for binary_cross_entropy"):
            torch.overrides.handle_torch_function(unlisted, [x], x)
