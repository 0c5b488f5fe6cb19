"""The code in the pages of docs/ runs as it stands there, from the top of a page to its end."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Pages whose code needs nothing from a server.
PAGES = [
    "docs/adaptive_span.md",
    "docs/biblosan.md",
    "docs/reformer.md",
    "docs/streams.md",
    "docs/universal_transformer.md",
    "docs/ops/lsh.md",
    "docs/ops/multidim.md",
    "docs/ops/span.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)  # what a page writes goes with the test
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize(
    "path",
    [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_commands_name_scripts_that_exist():
    for path in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        for script in re.findall(r"python (scripts/\w+\.py)", path.read_text()):
            assert (ROOT / script).exists(), f"{path.name}: {script}"
