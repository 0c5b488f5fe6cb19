"""Packages of Debian and npm as archives of files: read where they lie, never installed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from longspan.data.packages import Package, fetch_archive

_AR = b"!<arch>\n"  # Debian's packages are ar archives that hold one tar file with the content
_HEADER = 60  # bytes before each member: name 16, time 12, owner 6, group 6, mode 8, size 10, end 2


def open_archive(package: Package) -> tarfile.TarFile:
    """The files that a package of Debian or npm holds; close it after use.

    Raises:
        PackageUnavailable: when it cannot be had, see `fetch_archive`.
    """
    archive = fetch_archive(package)
    if package.registry == "apt":
        return tarfile.open(fileobj=io.BytesIO(debian_data(archive)))
    return tarfile.open(archive)


def read_files(archive: tarfile.TarFile, folder: str = "") -> dict[str, bytes]:
    """The regular files below ``folder``, by their path from there."""
    prefix = f"{folder.strip('/')}/" if folder else ""
    files = {}
    for member in archive:
        name = member.name.removeprefix("./")
        if member.isfile() and name.startswith(prefix):
            content = archive.extractfile(member)
            assert content is not None
            files[name.removeprefix(prefix)] = content.read()
    return files


def debian_data(path: Path) -> bytes:
    """The ``data.tar`` of a Debian package, compressed as it is.

    Raises:
        ValueError: when the file is no Debian package.
    """
    content = path.read_bytes()
    at = len(_AR)
    while content.startswith(_AR) and at + _HEADER <= len(content):
        name, size = content[at : at + 16].split(b"/")[0].strip(), int(content[at + 48 : at + 58])
        begin = at + _HEADER
        if name.startswith(b"data.tar"):
            return content[begin : begin + size]
        at = begin + size + size % 2  # members begin at even places
    raise ValueError(f"{path} is not a Debian package: it has no data.tar")
