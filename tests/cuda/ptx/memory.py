"""The memory of this process as numpy arrays: kernels get the tensors' own addresses."""

import ctypes

import numpy as np

_BEGIN = 1 << 16  # nothing is mapped below
_EVERYTHING = np.ctypeslib.as_array((ctypes.c_uint8 * ((1 << 47) - _BEGIN)).from_address(_BEGIN))
_VIEWS = {size: _EVERYTHING.view(f"u{size}") for size in (1, 2, 4, 8)}


class Global:
    """Global memory. An address that this process has not mapped raises IndexError, where a GPU would fault."""

    def __init__(self) -> None:
        self.begins, self.ends = self._mapped()

    @staticmethod
    def _mapped() -> tuple[np.ndarray, np.ndarray]:
        ranges = []
        with open("/proc/self/maps") as file:
            for line in file:
                span, access = line.split()[:2]
                if access.startswith("r"):
                    ranges.append([int(part, 16) for part in span.split("-")])
        begins, ends = np.array([r for r in ranges if r[1] < 1 << 47], dtype=np.int64).T
        return begins, ends

    def _check(self, address: np.ndarray, size: int, what: str) -> None:
        if not address.size:
            return
        if (address % size).any():
            raise IndexError(f"{what}: misaligned for {size} bytes")
        at = np.searchsorted(self.begins, address, side="right") - 1
        if (at < 0).any() or (address + size > self.ends[at]).any():
            raise IndexError(f"{what}: out of bounds")

    def load(self, address: np.ndarray, size: int) -> np.ndarray:
        self._check(address, size, "load from global memory")
        return _VIEWS[size][(address - _BEGIN) // size]

    def store(self, address: np.ndarray, values: np.ndarray) -> None:
        self._check(address, values.dtype.itemsize, "store to global memory")
        _VIEWS[values.dtype.itemsize][(address - _BEGIN) // values.dtype.itemsize] = values


class Shared:
    """Shared memory of all blocks, NaN at the start; ``address`` counts within a thread's own block."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size, self.pitch = size, -(-max(size, 16) // 16) * 16
        self.bytes = np.full(blocks * self.pitch, 0xFF, np.uint8)

    def _place(self, address: np.ndarray, block: np.ndarray, size: int) -> np.ndarray:
        if address.size and (address.min() < 0 or address.max() + size > self.size):
            raise IndexError(f"shared memory: {address.max()} + {size} bytes of {self.size}")
        if (address % size).any():
            raise IndexError(f"shared memory: misaligned for {size} bytes")
        return (address + block * self.pitch) // size

    def load(self, address: np.ndarray, block: np.ndarray, size: int) -> np.ndarray:
        return self.bytes.view(f"u{size}")[self._place(address, block, size)]

    def store(self, address: np.ndarray, block: np.ndarray, values: np.ndarray) -> None:
        size = values.dtype.itemsize
        self.bytes.view(f"u{size}")[self._place(address, block, size)] = values

    def rows(self, address: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Eight 16-bit numbers at each address: ``[..., 8]``."""
        return self.bytes.view("u2").reshape(-1, 8)[self._place(address, block, 16)]

    def set_rows(self, address: np.ndarray, block: np.ndarray, values: np.ndarray) -> None:
        """16 bytes, two words of eight, at each address: ``[..., 2]``."""
        self.bytes.view("u8").reshape(-1, 2)[self._place(address, block, 16)] = values
