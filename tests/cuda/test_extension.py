"""The extension as users build it, for one architecture, beside the torch of this environment: it links and imports."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .building import (
    BUILD,
    CSRC,
    HEAD_SIZES,
    ROOT,
    TORCH,
    Recipe,
    build,
    host_compiler,
    nvcc,
    registered_operators,
    run,
)

ARCHITECTURE = "8.0"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed"),
    pytest.mark.skipif(host_compiler() is None, reason="g++ is not installed"),
]


def unoptimized(folder: Path) -> Path:
    """The C++ compiler, in a hurry."""
    script = folder / "c++"
    script.write_text(f'#!/bin/sh\nexec {host_compiler()} "$@" -O0\n')
    script.chmod(0o755)
    return script


@pytest.fixture(scope="module")
def extension(tmp_path_factory) -> Path:
    """``longspan/_C.abi3.so`` with CPU and CUDA kernels; of head sizes 64 alone, which changes nothing in host code.

    Nor does it matter here how good the code for the GPU is (``test_compiled.py`` sees to that) or that for the CPU.
    """
    environment = os.environ | {
        "TORCH_CUDA_ARCH_LIST": ARCHITECTURE,
        "NVCC_APPEND_FLAGS": " ".join(
            ["-Xcicc=-O0", "-Xptxas=-O0", "-Xcompiler=-O0", *(f"-D{name}=64" for name in HEAD_SIZES)]
        ),
        "CXX": str(unoptimized(tmp_path_factory.mktemp("compiler"))),
        "MAX_JOBS": os.environ.get("MAX_JOBS", "1"),  # as many as wanted: other tests run beside this one
    }
    environment = {name: text for name, text in environment.items() if not name.startswith("LONGSPAN_NO_")}

    def make(path: Path) -> None:
        objects, library = BUILD / "extension" / "objects", BUILD / "extension" / "library"  # ninja keeps what holds
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-temp", objects]
        run([*command, "--build-lib", library], environment=environment, folder=ROOT)
        (made,) = library.rglob("_C*.so")
        made.rename(path)

    sources = sorted(path for path in CSRC.rglob("*") if path.is_file())
    return build(Recipe("extension", ".abi3.so", [ROOT / "setup.py", *sources], [ARCHITECTURE], make))


@pytest.fixture(scope="module")
def installed(extension, tmp_path_factory) -> Path:
    """A folder for PYTHONPATH: the package with this extension."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "models" / "longspan", folder / "longspan", ignore=shutil.ignore_patterns("*.so", "__py*"))
    shutil.copy(extension, folder / "longspan" / "_C.abi3.so")
    return folder


def python(code: str, folder: Path) -> str:
    """What a program prints that imports longspan from ``folder``; every symbol is looked up when a library loads."""
    environment = os.environ | {"PYTHONPATH": str(folder), "LD_BIND_NOW": "1"}
    environment.pop("LONGSPAN_NO_EXT", None)
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented() -> set[str]:
    """What the first paragraph of docs/cuda.md names: the operators that have kernels."""
    return set(re.findall(r"`(\w+)`", (ROOT / "docs" / "cuda.md").read_text().split("\n\n")[1]))


def test_no_symbol_is_undefined(extension):
    """But those of Python, which the interpreter brings; torch's libraries are where torch has them."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(TORCH / "lib")}
    said = subprocess.run(["ldd", "-r", extension], capture_output=True, text=True, env=environment)
    undefined = re.findall(r"symbol:? (\w+)", said.stdout + said.stderr)
    assert [name for name in undefined if not name.startswith(("Py", "_Py"))] == []
    assert "libtorch_cpu" in said.stdout and "not found" not in said.stdout
    assert "libcuda" not in said.stdout  # neither driver nor runtime: a machine without them imports it too


def test_dispatcher_has_the_kernels_that_the_docs_name(installed):
    """Those and no others, for CUDA; and those of the CPU are there as before."""
    code = """
import longspan.ops
from longspan.ops.library import LIBRARY
from longspan.testing import has_kernel
assert longspan.ops.HAS_EXTENSION
print(longspan.__file__)
for name in sorted({name.split("::")[1].split(".")[0] for name in LIBRARY._op_defs}):
    print(name, has_kernel(name, "CUDA"), has_kernel(name, "CPU"))
"""
    file, *lines = python(code, installed).splitlines()
    assert Path(file).is_relative_to(installed)
    found = {name: (cuda == "True", cpu == "True") for name, cuda, cpu in map(str.split, lines)}
    on_cuda = {name for name, (cuda, _) in found.items() if cuda}
    assert {name for name in on_cuda if not name.endswith("_backward")} == documented() & set(found)
    assert on_cuda == set(registered_operators())
    for name in documented() & set(found):
        assert f"{name}_backward" not in found or f"{name}_backward" in on_cuda
        assert found[name][1], name


def test_cpu_tensors_go_to_the_cpu_kernels(installed):
    """And ``python -m longspan.info`` shows both."""
    code = """
import torch, runpy
from longspan.ops import banded_attention
x = torch.randn(1, 2, 20, 8)
print(banded_attention(x, x, x, window=(3, 3)).shape)
runpy.run_module("longspan.info", run_name="__main__")
"""
    said = python(code, installed)
    assert "torch.Size([1, 2, 20, 8])" in said
    for name in set(registered_operators()) & documented():
        assert re.search(rf"^{name} +yes +yes +yes", said, re.M), said
