# `make` alone lists the targets. PYTHON=python3.12 picks the Python that the environments are made with.
PYTHON ?= python3
TEMPLATE := {{cookiecutter.project_slug}}
UV := .venv/bin/uv
PYTEST := .venv/bin/python -m pytest
PARALLEL = --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

export NO_ALBUMENTATIONS_UPDATE = 1
# Importing torch and what trains with it takes 6 s of a core with byte code, and 15 s without.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help demo amazon primatrix test test-all test-machinery lint docs lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/bin/cookiecutter ## render a repository into build/demo, set it up and train its baseline
	rm -rf build/demo
	.venv/bin/cookiecutter . --no-input --output-dir build/demo project_name=Demo </dev/null
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(MAKE) -C build/demo/demo setup
	$(MAKE) -C build/demo/demo baseline

amazon: .venv/bin/cookiecutter ## render a repository with the experiments of a medal-winning team into build/amazon
	rm -rf build/amazon
	.venv/bin/cookiecutter . --no-input --output-dir build/amazon project_name=Amazon task=multilabel folds=10 </dev/null
	cp -r examples/amazon/* build/amazon/amazon

primatrix: .venv/bin/cookiecutter ## the same with the experiments on videos of another team, into build/primatrix
	rm -rf build/primatrix
	.venv/bin/cookiecutter . --no-input --output-dir build/primatrix project_name=Primatrix task=multilabel folds=5 </dev/null
	cp -r examples/primatrix/* build/primatrix/primatrix

test: .venv/tested test-machinery ## run all tests but the slow ones: of rendering, of the examples, of foldwise/
	$(PYTEST) tests --ignore tests/machinery $(PARALLEL)

test-all: ## the slow tests too: every example on the whole way
	$(MAKE) test ARGS='-m "slow or not slow"'

test-machinery: .venv/tested ## run the tests of foldwise/ in a rendering; ARGS="-k tiles" picks some
	rm -rf build/machinery
	.venv/bin/cookiecutter . --no-input --output-dir build/machinery </dev/null
	cp -r examples/amazon/* examples/primatrix/* build/machinery/my-competition
	cp -r tests/machinery build/machinery/my-competition/machinery_tests
	cd build/machinery/my-competition && ../../../$(PYTEST) machinery_tests $(PARALLEL)

lint: .venv/tested ## check style and types of both layers
	.venv/bin/python -m pytest tests/test_tools.py

docs: .venv/tested ## generate the rendered docs/commands.md and docs/recipes.md anew
	rm -rf build/docs
	.venv/bin/cookiecutter . --no-input --output-dir build/docs </dev/null
	.venv/bin/python tests/generated_docs.py build/docs/my-competition "$(TEMPLATE)/docs"

lock: .venv/bin/cookiecutter ## compile the rendered repository's requirements.lock anew, newest releases
	rm -rf build/lock
	.venv/bin/cookiecutter . --no-input --output-dir build/lock </dev/null
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(MAKE) -C build/lock/my-competition lock
	cp build/lock/my-competition/requirements.lock "$(TEMPLATE)/requirements.lock"

clean: ## remove what these targets made
	rm -rf .venv build .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/bin/cookiecutter:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(None if (3, 11) <= v <= (3, 13) else "This needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d; run make with PYTHON=python3.12, for example." % v)'
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) pip install --quiet --python .venv/bin/python "cookiecutter>=2.6"

# The environment that a rendering gets from its lock, and cookiecutter.
.venv/tested: .venv/bin/cookiecutter $(wildcard */requirements.lock) pyproject.toml
	$(UV) pip install --quiet --python .venv/bin/python --requirement "$(TEMPLATE)/requirements.lock" --group dev
	@touch $@
