# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Needed: Python 3.11-3.14, make, a package index.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench overfit drill-kills drill-faults clean

demo: $(VENV)/.ready-demo  ## set up, segment held-out scenes with the checkpoint of the package
	$(BIN)/python jobs/demo.py

test: $(VENV)/.ready-test lint  ## set up, lint, type-check and run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/.ready-test  ## the tests that need minutes each
	$(BIN)/python -m pytest -m slow -s

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-test  ## speed against transformers + pycocotools, as ratios
	$(BIN)/python tests/benchmarks/bench_postprocess.py
	$(BIN)/python tests/benchmarks/bench_tasks.py
	$(BIN)/python tests/benchmarks/bench_input.py
	$(BIN)/python tests/benchmarks/bench_augment.py
	$(BIN)/python tests/benchmarks/bench_steps.py
	$(BIN)/python tests/benchmarks/bench_model.py
	$(BIN)/python tests/benchmarks/bench_job.py
	$(BIN)/python tests/benchmarks/bench_devices.py

overfit: $(VENV)/.ready-test  ## five hours: 13 photographs of ../shared/data by heart
	$(BIN)/python tests/training/overfit_photographs.py

drill-kills: $(VENV)/.ready-test  ## hundreds of kills, tables compared after each; KILLS=200 SEED=0
	$(BIN)/python -m tests.reliability.campaign --kills $(or $(KILLS),200) --seed $(or $(SEED),0)

drill-faults: $(VENV)/.ready-test  ## a store that breaks 5 % of its requests in each of seven ways
	$(BIN)/python -m tests.reliability.store_faults --share $(or $(SHARE),0.05) --seed $(or $(SEED),0)

clean:
	rm -rf $(VENV) .demo .overfit

EXTRAS_test := [test]

$(VENV)/.ready-%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11-3.14 found; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS_$*)'
	touch $@
