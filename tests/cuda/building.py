"""Builds what tests of the CUDA kernels run: for the emulator, as PTX, as cubins. Results stay under ``build/cuda``.

What is built is named by everything that goes into it, so that nothing is built twice and nothing stale is used.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
EMULATOR = Path(__file__).parent / "emulator"
BUILD = ROOT / "build" / "cuda"
TORCH = Path(torch.__file__).parent
ELEMENT_TYPES = ("half", "bf16", "float", "double")
OPERATORS = ("banded", "block", "lsh", "multidim")
HEAD_SIZES = (32, 64, 80, 96, 128)


def nvcc() -> str | None:
    """The CUDA compiler, where there is one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def host_compiler() -> str | None:
    """A C++ compiler for the emulator, which switches stacks on x86-64 alone."""
    return shutil.which("g++") if platform.machine() == "x86_64" else None


def _common_flags(csrc: Path) -> list[str]:
    return ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020d000000000000", f"-I{csrc}", f"-I{TORCH / 'include'}"]


def run(command: Sequence[str]) -> str:
    """Standard error of a command that succeeds; AssertionError with all that it said, where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def _digest(folders: Sequence[Path], words: Sequence[str]) -> str:
    digest = hashlib.sha256("\0".join([torch.__version__, *words]).encode())
    for folder in folders:
        for file in sorted(file for file in folder.rglob("*") if file.suffix in {".cu", ".cuh", ".h", ".cpp"}):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def built(name: str, suffix: str, folders: Sequence[Path], words: Sequence[str], make) -> Path:
    """The file of this name, made by ``make(path)`` unless the same sources and words have made it before."""
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{name}-{_digest(folders, words)}{suffix}"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            unfinished = path.with_name(f"unfinished-{path.name}")
            make(unfinished)
            unfinished.rename(path)
    return path


def compile_objects(
    folder: Path, sources: Sequence[tuple[Path, Sequence[str]]], flags: Sequence[str], csrc: Path
) -> list[Path]:
    """Objects of C++ sources, each with flags of its own besides the common ones, two at a time."""
    compiler = host_compiler()
    assert compiler

    def compile_one(source: tuple[Path, Sequence[str]]) -> Path:
        path, own = source
        output = folder / f"{path.stem}.o"
        common = [*_common_flags(csrc), f"-I{EMULATOR}", "-DLONGSPAN_EMULATED", "-Wno-unknown-pragmas"]
        run([compiler, *common, *flags, *own, "-x", "c++", "-c", path, "-o", output])
        return output

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compile_one, sources))


def emulated_library(types: Sequence[str], head_sizes: Sequence[int], flags: Sequence[str] = ()) -> Path:
    """The operators of ``csrc/cuda`` for CPU tensors, run by the emulator: a library of ``longspan_emulated``."""
    sizes = f"-DLONGSPAN_HEAD_SIZES={','.join(map(str, head_sizes))}"
    without = " ".join(f"LONGSPAN_LAUNCHERS({name})" for name in ELEMENT_TYPES if name not in types)
    options = ["-O1", "-g", "-fPIC", "-ffp-contract=fast", *flags]

    def make(path: Path) -> None:
        folder = path.with_suffix("")
        folder.mkdir(exist_ok=True)
        sources = [(CSRC / "cuda" / f"attention_{name}.cu", [sizes]) for name in types]
        sources += [(CSRC / "cuda" / f"{name}.cu", []) for name in OPERATORS]
        sources += [(EMULATOR / "emulator.cpp", ["-O2"])]
        if without:
            sources += [(EMULATOR / "without_types.cpp", [f"-DLONGSPAN_WITHOUT={without}"])]
        objects = compile_objects(folder, sources, options, CSRC)
        libraries = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
        run([host_compiler(), "-shared", *flags, *objects, "-o", path, *libraries, "-pthread", "-Wl,--no-undefined"])
        shutil.rmtree(folder)

    return built("emulated", ".so", [CSRC, EMULATOR], [sizes, without, *options], make)


def _sizes_for_nvcc(head_sizes: Sequence[int]) -> str:
    """nvcc takes a plain comma for the end of an option."""
    return "-DLONGSPAN_HEAD_SIZES=" + r"\,".join(map(str, head_sizes))


def ptx(source: str, head_sizes: Sequence[int], csrc: Path = CSRC) -> str:
    """What nvcc makes of ``csrc/cuda/<source>.cu`` for compute capability 8.0, as text."""
    flags = ["-O3", "-ptx", "-arch=compute_80", _sizes_for_nvcc(head_sizes)]

    def make(path: Path) -> None:
        run([nvcc(), *_common_flags(csrc), *flags, csrc / "cuda" / f"{source}.cu", "-o", path])

    return built(source, ".ptx", [csrc], flags, make).read_text()


def cubin_report(source: str, architecture: str, head_sizes: Sequence[int]) -> str:
    """What ptxas says of each kernel of ``csrc/cuda/<source>.cu``: registers, stack, spills."""
    flags = ["-O3", "-cubin", f"-arch={architecture}", "-Xptxas", "-v"]
    flags.append(_sizes_for_nvcc(head_sizes))

    def make(path: Path) -> None:
        cubin = path.with_suffix(".cubin")
        path.write_text(run([nvcc(), *_common_flags(CSRC), *flags, CSRC / "cuda" / f"{source}.cu", "-o", cubin]))
        cubin.unlink()

    return built(f"{source}-{architecture}", ".txt", [CSRC], flags, make).read_text()
