"""One of two processes that train a reversible stack under DDP and FSDP: ``python -m ... <rank> <file to meet at>``."""

import sys

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from longspan.layers.reversible import reversible

from .toy_stack import SIZE, loss_of, stack


class Model(nn.Module):
    def __init__(self, keep: bool):
        super().__init__()
        self.blocks, self.keep = stack(2), keep

    def forward(self, hidden):
        return loss_of(reversible(self.blocks, self.blocks[0].values(hidden), keep_activations=self.keep))


def gradients(model, hidden, rank) -> list[torch.Tensor]:
    for _ in range(2):  # the second pass finds what the first one left behind
        model.zero_grad()
        torch.manual_seed(rank)
        model(hidden).backward()
    return [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]


def main(rank: int, meeting: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(10 + rank)
    hidden = torch.randn(1, 5, SIZE)
    expected = gradients(Model(True), hidden, rank)
    for grad in expected:
        distributed.all_reduce(grad)
        grad /= 2
    sharded = Model(False)
    fully_shard(sharded)
    wrapped = {"DDP": DistributedDataParallel(Model(False)), "FSDP": sharded}
    for name, model in wrapped.items():
        for actual, wanted in zip(gradients(model, hidden, rank), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-6, msg=name)
    inside = Model(False)
    fully_shard(inside.blocks[0].values)
    with pytest.raises(ValueError, match="FSDP wraps FSDPLinear inside a reversible stack: wrap the module that holds"):
        reversible(inside.blocks, hidden)
    print("equal", flush=True)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
