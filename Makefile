# Two commands do all the set-up on a machine with Python 3.11+, venv and make:
#   make demo   compare the three cells on real data, on every framework
#   make test   every test
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-core lint types check bench readme clean

install: .venv/installed

# pip 25.1 is the first that knows --group.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $@

demo: install
	mkdir -p demo
	$(BIN)/multirnn compare --plot demo/seattle-weather.png

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# The core's tests with NumPy alone, in an environment made from nothing: make test-core PYTHON=python3.13
# Under two minutes: the compiled recurrence, the same library for every Python, has its long tests in `make test`.
CORE_ENV := .cache/core
CORE := activations boundary broken_backends cli_backends cli_explain cli_files cli_help cli_module cli_summary \
	conventions conventions_refused foreign_arrays formats_names formats_npz implementation imports kernel_activations \
	kernel_entry kernel_missing kernel_weights names numpy_fast numpy_native numpy_parameters numpy_reference readme \
	registry series spec strategies support verify weights

test-core:
	$(PYTHON) -m venv --clear $(CORE_ENV)
	$(CORE_ENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable . pytest hypothesis
	$(CORE_ENV)/bin/python -m pytest -p no:cacheprovider --quiet $(CORE:%=tests/test_%.py)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy
	$(BIN)/pyright

check: lint types test

OVERHEAD := numpy torch keras jax onnxruntime "*fast" "*by*hand" "*in*calls*" "NumPy?loop" torch.nn

bench: install
	$(BIN)/python benchmarks/plugin.py
	$(BIN)/python benchmarks/diagnosis.py
	$(BIN)/multirnn bench benchmarks/overhead.csv --threads 2 --minutes 20 --peers benchmarks/counterparts.py \
		$(OVERHEAD:%=--contender %) --out benchmarks/results/overhead.jsonl
	$(BIN)/python benchmarks/overhead.py benchmarks/results/overhead.jsonl --write
	$(BIN)/python benchmarks/whole_models.py --write
	$(BIN)/multirnn bench standard --out benchmarks/results/standard.jsonl
	$(BIN)/python benchmarks/goals.py benchmarks/results/standard.jsonl --write

# Writes the generated parts of README.md, docs/ and benchmarks/RESULTS.md again; `make test` fails while they differ.
readme: install
	$(BIN)/python -m pytest tests/test_agreement.py tests/test_large_sizes.py -k "drawn or large_sizes_agree" --observed tests/observed.json --numprocesses 2 --quiet
	$(BIN)/python -m pytest tests/test_readme.py --write-readme --quiet

clean:
	rm -rf .venv .cache demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
