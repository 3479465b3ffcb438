# Every target first makes the virtual environment it needs; only python3 (3.10 or newer) and make are expected.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONSTRAINTS := deploy/constraints.txt
OLDEST := .venv-oldest
OLDEST_CONSTRAINTS := deploy/constraints-oldest.txt
INTEGRATION := $(addprefix tests/unit/test_,engine_guard.py sharded_model.py split.py trained.py weights.py) \
  $(addprefix tests/service/test_,loop_guard.py sft_trainer.py trainer.py) \
  $(addprefix tests/e2e/test_,examples.py gradient.py resume.py selections.py sharded.py sharded_trainer.py)
export HF_HUB_OFFLINE ?= 1
FUZZ_MINUTES ?= 10

.PHONY: demo test test-all test-oldest chaos fuzz check lint types drift proto reference constraints clean

demo: $(VENV)/.ready
	$(BIN)/train-client demo --out out/demo

# Those marked `long` start dozens of processes; `test-all` runs them too.
test: $(VENV)/.ready
	$(BIN)/pytest -m "not gpu and not long" -n 2 --dist worksteal

test-all: $(VENV)/.ready
	$(BIN)/pytest -m "not gpu" -n 2 --dist worksteal

# With the oldest releases that pyproject.toml allows, in an environment of their own: what talks to PyTorch's ecosystem.
# DeepSpeed compiles what it needs into a folder that must be its release's own.
test-oldest: export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(OLDEST)/torch_extensions
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/pytest -m "not gpu" -n 2 --dist worksteal $(INTEGRATION)

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

# Generated code is committed, so that installing needs no compiler; this proves it matches the contract, and that the
# reference pages of deploy/docs match the code.
drift: $(VENV)/.ready
	$(BIN)/python tests/contract/generate.py --check
	$(BIN)/python -m tests.contract.reference --check

proto: $(VENV)/.ready
	$(BIN)/python tests/contract/generate.py

reference: $(VENV)/.ready
	$(BIN)/python -m tests.contract.reference

# Torch comes first and through pip, so that pip's own configuration decides between the CPU and the CUDA build;
# uv then resolves the rest against it in seconds.
$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "subbatch needs Python 3.10 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) torch uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

$(OLDEST)/.ready: pyproject.toml $(OLDEST_CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13) and "the oldest releases need Python 3.10 to 3.12, this is " + sys.version)'
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST_CONSTRAINTS) torch uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --constraint $(OLDEST_CONSTRAINTS) \
	  --editable '.[deepspeed,test,trl]'
	touch $@

clean:
	rm -rf out .mypy_cache .ruff_cache .pytest_cache

# CUDA's packages are left to torch, whose build decides whether there are any.
constraints: $(VENV)/.ready
	(echo '# Tested versions, resolved from constraints.in by `make constraints`.'; grep -E '^(torch|uv)==' deploy/constraints.in; \
	 $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-emit-package torch --no-annotate --no-header \
	   --constraint deploy/constraints.in pyproject.toml | grep -v -i -E '^(nvidia|cuda|triton)') > $(CONSTRAINTS).new
	mv $(CONSTRAINTS).new $(CONSTRAINTS)
	(echo '# The oldest versions that pyproject.toml allows, but for torch, resolved by `make constraints`.'; \
	 grep -E '^(torch|uv)==' deploy/constraints.in; \
	 grep -E '^torch==' deploy/constraints.in | $(BIN)/uv pip compile --quiet --universal --python-version 3.10 \
	   --resolution lowest-direct --extra deepspeed --extra test --extra trl --no-emit-package torch --no-annotate --no-header \
	   --constraint - pyproject.toml | grep -v -i -E '^(nvidia|cuda|triton)') > $(OLDEST_CONSTRAINTS).new
	mv $(OLDEST_CONSTRAINTS).new $(OLDEST_CONSTRAINTS)
