# Everything runs in one virtual environment that the first target makes by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow torture study study-tables screenshot format clean

demo: $(INSTALLED)  ## the paper's experiment on bundled MNIST images: a minute or two
	$(BIN)/fragile-neurons analyze

test: $(INSTALLED)  ## lint, types, import floors and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

test-slow: $(INSTALLED)  ## simulations and long runs
	$(BIN)/pytest -m slow --dist worksteal --durations=15

torture: $(INSTALLED)  ## docs/torture.md: runs killed and damaged, nothing lost
	$(BIN)/python tests/faults/torture.py --kills 50 --flips 100 --output docs/torture.md

study: $(INSTALLED)  ## the paper's experiment by seventeen trainings: about ten hours on two cores, goes on where it was
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python docs/study/study.py; code=$$?; $(BIN)/python docs/study/page.py && exit $$code

study-tables: $(INSTALLED)  ## docs/study.md from the files under docs/study
	$(BIN)/python docs/study/page.py

screenshot: $(INSTALLED)  ## docs/report.png, the report of what demo runs; needs chromium
	$(BIN)/fragile-neurons analyze --output runs/demo
	$(BIN)/python docs/screenshot.py runs/demo docs/report.png

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fragile-neurons needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps torchattacks==3.5.1  # it pins packages that it does not need here
	touch $@

clean:
	rm -rf $(VENV) runs trained build
