# Everything happens in ./.venv; no target needs one to be active, or anything but a Python of 3.11 or later.
.DEFAULT_GOAL := help
.PHONY: help venv demo test coverage check docs clean

VENV := .venv
STAMP := $(VENV)/.installed
BIN := $(VENV)/bin

help:
	@echo "make demo      tailor networks to this machine, in about three minutes, into runs/demo"
	@echo "make test      format, lint, types and the quick tests"
	@echo "make coverage  the quick tests with branch coverage, which must be 95 %"
	@echo "make venv      set up $(VENV) and nothing else"
	@echo "make check     format, lint, types and import directions"
	@echo "make docs      build the documentation into site/"
	@echo "make clean     remove builds and caches; $(VENV) and runs/ stay"

venv: $(STAMP)

# Written last, so that a set-up cut short is done again.
$(STAMP): pyproject.toml constraints.txt scripts/setup
	@scripts/setup $(VENV) dev
	@touch $@

demo: $(STAMP)
	@if [ -f runs/demo/run.json ]; then resume=--resume; fi; \
	$(BIN)/sartor search digits --target onnxruntime --latency 0.1ms --budget 170s --out runs/demo $$resume

test: check
	@$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not target"

coverage: $(STAMP)
	@$(BIN)/python -m pytest -n 2 -q -m "not slow and not gpu and not target" --cov --cov-report=term

check: $(STAMP)
	@scripts/check

docs: $(STAMP)
	@scripts/setup $(VENV) docs
	@$(BIN)/properdocs build --clean

clean:
	rm -rf build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
