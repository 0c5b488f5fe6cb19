"""The Bible verse by verse in two English versions: King James (1769) and World English (2020).

31,095 pairs of texts that say the same in old and in modern words: to translate from one to the other, or to tell a
verse's other version from verses that only look like it (`verse_pairs`). The packages hold modules of the SWORD
project: books compressed with zlib, and an index of verses.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from datasets import Dataset, DatasetDict, Features, Value

from longspan.data import families
from longspan.data.archives import open_archive, read_files
from longspan.data.cached import SPLITS, cached_splits
from longspan.data.packages import KING_JAMES, WORLD_ENGLISH, Package

FEATURES = Features({name: Value("string") for name in ("id", "chapter", "family", "kjv", "web")})

_MODULES = "usr/share/sword/modules/texts/ztext"
_CHAPTER = re.compile(r'<chapter [^>]*osisID="([^"]+)"[^>]*sID=')
_BESIDE_TEXT = re.compile(r"<(title|note|list|speaker)\b[^>]*?(?<!/)>.*?</\1>", re.DOTALL)
_WITHIN_WORDS = re.compile(r"</?(?:w|transChange|divineName|q|seg|name|foreign|rdg|catchWord)\b[^>]*>")
_MARKUP = re.compile(r"<[^>]*>")
_SPACE_BEFORE_MARK = re.compile(r" (?=[,.;:?!’”)\]])")


@dataclass(frozen=True)
class Verse:
    """One verse: where it stands ("Gen.1.1"), its chapter ("Gen.1"), and its two versions."""

    id: str
    chapter: str
    kjv: str
    web: str


@cache
def read_verses() -> tuple[Verse, ...]:
    """The verses that both versions have, in the order of the King James Version.

    Raises:
        PackageUnavailable: when a package cannot be had.
    """
    kjv, web = ({name: verse_text(raw) for name, raw in read_module(p)} for p in (KING_JAMES, WORLD_ENGLISH))
    both = [name for name, text in kjv.items() if text and web.get(name)]
    return tuple(Verse(name, name.rsplit(".", 1)[0], kjv[name], web[name]) for name in both)


def load_verses() -> DatasetDict:
    """The pairs, for translation. Columns: ``id``, ``chapter``, ``family``, ``kjv``, ``web``.

    Train, validation and test (about 85, 5 and 10 %) are made of whole chapters, and chapters that tell the same (of
    Kings and Chronicles, of the gospels) lie on one side, as one family.
    """
    return cached_splits("verses", _build_verses, [KING_JAMES, WORLD_ENGLISH], families)


def read_module(package: Package) -> Iterator[tuple[str, str]]:
    """Verses of a SWORD module with their markup, as ("Gen.1.1", text), in the order of its index.

    The index has a place for every verse of a numbering that differs between versions; so chapters are told by the
    markers in the text, and verses counted from there.
    """
    with open_archive(package) as archive:
        files = {name.rsplit("/", 1)[1]: content for name, content in read_files(archive, _MODULES).items()}
    for testament in ("ot", "nt"):
        chapter, number = "", 0
        for raw in _entries(files, testament):
            begun = _CHAPTER.findall(raw)
            if begun:  # the entry before verse 1 begins the chapter; a book's end may begin and end several
                chapter, number = begun[-1], 0
            elif chapter:
                number += 1
                yield f"{chapter}.{number}", raw


def verse_text(raw: str) -> str:
    """A verse's words: without markup, headings, notes, paragraph signs, and without what follows its chapter."""
    text = _BESIDE_TEXT.sub(" ", raw.split("<chapter eID=")[0])
    text = _MARKUP.sub(" ", _WITHIN_WORDS.sub("", text))
    text = " ".join(html.unescape(text).replace("¶", " ").split())
    return _SPACE_BEFORE_MARK.sub("", text)


def _entries(files: Mapping[str, bytes], testament: str) -> Iterator[str]:
    """The texts that an index names. Books are zlib streams: .bzz, where they begin: .bzs, and the verses: .bzv."""
    index, compressed, verses = (files[f"{testament}.{kind}"] for kind in ("bzs", "bzz", "bzv"))
    books = [
        zlib.decompress(compressed[begin : begin + size]) if size else b""
        for begin, size, _ in struct.iter_unpack("<III", index)
    ]
    for book, begin, size in struct.iter_unpack("<IIH", verses):
        yield books[book][begin : begin + size].decode("utf8") if size else ""


def _build_verses() -> DatasetDict:
    verses = read_verses()
    # Books have no family of their own: what stands before the first "." of a name would be one.
    chapters: dict[str, list[str]] = {}
    for verse in verses:
        chapters.setdefault(verse.chapter, []).append(verse.kjv)
    family = families.find_families({name.replace(".", " "): " ".join(texts) for name, texts in chapters.items()})
    split = families.draw_split(family, dict.fromkeys(family, 1.0), test=0.10, validation=0.05, largest=25)
    rows: dict[str, list[dict[str, str]]] = {part: [] for part in SPLITS}
    for verse in verses:
        name = verse.chapter.replace(".", " ")
        row = {**vars(verse), "family": family[name].replace(" ", ".")}
        rows[split[name]].append({column: row[column] for column in FEATURES})
    return DatasetDict({part: Dataset.from_list(rows[part], features=FEATURES) for part in SPLITS})
