# Each target is one command that CI and people share; bin/test is the one that counts.

BIN = .venv/bin

help:
	@sed -n 's/^\([a-z0-9-]*\):.*# /\1\t/p' Makefile

dev:  # .venv with sshrec in it, editable, and all that development needs
	@sh -euc '. bin/setup.sh; packages; virtual_environment dev'

lint: dev  # formatting, style, types, and who may import whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/mypy man
	$(BIN)/lint-imports

test:  # everything, as CI does
	bin/test

e2e:  # the tests that run real programs
	bin/test tests/e2e

fuzz: dev  # hostile recordings, with hypothesis, and with atheris where it is installed
	$(BIN)/pytest -q tests/fuzz/fuzz_recordings.py
	$(BIN)/python -m tests.fuzz.fuzz_atheris -max_total_time=300

bench: dev  # measure against the peers; it never fails for being slow
	$(BIN)/python -m benchmarks

man: dev  # sshrec.yaml(5) and contrib/sshrec.yaml.sample from sshrec/config.py
	$(BIN)/python man/generate.py

check-help: dev  # whether README.md quotes what --help says
	$(BIN)/python man/check_help.py

.PHONY: help dev lint test e2e fuzz bench man check-help
