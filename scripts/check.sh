#!/usr/bin/env bash
# What a change must pass beyond the test suite: format, lint, types; operators and golden data without the compiled
# kernels; sdist and wheel, installed into a clean environment and tried there. Called by make check.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
say() { printf '\n== %s\n' "$*"; }

say format, lint, types
$bin/ruff format --check
$bin/ruff check
$bin/clang-format --dry-run --Werror csrc/*.cpp csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh
$bin/pyright

say operators and golden data on the PyTorch references alone
LONGSPAN_NO_EXT=1 OMP_NUM_THREADS=1 $bin/python -m pytest -q -n 2 tests/ops tests/golden

say packages
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
$bin/python -m build --no-isolation --outdir "$work/dist" . >"$work/build.log" 2>&1 || { tail -50 "$work/build.log"; exit 1; }
ls "$work/dist"

say a clean environment
${PYTHON:-python3} -m venv "$work/venv"
index=${TORCH_INDEX:+--index-url $TORCH_INDEX}
# shellcheck disable=SC2086
"$work/venv/bin/pip" install --quiet $index "${TORCH:-torch==2.13.0}"
"$work/venv/bin/pip" install --quiet "$work"/dist/*.whl pytest "transformers==$($bin/python -c 'import transformers; print(transformers.__version__)')"
cp -r tests/packaged "$work/packaged"
cd "$work"
export HF_HUB_OFFLINE=1
venv/bin/python -m longspan.info
venv/bin/python -m pytest -q packaged
