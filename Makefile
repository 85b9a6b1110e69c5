# Give another torch with, say, TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu".
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# The libraries that `make bench` races against, and what they need to be imported, in an environment of their own.
# Without their other dependencies: torchvision of the index does not fit every torch, and nothing here needs it.
PEERS := benchmarks/.venv-peers
PEERS_READY := $(PEERS)/.ready
RACED := snntorch==1.0.0 spikingjelly==2.0.0 norse==1.1.0 nir==1.0.8 nirtorch==2.6
RACED_NEED := numpy loguru h5py

# Several processes of one thread each are faster than one process of many, and are not slowed by other programs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Not with --quiet, which would silence --strict too; the variable silences the theme's notice about its successor.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: help demo test check docs bench growth

help:
	@echo "make .venv   a virtual environment in .venv with torch, the library and its tools (the others make it too)"
	@echo "make demo    train on small digits (under a minute); pictures and figures in out/demo"
	@echo "make test    all tests"
	@echo "make docs    the documentation as a site: out/site/index.html"
	@echo "make bench   race against other libraries (ten minutes): docs/race.md, its plots, README's table"
	@echo "make growth  what a step costs against width, batch, window and more (ten minutes): docs/growth.md, its plot"
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

$(PEERS_READY): pyproject.toml
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -c "import torch" 2> /dev/null || $(PEERS)/bin/python -m pip install $(TORCH)
	$(PEERS)/bin/python -m pip install $(RACED_NEED)
	$(PEERS)/bin/python -m pip install --no-deps $(RACED)
	$(PEERS)/bin/python -m pip install -e .
	touch $@

bench: $(READY) $(PEERS_READY)
	$(PEERS)/bin/python benchmarks/race.py $(BENCH)
	$(BIN)/python benchmarks/race.py --page

growth: $(READY)
	$(BIN)/python benchmarks/growth.py $(GROWTH)
	$(BIN)/python benchmarks/growth.py --page

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(PYTEST) tests/test_package.py tests/test_docs.py
	$(DOCS)
