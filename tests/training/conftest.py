import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stream_worker():
    """The module of the small model that carries state."""
    spec = importlib.util.spec_from_file_location("stream_worker", Path(__file__).with_name("stream_worker.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
