"""``python -m longspan.info``: what is installed, which operator runs on what, and what is slow and why."""

import platform
from collections.abc import Sequence

import torch
import transformers

import longspan
from longspan.ops import HAS_EXTENSION
from longspan.ops.gpus import Capability, cuda_architectures, served
from longspan.ops.library import LIBRARY
from longspan.registry import ARCHITECTURES
from longspan.testing import cpu_isa, has_kernel


def operators() -> list[str]:
    """The operators that longspan registers, without their backward halves."""
    names = {name.split("::")[1].split(".")[0] for name in LIBRARY._op_defs}
    return sorted(name for name in names if not name.endswith("_backward"))


def serving(capability: Capability, compiled: list[Capability], here: Sequence[Capability] = ()) -> str:
    """How kernels compiled for some capabilities serve a GPU of another; ``here``: the GPUs beside it."""
    if not compiled:
        return "the PyTorch references run here"
    if not served(capability, compiled):
        if any(served(other, compiled) for other in here):
            return "too old for the CUDA kernels that the others run: calls on it fail, hide it (CUDA_VISIBLE_DEVICES)"
        return "too old for the CUDA kernels: the PyTorch references run here"
    if any(major == capability[0] and minor <= capability[1] for major, minor in compiled):
        return "the CUDA kernels run here"
    return "the CUDA kernels run here, compiled by the driver at their first use"


def cuda_lines() -> list[str]:
    """What was built for GPUs, which are here, and how to get what is missing."""
    compiled = cuda_architectures()
    names = ", ".join(f"{major}.{minor}" for major, minor in compiled)
    lines = [f"CUDA kernels: {f'yes, for compute capability {names} and newer' if compiled else 'no'}"]
    if torch.version.cuda and not compiled:
        lines.append(
            "  On a GPU attention runs on the PyTorch references: correct, linear in memory, in many small steps. "
            "For the kernels: install nvcc (CUDA 12.8 or newer) and have it on the path, then "
            "pip install --no-build-isolation --force-reinstall --no-deps longspan."
        )
    here = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    for i, (major, minor) in enumerate(here):
        says = serving((major, minor), compiled, here)
        lines.append(f"  GPU {i}: {torch.cuda.get_device_name(i)}, {major}.{minor}: {says}")
    return lines


def summary() -> str:
    """The whole report as text."""
    isa = cpu_isa()
    lines = [
        f"longspan {longspan.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        f"compiled kernels: {f'yes, CPU with {isa}' if HAS_EXTENSION else 'no'}",
    ]
    if not HAS_EXTENSION:
        lines.append(
            "  Attention runs on the PyTorch references: correct, linear in memory, several times slower. "
            "For the kernels: install a C++ compiler, then pip install --no-build-isolation --force-reinstall longspan "
            "(and unset LONGSPAN_NO_EXT)."
        )
    elif isa == "portable":
        lines.append("  This processor has neither AVX2 nor AVX-512: kernels run on 16-byte vectors.")
    lines += cuda_lines()
    width = max(map(len, operators()))
    lines.append(f"\n{'operator':<{width}}  reference  CPU  CUDA")
    for name in operators():
        marks = [" yes" if has_kernel(name, key) else " -" for key in ("CPU", "CUDA")]
        lines.append(f"{name:<{width}}  yes       {marks[0]:<4} {marks[1]}")
    lines.append("\narchitectures: " + ", ".join(architecture.name for architecture in ARCHITECTURES))
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary())
