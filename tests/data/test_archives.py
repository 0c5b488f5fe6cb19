"""Packages of Debian and npm are read as they come. The registries are stand-ins."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from longspan.data import packages
from longspan.data.archives import debian_data, open_archive, read_files
from longspan.data.packages import Package, PackageUnavailable


def tar(files, mode="w:xz"):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def debian(files):
    """A Debian package: an ar archive of a version, control files and data."""
    content = b"!<arch>\n"
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": tar(files)}
    for name, member in members.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(member):<10}`\n".encode()
        content += member + b"\n" * (len(member) % 2)
    return content


def package_of(content, registry, name):
    digest = hashlib.sha256(content).hexdigest()
    return Package("some-text", "1.0", "", name, digest, "some text, public domain", registry=registry)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "_announced", set())
    return tmp_path / "cache"


FILES = {"./usr/share/text/a.txt": b"first", "./usr/share/text/deep/b.txt": b"second", "./usr/share/other.txt": b"no"}


@pytest.mark.parametrize(
    ("registry", "command"),
    [("apt", ["apt-get", "download", "some-text=1.0"]), ("npm", ["npm", "pack", "some-text@1.0"])],
)
def test_fetched_checked_and_read(registry, command, cache, monkeypatch, capsys):
    content = debian(FILES) if registry == "apt" else tar(FILES, "w:gz")
    package = package_of(content, registry, "some-text.archive")
    calls = []

    def run(given, cwd, **options):
        calls.append(given)
        (Path(cwd) / "some-text.archive").write_bytes(content)
        return subprocess.CompletedProcess(given, 0, "", "W: something harmless")

    monkeypatch.setattr(packages.subprocess, "run", run)
    for _ in range(2):
        with open_archive(package) as archive:
            assert read_files(archive, "usr/share/text") == {"a.txt": b"first", "deep/b.txt": b"second"}
    assert calls == [command]
    assert capsys.readouterr().err == "some text, public domain\n"


def test_without_the_tool_the_message_tells_the_mend(cache, monkeypatch):
    def run(given, **options):
        raise FileNotFoundError(given[0])

    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(PackageUnavailable) as caught:
        open_archive(package_of(b"", "apt", "some-text_1.0_all.deb"))
    message = str(caught.value)
    assert "no apt-get here" in message and "`apt-get download some-text=1.0`" in message
    assert f"put some-text_1.0_all.deb into {cache}." in message


def test_all_files_and_their_paths(tmp_path):
    (tmp_path / "some.deb").write_bytes(debian(FILES))
    with tarfile.open(fileobj=io.BytesIO(debian_data(tmp_path / "some.deb"))) as archive:
        assert set(read_files(archive)) == {name.removeprefix("./") for name in FILES}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file", b"!<arch>\n", b"!<arch>\n" + b"x" * 30])
def test_what_is_no_debian_package(content, tmp_path):
    (tmp_path / "some.deb").write_bytes(content)
    with pytest.raises(ValueError, match="not a Debian package"):
        debian_data(tmp_path / "some.deb")
