"""Verses out of SWORD modules: made ones, and the real ones where their packages can be had."""

import io
import struct
import tarfile
import zlib
from collections import Counter

import pytest

from longspan.data import verses
from longspan.data.packages import KING_JAMES, WORLD_ENGLISH, PackageUnavailable
from longspan.data.verses import load_verses, read_module, read_verses, verse_text


def module(testaments):
    """An archive with a module: ``testaments`` maps "ot" and "nt" to books, which are lists of entries."""
    files = {}
    for name, books in testaments.items():
        index = compressed = table = b""
        for number, entries in enumerate(books):
            book = zlib.compress("".join(entries).encode())
            index += struct.pack("<III", len(compressed), len(book), 0)
            compressed += book
            begin = 0
            for entry in entries:
                size = len(entry.encode())
                table += struct.pack("<IIH", number, begin, size)
                begin += size
        files |= {f"{name}.bzs": index, f"{name}.bzz": compressed, f"{name}.bzv": table}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{verses._MODULES}/some/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    made.seek(0)
    return tarfile.open(fileobj=made)


def begin(chapter):
    return f'<chapter n="1" osisID="{chapter}" sID="{chapter}"/> '


def test_verses_are_counted_from_their_chapter(monkeypatch):
    old = [["about this module"], [begin("Gen.1"), "one", "", "three", begin("Gen.2"), "ä one"]]
    monkeypatch.setattr(verses, "open_archive", lambda package: module({"ot": old, "nt": [[begin("Matt.1"), "one"]]}))
    assert list(read_module(KING_JAMES)) == [
        ("Gen.1.1", "one"),
        ("Gen.1.2", ""),
        ("Gen.1.3", "three"),
        ("Gen.2.1", "ä one"),
        ("Matt.1.1", "one"),
    ]


def test_only_what_both_versions_have(monkeypatch):
    texts = {
        KING_JAMES.name: {"ot": [[begin("Gen.1"), "old one", "old two", "<title>a psalm</title>"]], "nt": []},
        WORLD_ENGLISH.name: {"ot": [[begin("Gen.1"), "new one", "", "new three"], [begin("Tob.1"), "new"]], "nt": []},
    }
    monkeypatch.setattr(verses, "open_archive", lambda package: module(texts[package.name]))
    read_verses.cache_clear()
    try:
        assert read_verses() == (verses.Verse("Gen.1.1", "Gen.1", "old one", "new one"),)
    finally:
        read_verses.cache_clear()


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ('<w lemma="a">And</w> <transChange type="added">it</transChange> <w>was</w>.', "And it was."),
        ("<w>God</w><note>in Hebrew <i>x</i></note><w>created</w>", "God created"),
        ("rivers,<note>a</note> <note>b</note>”<note>c</note>. So", "rivers,”. So"),
        ('¶ a line<l eID="1"/> <l sID="2"/>and a line', "a line and a line"),
        ("<title>A Psalm</title> of <divineName>LORD</divineName>s &amp; men", "of LORDs & men"),
        ('the end. <chapter eID="Rev.22"/> <div/> a glossary', "the end."),
        ('<title level="1"/>kept <title>dropped</title>', "kept"),
    ],
)
def test_words_of_a_verse(raw, text):
    assert verse_text(raw) == text


@pytest.fixture(scope="module")
def real():
    try:
        return read_verses()
    except PackageUnavailable as missing:
        pytest.skip(str(missing))


def test_the_real_verses(real):
    by_id = {verse.id: verse for verse in real}
    assert len(real) == len(by_id) == 31_095
    assert len({verse.chapter for verse in real}) == 1189
    assert by_id["Gen.1.1"].kjv == "In the beginning God created the heaven and the earth."
    assert by_id["Gen.1.1"].web == "In the beginning, God created the heavens and the earth."
    assert by_id["Rev.22.21"].web == "The grace of the Lord Jesus Christ be with all the saints. Amen."
    for verse in real:
        for text in (verse.kjv, verse.web):
            assert text and text == " ".join(text.split()) and not set(text) & set("<>&¶{}"), verse.id


def test_the_real_versions_say_the_same(real):
    """Words in common: two thirds of a verse's; numberings that slip by one would leave a quarter."""

    def common(one, other):
        one, other = ({word.strip(",.;:?!’”“").lower() for word in text.split()} for text in (one, other))
        return len(one & other) / len(one | other)

    chapters = Counter()
    verses_of = Counter()
    for verse in real:
        chapters[verse.chapter] += common(verse.kjv, verse.web)
        verses_of[verse.chapter] += 1
    means = {chapter: chapters[chapter] / verses_of[chapter] for chapter in chapters}
    assert min(means.values()) > 0.25
    slipped = [common(real[n].kjv, real[n + 1].web) for n in range(0, len(real) - 1, 50)]
    assert sum(slipped) / len(slipped) < 0.25 < 0.5 < sum(chapters.values()) / len(real)


def test_the_real_split(real):
    data = load_verses()
    assert sum(len(part) for part in data.values()) == len(real)
    families = [set(part["family"]) for part in data.values()]
    assert all(not one & other for one in families for other in families if one is not other)
    for chapter in ("family", "chapter"):
        assert {verse for part in data.values() for verse in part[chapter]} <= {verse.chapter for verse in real}
    assert 0.09 < len(data["test"]) / len(real) < 0.12 and 0.04 < len(data["validation"]) / len(real) < 0.06
    twice = set(data["train"]["kjv"])
    assert sum(text in twice for text in data["test"]["kjv"]) < 0.01 * len(data["test"])
