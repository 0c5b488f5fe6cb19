"""What is compiled for tests is compiled again when, and only when, something that goes into it changes."""

import shutil
from pathlib import Path

import pytest

from . import building
from .building import CSRC, Recipe, build_all, compiled, host_compiler, ptx, sources_of, with_includes

needs_a_compiler = pytest.mark.skipif(host_compiler() is None, reason="the emulator needs g++ on x86-64")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of ``csrc``."""
    shutil.copytree(CSRC, tmp_path / "csrc")
    return tmp_path / "csrc"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(building, "BUILD", tmp_path / "build")
    return tmp_path / "build"


@needs_a_compiler
def test_a_copy_shares_what_is_built_until_it_changes(copy):
    def paths(csrc: Path) -> list[Path]:
        names = ("attention_half", "span_half")
        return [
            recipe.path
            for name in names
            for recipe in (compiled(csrc / "cuda" / f"{name}.cu", ["-O1"], csrc), ptx(name, csrc=csrc))
        ]

    assert paths(copy) == paths(CSRC)
    source = copy / "cuda" / "span.cuh"
    source.write_text(source.read_text() + "\n")
    changed = [ours != theirs for ours, theirs in zip(paths(copy), paths(CSRC), strict=True)]
    assert changed == [False, False, True, True]


def test_every_header_of_ours_is_found(tmp_path):
    """In whatever folder, however deep, once."""
    (tmp_path / "far").mkdir()
    (tmp_path / "a.cu").write_text('#include "b.h"\n#include <vector>\n  #  include "far/c.h"\n')
    (tmp_path / "b.h").write_text('#ifdef NEVER\n#include "far/c.h"\n#endif\n')
    (tmp_path / "far" / "c.h").write_text('#include "b.h"\n#include "d.h"\n')
    (tmp_path / "far" / "d.h").write_text("")
    found = [str(file.relative_to(tmp_path)) for file in with_includes(tmp_path / "a.cu", tmp_path)]
    assert sorted(found) == ["a.cu", "b.h", "far/c.h", "far/d.h"]


def test_sources_with_kernels_are_all_found():
    """The others have host code alone: nothing of them runs on a GPU."""
    assert {"attention_half", "span_half", "multidim", "hashing", "lsh"} <= set(sources_of("half"))
    assert not {"attention_float", "span_bf16", "banded"} & set(sources_of("half"))


def test_what_was_made_stays(folder):
    made = []

    def make(path: Path) -> None:
        made.append(path.name)
        path.write_text("text")
        path.with_suffix(".more").write_text("more")

    recipes = [Recipe(name, ".txt", [], ["word"], make) for name in ("a", "b")]
    assert [path.read_text() for path in build_all(recipes) + build_all(recipes)] == ["text"] * 4
    assert len(made) == 2
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".txt", ".more"}


def test_nothing_unfinished_is_used(folder):
    """What stopped in the middle is made again."""

    def stop(path: Path) -> None:
        path.write_text("half of it")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        build_all([Recipe("a", ".txt", [], [], stop)])

    def finish(path: Path) -> None:
        path.write_text("all of it")

    (path,) = build_all([Recipe("a", ".txt", [], [], finish)])
    assert path.read_text() == "all of it"
