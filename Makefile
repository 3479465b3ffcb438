# Every target first makes the virtual environment it needs; only python3 (3.10 or newer) and make are expected.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := deploy/constraints.txt
export HF_HUB_OFFLINE ?= 1
FUZZ_MINUTES ?= 10

.PHONY: demo test test-all chaos fuzz check lint types drift proto constraints clean

demo: $(VENV)/.ready
	$(BIN)/train-client demo --out out/demo

# Those marked `long` start dozens of processes; `test-all` runs them too.
test: $(VENV)/.ready
	$(BIN)/pytest -m "not gpu and not long" -n 2 --dist worksteal

test-all: $(VENV)/.ready
	$(BIN)/pytest -m "not gpu" -n 2 --dist worksteal

# Half an hour at most: a job trains while server, ranks and network fail around it and, for root, the disk fills up.
chaos: $(VENV)/.ready
	rm -rf out/chaos
	$(BIN)/python -m tests.chaos --minutes 30 --seed 0 --faults 50 --out out/chaos

# The decoders of everything that arrives, one after another; `make test` has a short version that is always the same.
fuzz: $(VENV)/.ready
	for file in tests/fuzz/test_*.py; do \
	  FUZZ_MINUTES=$(FUZZ_MINUTES) $(BIN)/pytest $$file --timeout 0 -o log_cli=true --log-cli-level INFO || exit 1; \
	done

check: lint types drift test

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

# Generated code is committed, so that installing needs no compiler; this proves it matches the contract.
drift: $(VENV)/.ready
	$(BIN)/python tests/contract/generate.py --check

proto: $(VENV)/.ready
	$(BIN)/python tests/contract/generate.py

# Torch comes first and through pip, so that pip's own configuration decides between the CPU and the CUDA build;
# uv then resolves the rest against it in seconds.
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "subbatch needs Python 3.10 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache

# CUDA's packages are left to torch, whose build decides whether there are any.
constraints: $(VENV)/.ready
	(echo '# Tested versions, resolved from constraints.in by `make constraints`.'; grep -E '^(torch|uv)==' deploy/constraints.in; \
	 $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-emit-package torch --no-annotate --no-header \
	   --constraint deploy/constraints.in pyproject.toml | grep -v -i -E '^(nvidia|cuda|triton)') > $(CONSTRAINTS).new
	mv $(CONSTRAINTS).new $(CONSTRAINTS)
