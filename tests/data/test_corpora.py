"""Byte corpora: the parts, the digest, the compressors; the real text where its package can be had."""

import bz2
import gzip
import hashlib
import lzma
import zipfile

import numpy as np
import pytest

from longspan.data import corpora
from longspan.data.corpora import (
    CORPORA,
    compressor_baselines,
    join,
    load_corpus,
    read_corpus,
    split_by_position,
)
from longspan.data.packages import PackageUnavailable

ARTICLE = b"<page>\n  <text>''Anarchism'' is a [[political philosophy]].</text>\n</page>\n"


def test_parts_are_the_text_in_order():
    text = bytes(range(256)) * 4
    corpus = split_by_position("some", text)
    assert b"".join(part.tobytes() for part in (corpus.train, corpus.validation, corpus.test)) == text
    assert (len(corpus.train), len(corpus.validation), len(corpus.test), len(corpus)) == (922, 51, 51, 1024)
    with pytest.raises(ValueError, match="got 10 bytes"):
        split_by_position("some", b"0123456789")


def test_parts_of_several_texts_stay_apart():
    one, two = split_by_position("one", b"a" * 100), split_by_position("two", b"b" * 300)
    both = join("both", [one, two])
    assert both.train.tobytes() == b"a" * 90 + b"b" * 270
    assert both.validation.tobytes() == both.test.tobytes() == b"a" * 5 + b"b" * 15


def test_a_file_is_read_byte_for_byte(tmp_path):
    content = bytes(range(256)) * 2
    (tmp_path / "own.txt").write_bytes(content)
    corpus = read_corpus(tmp_path / "own.txt")
    assert corpus.name == "own.txt" and corpus.train.tobytes() == content[: len(corpus.train)]


def test_compressors():
    text, before = ARTICLE * 20, ARTICLE * 200
    bits = compressor_baselines(text)
    assert bits == {
        "gzip -9": pytest.approx(8 * len(gzip.compress(text, 9)) / len(text)),
        "bzip2 -9": pytest.approx(8 * len(bz2.compress(text, 9)) / len(text)),
        "xz -9": pytest.approx(8 * len(lzma.compress(text, preset=9)) / len(text)),
    }
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)
    assert all(7.9 < value < 9 for value in compressor_baselines(noise).values())
    assert compressor_baselines(noise, before=noise)["xz -9 after the training text"] < 0.2
    informed = compressor_baselines(text, before=before)
    assert {name: informed[name] for name in bits} == bits
    assert informed["xz -9 after the training text"] < bits["xz -9"]
    with pytest.raises(ValueError, match="at least one byte"):
        compressor_baselines(b"")


@pytest.fixture(params=["folder", "archive"])
def package(request, tmp_path, monkeypatch):
    """A package with files in nested folders, installed or as an archive; pinned to its own text."""
    files = {"b.py": b"second", "a/z.py": b"first", "c.txt": b"not source", "c/d/e.py": b"third" * 50}
    for name, content in files.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as bundle:
        for name, content in files.items():
            bundle.writestr(f"package/{name}", content)
    root = tmp_path / "package" if request.param == "folder" else zipfile.Path(tmp_path / "package.whl") / "package"
    monkeypatch.setattr(corpora, "package_root", lambda package: root)


def pin(monkeypatch, text):
    source = corpora._SOURCES["python"]
    pinned = corpora._Source(source.package, source.read, hashlib.sha256(text).hexdigest())
    monkeypatch.setitem(corpora._SOURCES, "python", pinned)


def test_source_files_in_the_order_of_their_names(package, monkeypatch):
    text = b"first\nsecond\n" + b"third" * 50
    pin(monkeypatch, text)
    corpus = load_corpus("python")
    assert b"".join(part.tobytes() for part in (corpus.train, corpus.validation, corpus.test)) == text


def test_another_text_than_the_checked_one_is_refused(package, monkeypatch):
    pin(monkeypatch, b"what was checked")
    with pytest.raises(PackageUnavailable, match="force-reinstall sympy=="):
        load_corpus("python")


def test_names():
    with pytest.raises(ValueError, match="wikipedia, agreements, python, mixed, got 'enwik8'"):
        load_corpus("enwik8")
    assert set(CORPORA) == {*corpora._SOURCES, "mixed"}


@pytest.mark.parametrize("name", ["wikipedia", "agreements", "python"])
def test_the_real_texts(name):
    try:
        corpus = load_corpus(name)
    except PackageUnavailable as missing:
        pytest.skip(str(missing))
    sizes = {"wikipedia": 6_089_746, "agreements": 14_899_444, "python": 26_170_349}
    assert len(corpus) == sizes[name]
    assert min(len(np.unique(part)) for part in (corpus.train, corpus.validation, corpus.test)) > 90
