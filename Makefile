# Every target works from a fresh clone with Python 3.10-3.12, its venv module and make, in the
# active virtualenv or conda environment, or else in .venv (see tools/environment.sh).
.PHONY: help install demo test check
PYTHON_HERE = "$$(tools/environment.sh)"

help:
	@echo 'make install  install everything; EXTRAS=seg and PYTHON=python3.12 change that'
	@echo 'make demo     tokenizer, pretraining, three transfers, report (see README.md)'
	@echo "make test     run the tests; ARGS='-k losses' is passed to pytest"
	@echo 'make check    lint and check the format with ruff'

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
