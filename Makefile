PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: help demo test test-slow lint format bench clean
help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/experiments.stamp  ## install, and compress a small network on a small data set
	$(RUN) experiments run progressive-admm --data digits --quick

test: $(VENV)/dev.stamp  ## the tests, less the slow ones
	$(RUN) pytest -n 2 --dist loadfile

test-slow: $(VENV)/dev.stamp  ## the slow tests alone
	$(RUN) pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/dev.stamp  ## ruff and mypy
	$(RUN) ruff check
	$(RUN) ruff format --check
	$(RUN) mypy jaxcomp

format: $(VENV)/dev.stamp  ## sort the imports and lay out the code
	$(RUN) ruff check --fix
	$(RUN) ruff format

bench: $(VENV)/dev.stamp  ## measure against peers
	$(RUN) benchmarks

clean:  ## remove the environment, the caches and what was built
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxcomp needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/experiments.stamp: pyproject.toml $(CONSTRAINTS) | $(VENV)/python.stamp
	$(INSTALL) -e ".[experiments]"
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(CONSTRAINTS) | $(VENV)/python.stamp
	$(INSTALL) -e ".[experiments,sweeps,dev]"
	@touch $(VENV)/experiments.stamp $@
