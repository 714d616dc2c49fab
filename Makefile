# `make quickstart` and `make test` do all set-up. Nothing is done twice: set-up is repeated only when
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# uv from the PATH, or from a small environment of its own.
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)

.PHONY: quickstart test experiments coverage docs lint format resolve clean

quickstart: $(VENV)/.installed
	$(RUN) -m cs_models.cli.quickstart

# Two processes of one thread: the problems are small, and threads that wait for each other on busy cores slow them many
# times. More processes: make test JOBS=8.
JOBS ?= 2
test: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest --numprocesses $(JOBS)

# Every target of the papers' workflow at the smallest scale, in two or three minutes on two cores.
experiments: $(VENV)/.installed
	$(RUN) -m pytest --experiments tests/test_experiments.py -k is_made

# The tests, with the share of the lines that the tests run; on Python 3.11 it takes about a quarter longer.
coverage: $(VENV)/.installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) -m pytest --numprocesses $(JOBS) --cov

# The site in build/site, with the gallery run and the page that reconstructs in the browser (npm brings its runtime).
docs: $(VENV)/.documented
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(RUN) docs/build_site.py

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy cs_models datamodules benchmarks experiments train.py eval.py

format: $(VENV)/.installed
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Whether pyproject.toml and constraints.txt fit together, with wheels alone, for every Python and system of SYSTEMS;
# nothing is installed. The oldest macOS is 13. connection-pool, a part of snakemake in pure Python, is published as
# source alone.
PYTHONS ?= 3.11 3.12 3.13 3.14
SYSTEMS ?= x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin x86_64-pc-windows-msvc
resolve: export MACOSX_DEPLOYMENT_TARGET = 13.0
resolve: | $(UV)
	for python in $(PYTHONS); do for system in $(SYSTEMS); do \
		echo "Python $$python, $$system"; \
		$(UV) pip compile --quiet --python-version $$python --python-platform $$system --only-binary :all: \
			--no-binary connection-pool pyproject.toml --extra dev --extra docs --constraint constraints.txt \
			--output-file /dev/null || exit 1; \
	done; done

clean:
	rm -rf $(VENV) .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt | $(UV)
	test -x $(RUN) || $(UV) venv --python $(PYTHON) $(VENV)
	$(UV) pip install --python $(RUN) --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(UV) pip install --python $(RUN) --constraint constraints.txt --editable '.[docs]'
	touch $@

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet uv
