"""The house rules that a reader relies on: imports run one way, names mirror each other, models/ holds one package."""

import ast
from pathlib import Path

import pytest

from longspan.registry import ARCHITECTURES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "models" / "longspan"
ARCHITECTURE_NAMES = [architecture.name for architecture in ARCHITECTURES]

# Lower levels never import higher ones; equals only within one folder.
LEVELS = [
    {"ops"},
    {"layers", "data"},
    {"base", "cache", "heads", "testing"},
    set(ARCHITECTURE_NAMES),
    {"registry", "convert_to_long", "info", "training", "pipelines"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def part_of(path: Path) -> str:
    """The folder or module of the package that a file belongs to: "ops", "heads", "longformer" ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = part_of(path)
    imports = imports_of(path)
    if here in ("ops", "layers"):
        assert not any(name.split(".")[0] == "transformers" for name in imports), "ops and layers know no transformers"
    for name in imports:
        parts = name.split(".")
        if parts[0] != "longspan" or len(parts) < 2 or parts[1] not in LEVEL_OF or parts[1] == here:
            continue
        both_top = LEVEL_OF[here] == LEVEL_OF[parts[1]] == len(LEVELS) - 1  # the top level is one circle of tools
        both_bases = {here, parts[1]} <= {"base", "cache", "heads"}
        assert LEVEL_OF[parts[1]] < LEVEL_OF[here] or both_top or both_bases, f"{here} imports {name}"


def test_every_part_has_a_level():
    parts = {part_of(path) for path in MODULES}
    assert parts <= set(LEVEL_OF), "give the new part its place in LEVELS"


def test_the_source_root_holds_one_package():
    assert [path.name for path in (ROOT / "models").iterdir() if not path.name.endswith(".egg-info")] == ["longspan"]


@pytest.mark.parametrize("name", ARCHITECTURE_NAMES)
def test_an_architecture_has_all_its_parts(name):
    for part in (f"configuration_{name}.py", f"modeling_{name}.py", f"tokenization_{name}.py", "conversion.py"):
        assert (PACKAGE / name / part).exists(), part
    assert list((ROOT / "configs" / name).glob("*.json"))
    assert (ROOT / "docs" / f"{name}.md").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "csrc" / "cpu").glob("*.cpp")), ids=lambda path: path.name)
def test_kernels_carry_the_name_of_their_operator(path):
    operators = {module.stem for module in (PACKAGE / "ops").glob("*.py")}
    assert path.stem in {"isa", "peak"} or path.stem.startswith("kernels_") or path.stem.split("_")[0] in operators
