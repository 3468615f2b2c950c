# Every target makes the environment that it needs; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready

.PHONY: help demo test check format manifests test-cluster bench lock clean
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: no '$(PYTHON)' on PATH: install Python 3.11 or later, or name one with PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: '$(PYTHON)' is older than Python 3.11: install a newer one and name it with PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: '$(PYTHON)' cannot make environments: install Debian's package for that (apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@echo "making $(VENV) from requirements.lock (once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## Run the tutorial on the embedded sandbox
	@$(VENV)/bin/podidentity demo

test: $(READY)  ## All tests that need only Python
	@$(PY) -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## Format, lint, strict types, import rules
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(PY) -m pytest -q tests/architecture

format: $(READY)  ## Rewrite the sources in the project's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

manifests: $(READY)  ## Write deploy/infra from the chart
	@$(PY) -m tests.cluster.manifests

test-cluster: $(READY)  ## Real API server, real interception, real Azure SDKs; needs root
	@$(PY) -m tests.cluster.sdks.build
	@$(PY) -m pytest --override-ini norecursedirs= tests/cluster

bench: $(READY)  ## Print what the hot paths cost
	@$(PY) -m tests.bench

lock: $(READY)  ## Choose new versions of all dependencies
	@$(PY) -m pip install --quiet uv
	@$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --all-extras pyproject.toml -o requirements.lock

clean:  ## Remove what the targets made, but for what was built for tests in .cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
