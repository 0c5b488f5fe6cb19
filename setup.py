"""Build ``longspan._C``, the compiled kernels, from ``csrc/``: CPU always, CUDA where torch has it or it is asked for.

LibTorch's stable ABI and Python's limited API: one build serves CPython >= 3.10 and torch >= 2.13. CUDA sources are
compiled beside a CPU torch too (they need only its headers), so no GPU is needed to build. Without a C++ compiler the
package installs all the same and runs its PyTorch reference operators; ``python -m longspan.info`` tells which.
"""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch
import torch.utils.cpp_extension as torch_build
from setuptools import setup

CSRC = Path("csrc")  # relative: setuptools wants paths relative to this file
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020d000000000000"  # torch 2.13
CUDA_ARCHITECTURES = "8.0 9.0 10.0 12.0"
OLDEST_ARCHITECTURE = (8, 0)  # asynchronous copies, and tensor cores that multiply bfloat16


def wants_cuda() -> bool:
    """CUDA kernels serve a torch that was built with CUDA; beside another one they are built on request."""
    if os.environ.get("LONGSPAN_NO_CUDA"):
        return False
    if "TORCH_CUDA_ARCH_LIST" in os.environ:
        return True
    here = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if here and max(here) < OLDEST_ARCHITECTURE:
        print("longspan: the GPUs here are older than the CUDA kernels want (8.0), on them the PyTorch references run")
        return False
    return torch.version.cuda is not None


def cuda_architectures() -> list[int]:
    """What TORCH_CUDA_ARCH_LIST asks for: [80, 90] for "8.0 9.0"."""
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    flags = " ".join(torch_build._get_cuda_arch_flags())
    numbers = sorted({int(number) for number in re.findall(r"code=\w+_(\d+)", flags)})
    if numbers[0] < 80:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST: the CUDA kernels want 8.0 or newer, got {numbers[0] / 10}")
    return numbers


def find_cuda_home() -> str | None:
    """Where nvcc says that it is: what is on the path may be a script that calls it."""
    nvcc = shutil.which("nvcc", path=os.environ.get("CUDA_HOME", "/nowhere") + "/bin") or shutil.which("nvcc")
    if nvcc is None:
        print("longspan: no nvcc found, installing without CUDA kernels (on a GPU the PyTorch references run)")
        return None
    said = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
    here = re.search(r"_HERE_=(.*)", said)
    return str((Path(here[1]) if here else Path(nvcc).resolve().parent).parent)


def extension():
    cuda_sources = sorted(map(str, CSRC.glob("cuda/*.cu")))
    libraries, library_dirs, nvcc_flags = [], [], []
    if wants_cuda() and (cuda_home := find_cuda_home()):
        # CUDAExtension would link libtorch_cuda, which a CPU torch lacks and the stable ABI does not need.
        torch_build.CUDA_HOME = cuda_home
        architectures = cuda_architectures()
        # One intermediate code, the oldest, for all: most of the time goes into that. It comes along for newer GPUs.
        code = [*(f"sm_{number}" for number in architectures), f"compute_{architectures[0]}"]
        nvcc_flags = [
            f"-gencode=arch=compute_{architectures[0]},code=[{','.join(code)}]",
            "-DLONGSPAN_CUDA_ARCHITECTURES=" + r"\,".join(map(str, architectures)),
        ]
        libraries = ["cudart_static", "rt", "dl", "pthread"]
        # Where toolkits of NVIDIA, of conda and of pip keep it.
        places = [Path(cuda_home, name) for name in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib")]
        library_dirs = [str(place) for place in places if (place / "libcudart_static.a").exists()]
        if not library_dirs:
            raise SystemExit(
                f"longspan: no libcudart_static.a below {cuda_home}; LONGSPAN_NO_CUDA=1 builds without CUDA"
            )
    else:
        cuda_sources = []
    return torch_build.CppExtension(
        "longspan._C",
        sorted(map(str, [*CSRC.glob("*.cpp"), *CSRC.glob("cpu/*.cpp")])) + cuda_sources,
        depends=sorted(map(str, [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")])),
        include_dirs=[str(CSRC.resolve())],
        extra_compile_args={
            "cxx": ["-O3", "-fno-math-errno", "-Wno-psabi", "-Wno-maybe-uninitialized", STABLE_ABI],
            "nvcc": ["-O3", STABLE_ABI, *nvcc_flags],
        },
        libraries=libraries,
        library_dirs=library_dirs,
        py_limited_api=True,
    )


def can_compile() -> bool:
    if os.environ.get("LONGSPAN_NO_EXT"):
        return False
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) or shutil.which("g++"):
        return True
    print("longspan: no C++ compiler found, installing without compiled kernels (PyTorch reference operators only)")
    return False


compiled = can_compile()
setup(
    ext_modules=[extension()] if compiled else [],
    cmdclass={"build_ext": torch_build.BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if compiled else {},
)
