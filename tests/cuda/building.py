"""Builds what tests of the CUDA kernels run: for the emulator, as PTX, as cubins. Results stay under ``build/cuda``.

What is built is named by everything that goes into it, so that nothing is built twice and nothing stale is used.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from filelock import FileLock

ROOT = Path(__file__).parents[2]
CSRC = Path(os.environ.get("LONGSPAN_CSRC", ROOT / "csrc"))  # elsewhere, where faults are planted in a copy
EMULATOR = Path(__file__).parent / "emulator"
BUILD = ROOT / "build" / "cuda"
TORCH = Path(torch.__file__).parent
HEAD_SIZES = ("LONGSPAN_HEAD_SIZES", "LONGSPAN_SPAN_HEAD_SIZES")  # macros: those that have tiles of their own
ELEMENT_TYPES = ("half", "bf16", "float", "double")
SOURCES = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))


def registered_operators() -> list[str]:
    """The operators, and their backward halves, that ``csrc/cuda`` has kernels for."""
    texts = (path.read_text() for path in sorted((CSRC / "cuda").glob("*.cu")))
    registrations = [part for text in texts for part in text.split("LONGSPAN_REGISTER(m)")[1:]]
    return [name for text in registrations for name in re.findall(r'm\.impl\("(\w+)"', text)]


def sources_of(*types: str) -> list[str]:
    """The sources without those of other element types, which are named ``<what>_<type>.cu``."""
    return [name for name in SOURCES if (ending := name.rsplit("_")[-1]) not in ELEMENT_TYPES or ending in types]


def nvcc() -> str | None:
    """The CUDA compiler, where there is one."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")


def host_compiler() -> str | None:
    """A C++ compiler for the emulator, which switches stacks on x86-64 alone."""
    return shutil.which("g++") if platform.machine() == "x86_64" else None


def _common_flags(csrc: Path) -> list[str]:
    return ["-std=c++20", "-DTORCH_TARGET_VERSION=0x020d000000000000", f"-I{csrc}", f"-I{TORCH / 'include'}"]


def run(command: Sequence[str | Path], environment: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """Standard error of a command that succeeds; AssertionError with all that it said, where it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stderr


def device_sources(csrc: Path) -> list[Path]:
    """Folders of what CUDA kernels are made of: changes of the CPU's leave what is built as it is."""
    return [csrc / "common", csrc / "cuda"]


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
    """Objects of C++ sources, each with flags of its own besides the common ones, two at a time (or MAX_JOBS)."""
    compiler = host_compiler()
    assert compiler

    def compile_one(source: tuple[Path, Sequence[str]]) -> Path:
        path, own = source
        output = folder / f"{path.stem}.o"
        common = [*_common_flags(csrc), f"-I{EMULATOR}", "-DLONGSPAN_EMULATED", "-Wno-unknown-pragmas"]
        run([compiler, *common, *flags, *own, "-x", "c++", "-c", path, "-o", output])
        return output

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        return list(pool.map(compile_one, sources))


def emulated_library() -> Path:
    """All of ``csrc/cuda`` for CPU tensors, run by the emulator: a library that registers ``longspan_emulated``.

    The environment variable LONGSPAN_EMULATOR_FLAGS takes the place of the compiler's options. What it leaves beside
    objects (``--coverage``) lies beside the library, in a folder of the same name.
    """
    flags = os.environ.get("LONGSPAN_EMULATOR_FLAGS", "-O1 -g").split()
    options = ["-fPIC", "-ffp-contract=fast", *flags]

    def make(path: Path) -> None:
        folder = path.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        sources = [(CSRC / "cuda" / f"{name}.cu", options) for name in SOURCES]
        # ThreadSanitizer must not see how the emulator changes threads: it is told by hand.
        own = ["-DEMULATOR_TSAN"] if "-fsanitize=thread" in flags else [x for x in flags if "sanitize" in x]
        sources += [(EMULATOR / "emulator.cpp", ["-fPIC", "-O2", *own])]
        objects = compile_objects(folder, sources, [], CSRC)
        libraries = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
        run([host_compiler(), "-shared", *flags, *objects, "-o", path, *libraries, "-pthread", "-Wl,--no-undefined"])
        for leftover in objects:
            leftover.unlink()
        shutil.rmtree(notes_of(path), ignore_errors=True)
        folder.rename(notes_of(path))

    return built("emulated", ".so", [*device_sources(CSRC), EMULATOR], options, make)


def notes_of(library: Path) -> Path:
    """The folder beside an emulated library."""
    return library.with_name(library.name.removeprefix("unfinished-")).with_suffix("")


def _sizes_for_nvcc(head_sizes: Sequence[int]) -> list[str]:
    """nvcc takes a plain comma for the end of an option."""
    return [f"-D{name}=" + r"\,".join(map(str, head_sizes)) for name in HEAD_SIZES]


def ptx(source: str, head_sizes: Sequence[int], csrc: Path = CSRC) -> str:
    """What nvcc makes of ``csrc/cuda/<source>.cu`` for compute capability 8.0, as text; of kernels for some heads."""
    flags = ["-O3", "-ptx", "-arch=compute_80", *_sizes_for_nvcc(head_sizes)]

    def make(path: Path) -> None:
        run([nvcc(), *_common_flags(csrc), *flags, csrc / "cuda" / f"{source}.cu", "-o", path])

    return built(source, ".ptx", device_sources(csrc), flags, make).read_text()


def machine_code_report(source: str, virtual: str, real: Sequence[str], head_sizes: Sequence[int] | None = None) -> str:
    """What ptxas says of each kernel of ``csrc/cuda/<source>.cu``: registers, stack, spills.

    Args:
        source: name of a file.
        virtual: the architecture whose PTX it is, as "compute_80".
        real: those that this PTX becomes machine code of, as "sm_86".
        head_sizes: None: all that are built.
    """
    flags = ["-O3", "-fatbin", f"-gencode=arch={virtual},code=[{','.join(real)}]", "-Xptxas", "-v"]
    flags += _sizes_for_nvcc(head_sizes) if head_sizes else []

    def make(path: Path) -> None:
        code = path.with_suffix(".fatbin")
        path.write_text(run([nvcc(), *_common_flags(CSRC), *flags, CSRC / "cuda" / f"{source}.cu", "-o", code]))
        code.unlink()

    return built(f"{source}-{real[0]}", ".txt", device_sources(CSRC), flags, make).read_text()
