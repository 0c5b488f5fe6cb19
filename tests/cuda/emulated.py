"""The public operators, computed by the CUDA kernels: on the emulator, or by the interpreter of their PTX."""

import ctypes
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import longspan.ops  # noqa: F401  (registers the operators)

from .building import registered_operators
from .ptx.interpreter import Launch
from .ptx.program import Kernel

OPERATORS = registered_operators()
_DRIVER = ctypes.CFUNCTYPE(
    None, ctypes.c_char_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_size_t, ctypes.POINTER(ctypes.c_void_p)
)
_schemas = None
_loaded: Path | None = None


def _define_schemas() -> None:
    """The operators' own schemas, in the namespace that an emulated library registers kernels in."""
    global _schemas
    if _schemas is None:
        _schemas = torch.library.Library("longspan_emulated", "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.longspan, name).default._schema)
            _schemas.define(schema.split("::", 1)[1])


class Emulator:
    """One library; a process can load one."""

    def __init__(self, library: Path) -> None:
        global _loaded
        assert _loaded in (None, library), f"{_loaded} is loaded already"
        if _loaded is None:
            _define_schemas()
            torch.ops.load_library(str(library))
        _loaded = library
        self._library = ctypes.CDLL(str(library))

    def configure(self, *, seed: int = 0, threads: int = 1) -> tuple[int, int, int]:
        """The order of threads, blocks and copies: in turn, or at random from ``seed``.

        Returns:
            Blocks, switches between threads and warp words that ran since the last call.
        """
        counts = (ctypes.c_int64 * 3)()
        self._library.longspan_emulator_configure(ctypes.c_uint64(seed), threads, counts)
        return tuple(counts)  # type: ignore[return-value]

    @contextmanager
    def running(self, *, seed: int = 0) -> Iterator[None]:
        """The public operators run on the emulator."""
        override = torch.library.Library("longspan", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel takes another's place
            for name in OPERATORS:
                kernel = getattr(torch.ops.longspan_emulated, name).default
                override.impl(name, kernel, "CPU", allow_override=True)
        self.configure(seed=seed)
        try:
            yield
        finally:
            self.configure()
            override._destroy()

    @contextmanager
    def interpreting(self, kernels: dict[str, Kernel]) -> Iterator[list[str]]:
        """The public operators run the PTX of ``kernels``. Yields the symbols of those that ran, in order."""
        ran: list[str] = []
        errors: list[BaseException] = []

        def drive(symbol: bytes, blocks: int, threads: int, shared_bytes: int, arguments) -> None:
            try:
                kernel = kernels[symbol.decode()]
                parameters = bytearray(sum(size + 8 for _, size in kernel.parameters.values()))
                for i, (offset, size) in enumerate(kernel.parameters.values()):
                    parameters[offset : offset + size] = ctypes.string_at(arguments[i], size)
                Launch(kernel, blocks, threads, shared_bytes, bytes(parameters)).run()
                ran.append(kernel.name)
            except BaseException as error:  # a callback from C cannot raise
                errors.append(error)

        callback = _DRIVER(drive)
        self._library.longspan_emulator_set_driver(callback)
        try:
            with self.running():
                yield ran
        finally:
            self._library.longspan_emulator_set_driver(_DRIVER())
            if errors:
                raise errors[0]
