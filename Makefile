# make run and make test do all the set-up in ./.venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check parity setup clean

run: setup
	$(BIN)/python -m agejax.main --config=configs/quickstart.py

test: setup check
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Against the libraries themselves, which are heavy and so live in a place of their own. Most of
# half an hour; writes experiments/results/.
parity: .venv-parity/.installed
	.venv-parity/bin/python -m experiments.parity
	.venv-parity/bin/python -m experiments.parity.photos
	.venv-parity/bin/python -m experiments.parity.losses

.venv-parity/.installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[parity]'
	touch $@

setup: .venv/.installed

# Installed again only when what is to be installed has changed.
.venv/.installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-parity runs
