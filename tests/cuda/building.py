"""Builds what tests of the CUDA kernels run: for the emulator, as PTX, as cubins. Results stay under ``build/cuda``.

What is built is named by everything that goes into it, so that nothing is built twice and nothing stale is used: an
object by its source and what that includes, whatever else changes (a fault planted in spans compiles spans anew).
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout

ROOT = Path(__file__).parents[2]
CSRC = Path(os.environ.get("LONGSPAN_CSRC", ROOT / "csrc"))  # elsewhere, where faults are planted in a copy
EMULATOR = Path(__file__).parent / "emulator"
BUILD = ROOT / "build" / "cuda"
TORCH = Path(torch.__file__).parent
HEAD_SIZES = ("LONGSPAN_HEAD_SIZES", "LONGSPAN_SPAN_HEAD_SIZES")  # macros: those that have tiles of their own
SHARED = ("-fPIC", "-ffp-contract=fast")
ELEMENT_TYPES = ("half", "bf16", "float", "double")
SOURCES = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))


def registered_operators() -> list[str]:
    """The operators, and their backward halves, that ``csrc/cuda`` has kernels for."""
    texts = (path.read_text() for path in sorted((CSRC / "cuda").glob("*.cu")))
    registrations = [part for text in texts for part in text.split("LONGSPAN_REGISTER(m)")[1:]]
    return [name for text in registrations for name in re.findall(r'm\.impl\("(\w+)"', text)]


def with_includes(source: Path, *folders: Path) -> list[Path]:
    """A source and all that it includes of ours, directly or not, whatever its macros choose."""
    found, waiting = [], [source]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.append(file)
        for name in re.findall(r'^\s*#\s*include "(.+)"', file.read_text(), re.M):
            waiting += [path for folder in (file.parent, *folders) if (path := folder / name).exists()][:1]
    return found


def sources_of(*types: str) -> list[str]:
    """The sources with kernels, without those of other element types, which are named ``<what>_<type>.cu``."""
    ours = [name for name in SOURCES if (ending := name.rsplit("_")[-1]) not in ELEMENT_TYPES or ending in types]
    files = {name: with_includes(CSRC / "cuda" / f"{name}.cu", CSRC) for name in ours}
    return [name for name in ours if any("__global__" in file.read_text() for file in files[name])]


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


@dataclass(frozen=True)
class Recipe:
    """A file under ``build/cuda``, of a name made from all that goes into it.

    Attributes:
        name: how its name begins.
        suffix: how it ends.
        files: what it is made from: their contents count, not where they are.
        words: what else goes into it.
        make: writes it, given where; what it leaves beside that file stays beside it.
    """

    name: str
    suffix: str
    files: Sequence[Path]
    words: Sequence[str]
    make: Callable[[Path], None]

    @property
    def path(self) -> Path:
        digest = hashlib.sha256("\0".join([torch.__version__, *self.words]).encode())
        for file in self.files:
            digest.update(file.read_bytes())
        return BUILD / f"{self.name}-{digest.hexdigest()[:16]}{self.suffix}"

    def built(self, wait: bool = True) -> Path | None:
        """The file, made unless it is there. None: another process is making it, and nobody wants to wait."""
        path = self.path
        (BUILD / "locks").mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(BUILD / "locks" / path.name, timeout=-1 if wait else 0):
                if not path.exists():
                    folder = BUILD / f"unfinished-{path.name}"
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    self.make(folder / path.name)
                    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):  # itself at last
                        file.rename(BUILD / file.name)
                    folder.rmdir()
        except Timeout:
            return None
        return path


def build(recipe: Recipe) -> Path:
    (path,) = build_all([recipe])
    return path


def build_all(recipes: Sequence[Recipe]) -> list[Path]:
    """Their files, made two at a time (or MAX_JOBS).

    What another process is making comes last: two that want the same share the work before one waits.
    """
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        made = list(pool.map(lambda recipe: recipe.built(wait=False), recipes))
    return [path or recipe.built() for path, recipe in zip(made, recipes, strict=True)]  # type: ignore[misc]


def compiled(source: Path, flags: Sequence[str], csrc: Path = CSRC) -> Recipe:
    """The object of a C++ source, for the emulator."""
    compiler = host_compiler()
    assert compiler
    words = [*flags, "-DLONGSPAN_EMULATED", "-Wno-unknown-pragmas"]

    def make(path: Path) -> None:
        run([compiler, *_common_flags(csrc), f"-I{EMULATOR}", *words, "-x", "c++", "-c", source, "-o", path])

    return Recipe(source.stem, ".o", with_includes(source, csrc, EMULATOR), words, make)


def emulator_object(flags: Sequence[str]) -> Recipe:
    """The emulator for kernels compiled with ``flags``. It is always optimized."""
    # ThreadSanitizer must not see how the emulator changes threads: it is told by hand.
    own = ["-DEMULATOR_TSAN"] if "-fsanitize=thread" in flags else [x for x in flags if "sanitize" in x]
    return compiled(EMULATOR / "emulator.cpp", ["-fPIC", "-O2", *own])


def linked(name: str, suffix: str, objects: Sequence[Path], flags: Sequence[str | Path]) -> Path:
    """A program or a library of objects."""

    def make(path: Path) -> None:
        run([host_compiler(), *objects, *flags, "-o", path])

    return build(Recipe(name, suffix, [], [*(path.name for path in objects), *map(str, flags)], make))


def emulated_library(head_size: int | None = None) -> Path:
    """All of ``csrc/cuda`` for CPU tensors, run by the emulator: a library that registers ``longspan_emulated``.

    With a head size: the only one with a tile of its own. That is built faster.

    What the compiler leaves beside objects (``--coverage``) lies beside them, in ``build/cuda``. Environment variables:
    LONGSPAN_EMULATOR_FLAGS takes the place of the compiler's options, LONGSPAN_EMULATOR_CSRC that of ``csrc``; with
    LONGSPAN_EMULATOR_ONLY both only for sources whose names begin with one of these words.
    """
    usual = ["-O1", "-g1", *([f"-D{name}={head_size}" for name in HEAD_SIZES] if head_size else [])]
    flags = os.environ.get("LONGSPAN_EMULATOR_FLAGS", " ".join(usual)).split()
    csrc = Path(os.environ.get("LONGSPAN_EMULATOR_CSRC", CSRC))
    only = tuple(os.environ.get("LONGSPAN_EMULATOR_ONLY", "").split()) or ("",)
    # Those come first: of an inline function that several objects have the linker takes the first.
    sources = sorted(SOURCES, key=lambda name: not name.startswith(only))
    chosen = [(name, csrc, flags) if name.startswith(only) else (name, CSRC, usual) for name in sources]
    recipes = [compiled(folder / "cuda" / f"{name}.cu", [*SHARED, *own], folder) for name, folder, own in chosen]
    objects = build_all([*recipes, emulator_object(flags)])
    libraries = [f"-L{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
    return linked("emulated", ".so", objects, ["-shared", *flags, *libraries, "-pthread", "-Wl,--no-undefined"])


def ptx(source: str, head_sizes: Sequence[int] | None = None, csrc: Path = CSRC) -> Recipe:
    """What nvcc makes of ``csrc/cuda/<source>.cu`` for compute capability 8.0, as text.

    Args:
        source: name of the file.
        head_sizes: those that have tiles of their own. None: as they are built for users.
        csrc: the folder of sources.
    """
    flags = ["-O3", "-ptx", "-arch=compute_80"]
    # nvcc takes a plain comma for the end of an option.
    flags += [f"-D{name}=" + r"\,".join(map(str, head_sizes)) for name in HEAD_SIZES] if head_sizes else []
    file = csrc / "cuda" / f"{source}.cu"

    def make(path: Path) -> None:
        run([nvcc(), *_common_flags(csrc), *flags, file, "-o", path])

    return Recipe(source, ".ptx", with_includes(file, csrc), flags, make)


def machine_code_report(code: Path, architecture: str, kernels: Sequence[str] = ()) -> str:
    """What ptxas says of each kernel: registers, stack, spills.

    Args:
        code: a file of PTX.
        architecture: as "sm_86".
        kernels: symbols; none: all that are in the file.
    """
    flags = ["-cubin", f"-arch={architecture}", "-Xptxas", ",".join(["-v", *(f"--entry={name}" for name in kernels)])]

    def make(path: Path) -> None:
        path.write_text(run([nvcc(), *flags, code, "-o", os.devnull]))

    return build(Recipe(f"{code.stem}-{architecture}", ".txt", [code], flags, make)).read_text()
