# Every target works from a fresh clone with Python 3.10-3.12, its venv module and make, in the
# active virtualenv or conda environment, else in .venv (see tools/environment.sh).
.PHONY: help install demo test check
PYTHON_HERE = "$$(tools/environment.sh)"

help:
	@echo 'make install  everything; EXTRAS=seg or PYTHON=python3.12 choose otherwise'
	@echo 'make demo     pretraining and three transfers on the CPU, explained by README.md'
	@echo "make test     the tests; ARGS='-k losses' goes to pytest"
	@echo 'make check    ruff: lint and format'

install:
	@tools/install.sh

demo: install
	$(PYTHON_HERE) tools/demo.py $(ARGS)

test: install
	OMP_NUM_THREADS=1 $(PYTHON_HERE) -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check:
	@$(PYTHON_HERE) -m pip install --quiet --disable-pip-version-check -c constraints.txt ruff
	$(PYTHON_HERE) -m ruff check .
	$(PYTHON_HERE) -m ruff format --check .
