"""``python -m longspan.info``: what is installed, which operator runs on what, and what is slow and why."""

import platform

import torch
import transformers

import longspan
from longspan.ops import HAS_EXTENSION
from longspan.ops.library import LIBRARY
from longspan.registry import ARCHITECTURES
from longspan.testing import cpu_isa, has_kernel


def operators() -> list[str]:
    """The operators that longspan registers, without their backward halves."""
    names = {name.split("::")[1].split(".")[0] for name in LIBRARY._op_defs}
    return sorted(name for name in names if not name.endswith("_backward"))


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
    width = max(map(len, operators()))
    lines.append(f"\n{'operator':<{width}}  reference  CPU  CUDA")
    for name in operators():
        marks = [" yes" if has_kernel(name, key) else " -" for key in ("CPU", "CUDA")]
        lines.append(f"{name:<{width}}  yes       {marks[0]:<4} {marks[1]}")
    lines.append("\narchitectures: " + ", ".join(architecture.name for architecture in ARCHITECTURES))
    return "\n".join(lines)


if __name__ == "__main__":
    print(summary())
