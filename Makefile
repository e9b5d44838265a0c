# Every target installs what it needs into .venv on first use, and again when the pins change.
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test portability smoke federation package extras lint docs check-claims clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | sort

demo: $(VENV)/demo.stamp ## audit one update made from a real batch; writes labelleak-demo/
	$(BIN)/labelleak demo --out labelleak-demo

test: $(VENV)/test.stamp ## run the tests on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The tests whose numbers could depend on the processor, the number of threads or the clock. Left out
# are those of messages, types, names, files and refusals, which are the same everywhere: published
# attacks are short formulas, and the contract of all attacks is of shapes, formats and errors.
NUMERICAL := $(filter-out %/published %/test_contract.py %/test_registry.py, \
  $(wildcard tests/attacks/[a-z]*)) tests/defenses tests/inversion \
  $(addprefix tests/updates/test_, any_loss.py formats.py forward.py gradients.py last_token.py \
  other_ends.py pixels.py weights.py) tests/test_doctests.py tests/test_loss.py tests/test_metrics.py tests/test_numerics.py \
  tests/test_observation.py tests/test_projection.py

portability: $(VENV)/test.stamp ## run the numerical tests as other processors and slower machines do
	# All at once: no vector instructions, two threads that wait without spinning, a clock that runs
	# five times as fast. A test that fails here and not in `make test` depends on one of them.
	ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE \
	  OMP_NUM_THREADS=2 LABELLEAK_TEST_THREADS=2 OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 \
	  LABELLEAK_TEST_CLOCK=5 $(BIN)/python -m pytest -n auto --quiet $(NUMERICAL)

smoke: $(VENV)/test.stamp ## run every table and figure of the paper at its smallest scale
	rm -rf labelleak-runs/all-smoke
	LABELLEAK_CACHE=labelleak-runs/cache $(BIN)/labelleak reproduce all --scale smoke

federation: $(VENV)/federation.stamp ## run the examples of audited federations
	$(BIN)/python examples/flower/run.py --defense none local-dp sparsification --refuse 2
	$(BIN)/python examples/flower/run.py --defense none local-dp sparsification --simulation
	$(BIN)/python examples/flower-secagg/secagg.py
	$(BIN)/python examples/breast-cancer/federation.py
	$(BIN)/python examples/breast-cancer/rule_of_ten.py

package: $(VENV)/package.stamp ## build wheel and sdist, and run the README on the wheel alone
	$(BIN)/python .ci/package.py

extras: $(VENV)/package.stamp ## try each extra alone, at the oldest and the newest versions (long)
	$(BIN)/python .ci/extras.py --output results/extras.json

check-claims: $(VENV)/test.stamp ## compare every figure in README and docs with its record
	$(BIN)/python benchmarks/claims.py

lint: $(VENV)/lint.stamp ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/docs.stamp ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove everything the other targets made, .venv included
	rm -rf $(VENV) site labelleak-demo labelleak-runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/demo.stamp: packages = --editable ".[cli,report]"
$(VENV)/test.stamp: packages = --editable ".[cli,report,data,nvflare,opacus]" --group test
$(VENV)/federation.stamp: packages = --editable ".[flower]" "flwr[simulation]" scikit-learn
# Types are checked against everything that the package and its tests import.
$(VENV)/lint.stamp: packages = --editable ".[cli,report,data]" --group test --group lint
$(VENV)/docs.stamp: packages = --group docs
$(VENV)/package.stamp: packages = --group package

$(VENV)/%.stamp: $(VENV)/pip.stamp Makefile pyproject.toml constraints.txt src/labelleak/_version.py
	@echo "Installing what 'make $*' needs into $(VENV) (a few minutes the first time)"
	@$(PIP) $(packages)
	@touch $@

# Dependency groups need a recent pip; the one that comes with Python may be older.
$(VENV)/pip.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "labelleak needs Python 3.11 or newer, and '$(PYTHON)' is not:" \
	  "name another one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@touch $@
