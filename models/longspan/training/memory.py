"""Peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import re
from contextlib import suppress
from pathlib import Path


class PeakMemory:
    """Growth of the process's resident memory while the block runs, in MiB; ``None`` where Linux does not tell.

    ```python
    with PeakMemory() as memory:
        model(**inputs)
    memory.mib
    ```

    What the process had freed before is given back to the system first (where the C library is glibc): memory that is
    used again would not count as growth.
    """

    mib: float | None = None

    def __enter__(self) -> PeakMemory:
        self._before = None
        gc.collect()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
            self._before = _resident("VmRSS")
        except OSError:
            pass
        return self

    def __exit__(self, *failure: object) -> None:
        if self._before is not None:
            self.mib = (_resident("VmHWM") - self._before) / 1024


def _resident(field: str) -> int:
    """KiB of ``VmRSS`` (now) or ``VmHWM`` (peak)."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if match is None:
        raise OSError(f"/proc/self/status does not name {field}")
    return int(match[1])
