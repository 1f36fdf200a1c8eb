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

# What touches sshd and ssh most.
SMOKE = tests/e2e/test_command.py tests/e2e/test_transparent.py
OPENSSH = $(SMOKE) tests/e2e/test_programs.py tests/e2e/test_lab.py tests/e2e/test_ways_in.py \
	tests/e2e/test_terminal.py tests/e2e/test_login.py tests/e2e/test_transfer.py \
	tests/e2e/test_destinations.py tests/e2e/test_access_control.py tests/e2e/test_ca.py \
	tests/e2e/test_enrolment.py tests/e2e/test_enroll_node.py tests/e2e/test_snippet.py

test-one-uid: dev  # the tests that run real programs, as an ordinary user has them
	$(BIN)/pytest -q -n auto --one-uid tests/e2e

test-trixie: dev  # the same with the OpenSSH of Debian 13 and of its backports, and with two versions at once
	bin/with-openssh trixie $(BIN)/pytest -q -n auto $(OPENSSH)
	bin/with-openssh trixie-backports $(BIN)/pytest -q -n auto $(OPENSSH)
	SSHREC_LAB_TARGETS=system bin/with-openssh trixie-backports $(BIN)/pytest -q -n auto $(SMOKE)
	SSHREC_LAB_TARGETS=trixie-backports $(BIN)/pytest -q -n auto $(SMOKE)

fuzz: dev  # hostile recordings and transfers, with hypothesis, and with atheris where it is installed
	$(BIN)/pytest -q tests/fuzz/fuzz_recordings.py tests/fuzz/fuzz_transfers.py
	$(BIN)/python -m tests.fuzz.fuzz_atheris recordings -max_total_time=300
	$(BIN)/python -m tests.fuzz.fuzz_atheris transfers -max_total_time=300

many: dev  # rsync of 100 000 files, compared: several minutes
	SSHREC_TEST_FILES=100000 $(BIN)/pytest -q --timeout 3000 tests/e2e/test_programs.py -k "rsync and certificate"

soak: dev  # power cuts at every moment, and the audit log's writer killed a thousand times: half an hour
	$(BIN)/python -m tests.soak.powercut
	$(BIN)/python -m tests.soak.audit_kill

bench: dev  # measure against the peers; it never fails for being slow
	$(BIN)/python -m benchmarks

man: dev  # sshrec.yaml(5) and contrib/sshrec.yaml.sample from sshrec/config.py
	$(BIN)/python man/generate.py

check-help: dev  # whether README.md quotes what --help says
	$(BIN)/python man/check_help.py

.PHONY: help dev lint test e2e test-one-uid test-trixie fuzz many soak bench man check-help
