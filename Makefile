# `make demo` and `make test` are the two commands; each makes the environment first if it is not there.
.PHONY: demo serve test screenshot test-browser test-clients test-mlflow unit campaign lint families clean
PYTHON ?= python3
BIN := .venv/bin

.venv/installed: pyproject.toml constraints.txt plugins/filesystem/pyproject.toml plugins/hub/pyproject.toml plugins/s3/pyproject.toml contrib/fsspec/pyproject.toml contrib/mlflow/pyproject.toml contrib/otel/pyproject.toml contrib/resolver-template/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[dev]" -e plugins/filesystem -e plugins/hub -e plugins/s3 -e contrib/fsspec -e contrib/mlflow -e contrib/otel -e contrib/resolver-template
	touch $@

demo: .venv/installed
	$(BIN)/python contrib/demo/demo.py

serve: .venv/installed
	$(BIN)/python contrib/demo/demo.py --serve

test: lint
	$(BIN)/pytest

# MLflow wants other versions than the rest is tested with, so this one has an environment of its own.
contrib/mlflow/.venv/installed: contrib/mlflow/pyproject.toml contrib/mlflow/tests/requirements.txt
	$(PYTHON) -m venv contrib/mlflow/.venv
	contrib/mlflow/.venv/bin/pip install -r contrib/mlflow/tests/requirements.txt
	contrib/mlflow/.venv/bin/pip install --no-deps -e . -e contrib/mlflow
	touch $@

test-mlflow: contrib/mlflow/.venv/installed
	contrib/mlflow/.venv/bin/pytest contrib/mlflow

# So do the clients; the server that they are pointed at runs in the project's own environment.
contrib/clients/.venv/installed: contrib/clients/requirements.txt
	$(PYTHON) -m venv contrib/clients/.venv
	contrib/clients/.venv/bin/pip install -r contrib/clients/requirements.txt
	touch $@

test-clients: .venv/installed contrib/clients/.venv/installed
	LORAMUX_PYTHON=$(BIN)/python contrib/clients/.venv/bin/pytest -W default contrib/clients

unit: .venv/installed
	$(BIN)/pytest tests/core tests/kernels -m "not slow and not campaign"

campaign: .venv/installed
	$(BIN)/pytest -m campaign -s

test-browser: .venv/installed
	$(BIN)/pytest -m browser

screenshot: .venv/installed
	cd tests && ../$(BIN)/python -W ignore dashboard_screenshot.py

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

families: .venv/installed
	$(BIN)/python -W ignore tests/families_table.py

clean:
	rm -rf .venv contrib/clients/.venv contrib/mlflow/.venv .cache .mypy_cache .ruff_cache .pytest_cache
