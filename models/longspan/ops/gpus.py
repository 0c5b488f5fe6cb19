"""Which GPUs the compiled CUDA kernels serve. Where they serve none of those here, the references run instead."""

import warnings
from collections.abc import Sequence

import torch

from longspan.ops.library import LIBRARY, REFERENCES, has_kernel

Capability = tuple[int, int]


def cuda_architectures() -> list[Capability]:
    """The compute capabilities that CUDA kernels were compiled for, ascending; empty where there are none."""
    if not hasattr(torch.ops.longspan, "cuda_architectures"):
        return []
    return [divmod(number, 10) for number in torch.ops.longspan.cuda_architectures()]


def served(capability: Capability, compiled: Sequence[Capability]) -> bool:
    """Whether a GPU runs what was compiled: machine code of its generation, or newer by what the driver makes of it."""
    return bool(compiled) and capability >= compiled[0]


def leave_to_references(here: Sequence[Capability], compiled: Sequence[Capability], key: str = "CUDA") -> bool:
    """Put the references in the kernels' place if these serve none of the GPUs here; whether that was so."""
    if not here or not compiled or any(served(capability, compiled) for capability in here):
        return False
    for name, reference in REFERENCES.items():
        if has_kernel(name, key):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that another kernel was there
                LIBRARY.impl(name, reference, key, allow_override=True)
    oldest = ".".join(map(str, compiled[0]))
    warnings.warn(
        f"longspan: its CUDA kernels are for compute capability {oldest} and newer; on the GPUs here the PyTorch "
        "references run (python -m longspan.info)",
        stacklevel=2,
    )
    return True


def look_at_gpus() -> None:
    """Decides it when torch starts to use CUDA; not before, since a process that has used it cannot fork."""

    def look() -> None:
        here = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        leave_to_references(here, cuda_architectures())

    if cuda_architectures():
        torch.cuda._lazy_call(look)  # private; torch checks its own architectures by it
