# Give another torch with, say, TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu".
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Several processes of one thread each are faster than one process of many, and are not slowed by other programs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Not with --quiet, which would silence --strict too; the variable silences the theme's notice about its successor.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: help demo test check docs

help:
	@echo "make .venv   a virtual environment in .venv with torch, the library and its tools (the others make it too)"
	@echo "make demo    train on small digits (under a minute); pictures and figures in out/demo"
	@echo "make test    all tests"
	@echo "make docs    the documentation as a site: out/site/index.html"
	@echo "make check   style, types, the direction of imports, the documentation"

.PHONY: .venv
.venv: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c "import torch" 2> /dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/tracetorch train digits --out out/demo

test: $(READY)
	$(PYTEST)

docs: $(READY)
	$(DOCS)

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) tests/test_package.py tests/test_docs.py
	$(DOCS)
