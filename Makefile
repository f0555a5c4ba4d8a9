# Everything a person or a CI machine runs. Needs CPython 3.11 to 3.13 with venv, make and PyPI; all else is set up here.
#   make quickstart DATA=tfds:squad     real SQuAD instead of the built-in questions, where the network allows
#   make test ARGS="-k squad -x"        arguments for pytest; with --pdb: JOBS=0
#   make setup DEVICE=cpu PYTHON=python3.12

SHELL := /bin/bash
DEVICE ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := requirements/$(DEVICE).txt
READY := .venv/ready-$(DEVICE)
RUN := .venv/bin/python
PORT ?= 8000
# Processes that share the tests of `make test`, file by file; 0 for one that a debugger can stop.
JOBS ?= 2
# The first of these that will do, unless PYTHON says which.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

.DEFAULT_GOAL := help
.PHONY: help setup lock check test test-gpu test-slow test-browser test-ray quickstart demo bench clean

help:  ## this list
	@echo "make ..."; sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY)  ## the virtual environment in .venv, from the lock file of this machine (CPU or CUDA)

$(READY): $(LOCK)
	@test "$$(uname -s) $$(uname -m)" = "Linux x86_64" || { \
	  echo "error: this is $$(uname -s) $$(uname -m); Retort runs on Linux x86_64"; exit 1; }
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	test -n "$$found" || { \
	  echo "error: none of '$(PYTHONS)' is CPython 3.11 to 3.13 with its venv module"; \
	  echo "       (python3 here: $$(python3 --version 2>&1)). Install one, on Debian 'apt-get install python3-venv',"; \
	  echo "       or name it: make setup PYTHON=/path/to/python3.12"; exit 1; }; \
	case "$$(echo .venv/ready-*)" in $(READY)|".venv/ready-*") ;; *) \
	  echo "setup: .venv was made for another device: making it anew"; rm -rf .venv;; esac; \
	echo "setup: $$($$found --version), $(DEVICE) packages from $(LOCK) into .venv (a few minutes)"; \
	"$$found" -m venv .venv
	.venv/bin/pip install --no-input --disable-pip-version-check --require-hashes -r $(LOCK)
	@touch $@

lock:  ## write requirements/*.txt anew from the ranges in pyproject.toml
	$(RUN) -m pip install --quiet --no-input uv
	for name in cpu cuda ray; do \
	  if test $$name = ray; then extras="--extra ray --constraint requirements/cpu.txt"; else extras="--extra $$name --extra dev"; fi; \
	  $(RUN) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --upgrade --custom-compile-command "make lock" $$extras --output-file requirements/$$name.txt pyproject.toml || exit 1; \
	  sed -i "s/ ; python_full_version < '3.14' and implementation_name == 'cpython' and platform_machine == 'x86_64'\( and platform_python_implementation != 'PyPy'\)\? and sys_platform == 'linux'//" \
	    requirements/$$name.txt; \
	done

check: $(READY)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m pyright

test: $(READY)  ## the tests that need neither a GPU nor much time
	$(RUN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-gpu: $(READY)  ## the tests that need an NVIDIA GPU; without one they err
	$(RUN) -m pytest -m gpu $(ARGS)

test-slow: $(READY)  ## the tests that take minutes
	$(RUN) -m pytest -m slow $(ARGS)

test-browser: $(READY)  ## the tests of the server's page in Chromium, which must be installed
	$(RUN) -m pytest -m browser $(ARGS)

test-ray: $(READY)  ## the tests of the server as a Ray application; installs Ray into .venv first
	.venv/bin/pip install --no-input --quiet --disable-pip-version-check --require-hashes -r requirements/ray.txt
	$(RUN) -m pytest tests/test_ray_app.py $(ARGS)

quickstart: $(READY)  ## train, score and answer questions with built-in data (or DATA=...), 4 to 15 minutes on 2 cores
	$(RUN) -m scripts.quickstart $(if $(DATA),--data $(DATA)) $(ARGS)

demo: $(READY)  ## a page at PORT (8000) to ask the quickstart's engine; runs the quickstart first where it has not run
	@if test -f runs/quickstart-engine/engine.json; then $(RUN) serve.py --engine runs/quickstart-engine --port $(PORT); \
	else $(RUN) -m scripts.quickstart --serve $(PORT) $(ARGS); fi

bench: $(READY)  ## training speed and memory by model and precision, into a CSV
	$(RUN) -m scripts.bench_train $(ARGS)

clean:  ## remove caches; .venv and runs/ stay
	rm -rf .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
