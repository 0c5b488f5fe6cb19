"""Fetches transformers' own model tests, which its source package on PyPI ships, and makes them importable.

They run against our classes unchanged. Nothing of them is kept in the repository: they lie in ``.cache/``, fetched by
pip the first time a test asks for them.
"""

import importlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers
from transformers.models.auto import modeling_auto

from longspan.registry import ARCHITECTURES

CACHE = Path(__file__).parents[2] / ".cache" / f"transformers-{transformers.__version__}"
PACKAGE = "hf_tests"  # not "tests": that name is taken

# Parts the source package lacks. The mixins for generation and export are named in the common tests, no more.
STUBS = {
    "__init__.py": "",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "utils/__init__.py": "",
    # Values that differ from the defaults of every configuration.
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "return_dict": False, "output_hidden_states": True, "output_attentions": True, "dtype": "float16",
    "chunk_size_feed_forward": 5, "architectures": ["BertModel"], "id2label": {0: "label"}, "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
}


def fetch() -> None:
    """Download the source package, unpack its tests and add the stubs. Complete or not at all."""
    package = CACHE / PACKAGE
    if (package / "complete").exists():
        return
    requirement = f"transformers=={transformers.__version__}"
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--quiet", "--dest", str(CACHE)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True, capture_output=True)
    package.mkdir(parents=True, exist_ok=True)
    (archive,) = CACHE.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        for member in source.getmembers():
            if re.fullmatch(r"[^/]+/tests/[^/]+\.py", member.name) and (content := source.extractfile(member)):
                (package / Path(member.name).name).write_bytes(content.read())
    for name, text in STUBS.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (package / "complete").touch()


@pytest.fixture(scope="session")
def upstream(request):
    """``import_upstream(module)`` for the modules of transformers' tests; skips where they cannot be had."""
    pytest.importorskip("parameterized", reason="transformers' tests need the package parameterized")
    try:
        fetch()
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode().strip().splitlines() or ["no reason given"]
        pytest.skip(f"pip could not fetch the source package of transformers {transformers.__version__}: {reason[-1]}")
    for path in (CACHE / PACKAGE).glob("*.py"):
        for mark in sorted(set(re.findall(r"\bmark\.(\w+)", path.read_text()))):
            request.config.addinivalue_line("markers", f"{mark}: of transformers' tests")
    sys.path.insert(0, str(CACHE))
    yield lambda module: importlib.import_module(f"{PACKAGE}.{module}")
    sys.path.remove(str(CACHE))


@pytest.fixture
def registered_names(monkeypatch):
    """transformers' tests look up by class name which inputs and labels a head takes; its lists know only its own."""
    for architecture in ARCHITECTURES:
        for auto_class, model_class in architecture.auto_classes().items():
            task = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", auto_class.removeprefix("AutoModel")).upper()
            task = task.replace("SEQ2SEQ_LM", "SEQ_TO_SEQ_CAUSAL_LM")
            table = getattr(modeling_auto, f"MODEL_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES")
            monkeypatch.setitem(table, architecture.config_class.model_type, model_class.__name__)
