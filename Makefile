# make demo   the main job on bundled data       make test   lint, types and tests
# make bench  benchmarks                          make soak   the long tests
# make rti    how good a student n teacher calls buy: losses, budgets, seeds and the report, in minutes
# Each sets up what it needs. VENV=DIR reuses an environment; PYTHON=... picks the interpreter (>= 3.11).
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
# The environment is current when its stamp carries the digest of what it was made from.
STAMP := $(VENV)/.teachonce-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(BIN):$(PATH)

.PHONY: demo rti test lint bench soak clean

demo: $(STAMP)
	student-trainer demo --out runs/demo

# Stopped and started again, it goes on where it was.
rti: $(STAMP)
	student-trainer sweep recipes/rti-digits.yaml --out runs/rti-digits
	student-trainer report runs/rti-digits

# One thread per process: tests start many processes, and oversubscribed cores cost tenfold.
test: lint
	OMP_NUM_THREADS=1 pytest -m "not soak" -q --numprocesses auto --dist loadfile

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy

bench: $(STAMP)
	@for script in benchmarks/*.py; do echo "== $$script"; python $$script || exit 1; done

soak: $(STAMP)
	OMP_NUM_THREADS=1 pytest -m soak -q

# --no-deps: the lock is complete, so nothing is left for a resolver to decide. uv unpacks these three gigabytes in a third
# of pip's time; where only pip knows the way to the packages (a private index), pip does it.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "teachonce needs Python 3.11 or newer: set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --constraint requirements.lock uv
	uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode --requirement requirements.lock \
		|| $(BIN)/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	rm -f $(VENV)/.teachonce-*
	touch $@

clean:
	rm -rf runs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
