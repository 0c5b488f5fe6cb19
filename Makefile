# make demo   the main job: train on real agreements, answer questions about unseen ones (5 minutes on 2 cores)
# make test   the whole test suite
# make check  everything a change must pass: format, lint, types, tests with and without the kernels, packages, and
#             make check-cuda: the CUDA kernels without a GPU, compiled, emulated, sanitized, with planted faults
# make check-gpu  on a machine with a GPU: the CUDA kernels there, and the benchmark against its peers
# make bench  speed and memory against the peers; make fuzz: random shapes against the definition, for a while
# Each sets up .venv where it is missing. TORCH and TORCH_INDEX choose the PyTorch build (README, "Install").

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
WORKERS ?= 2
FUZZ_SECONDS ?= 120

python := .venv/bin/python
kernels := $(wildcard csrc/*.cpp csrc/*/*)
export HF_HUB_OFFLINE = 1

.PHONY: demo test check check-beyond-tests check-cuda check-gpu bench fuzz docs format setup clean

demo: setup
	$(python) scripts/demo.py

test: setup
	OMP_NUM_THREADS=1 $(python) -m pytest -n $(WORKERS)

check: test check-beyond-tests check-cuda

check-beyond-tests: setup
	TORCH="$(TORCH)" TORCH_INDEX="$(TORCH_INDEX)" PYTHON="$(PYTHON)" bash scripts/check.sh

check-cuda: setup
	OMP_NUM_THREADS=1 MAX_JOBS=1 $(python) -m pytest tests/cuda -m slow -n $(WORKERS) --dist worksteal

check-gpu: setup
	$(python) -m pytest tests/cuda/test_on_device.py -n 0
	$(python) scripts/bench_banded.py --device cuda

bench: setup
	$(python) scripts/bench_banded.py
	$(python) scripts/bench_lsh.py
	$(python) scripts/bench_multidim.py
	$(python) scripts/bench_biblosan.py
	$(python) scripts/bench_models.py
	$(python) scripts/bench_span.py

fuzz: setup
	$(python) scripts/fuzz.py --seconds $(FUZZ_SECONDS)

docs: setup
	$(python) scripts/draw_pattern.py
	$(python) scripts/draw_lsh.py
	$(python) scripts/draw_multidim.py
	$(python) scripts/draw_span.py

format: setup
	.venv/bin/ruff format
	.venv/bin/ruff check --fix
	.venv/bin/clang-format -i $(filter %.cpp %.h %.cu %.cuh,$(kernels))

setup: .venv/built

.venv/requirements: requirements.txt
	test -x $(python) || $(PYTHON) -m venv .venv
	$(python) -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(python) -m pip install --quiet -r requirements.txt
	touch $@

.venv/built: .venv/requirements setup.py pyproject.toml $(kernels)
	$(python) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(python) -m longspan.info
	touch $@

clean:
	rm -rf .venv build dist models/*.egg-info models/longspan/_C.abi3.so
