# make demo: the main job · make test: all tests · make check: layout, lint, types, tests · make format: lay the code out
# make cover: what the tests run · make dist: wheel and sdist, each installed into empty environments (pip, uv, pipx; all Pythons here) and tried
# make bench: ratios against peers in one run · make campaigns: random programs, kills and faults, ten minutes in all · make soak: hours of it · make fuzz: hostile input. Each sets up what it needs.
# make ci: on a bare Debian, as root: what the tests use is installed, then all tests, a part of make interop, make campaigns
# make interop: other programs' test suites against outmail, as a table; INTEROP="--short" for three minutes of it, or names of peers
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTERS ?= 4
SOAK_KILLS ?= 500
SOAK_ROWS  ?= 10000000
SOAK_MINUTES ?= 10
FUZZ_SECONDS ?= 30
INTEROP ?=
RANDOM_EXAMPLES = $(BIN)/python -m pytest -q -n $(TESTERS) --hypothesis-profile random
CODE := src tests bench examples hatch_build.py
FUZZ := server client dialogue_grammar headers addresses filters configuration outbox_rows redaction mime records

# Compiled code is kept, whatever the environment says: hundreds of short programs are started by the tests.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test ci check format lint types cover dist campaigns bench soak fuzz interop clean setup

help:
	@sed -n '1,5s/^# //p' Makefile

$(READY): pyproject.toml requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "outmail needs Python 3.11 or later; say which: make PYTHON=python3.12" >&2; exit 69; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing; install it (Debian: apt install python3-venv)" >&2; exit 69; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(READY)

demo: $(READY)
	$(BIN)/outmail demo

# In a fresh copy the tests are compiled once, by two processes, and not by each tester.
test: $(READY)
	@find tests -name '*-pytest-*.pyc' | grep -q . || { for some in "road store reports" "unit cli dialogues interop"; do \
	  (cd tests && ../$(BIN)/python -m pytest -q --collect-only $$some > /dev/null) & done; wait; }
	$(BIN)/python -m pytest -q -n $(TESTERS) --dist worksteal --durations 10

ci:
	.ci/run

format: $(READY)
	$(BIN)/ruff check --quiet --fix --select I $(CODE)
	$(BIN)/ruff format $(CODE)

lint: $(READY)
	$(BIN)/ruff format --check --diff --quiet $(CODE)
	$(BIN)/ruff check $(CODE)

types: $(READY)
	$(BIN)/mypy

check: lint types test

cover: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q -n $(TESTERS) --dist worksteal -o timeout=300
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python tests/packages.py dist/*

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "mailqueue-runner>=1.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "django-post_office>=3.10" "django-mailer>=2.3"
	$(BIN)/python bench/run.py

fuzz: $(READY)
	@for target in $(FUZZ); do $(BIN)/python tests/fuzz/$$target.py --seconds $(FUZZ_SECONDS) || exit 1; done

interop: $(READY)
	$(BIN)/python tests/interop/compare.py $(INTEROP)

campaigns: $(READY)
	$(BIN)/python tests/campaigns/outboxes.py --minutes 1
	$(BIN)/python tests/campaigns/outboxes.py --minutes 0.7 --server 18
	$(BIN)/python tests/campaigns/leases.py --minutes 0.7
	$(BIN)/python tests/campaigns/leases.py --minutes 0.7 --store postgresql
	$(BIN)/python tests/campaigns/reroutes.py --kills 20
	$(BIN)/python tests/campaigns/verify.py --kills 4
	$(BIN)/python tests/campaigns/programs.py --minutes 0.4
	$(BIN)/python tests/campaigns/writers.py --minutes 0.5
	$(BIN)/python tests/campaigns/drops.py --minutes 0.4
	$(BIN)/python tests/campaigns/foreign.py --minutes 0.4
	$(BIN)/python tests/campaigns/reloads.py --minutes 0.4
	$(BIN)/python tests/campaigns/reloads.py --minutes 0.3 --kills 3
	$(BIN)/python tests/campaigns/qp.py --minutes 0.4
	$(BIN)/python tests/campaigns/powercut.py --minutes 0.5
	$(BIN)/python tests/campaigns/spoolcuts.py --minutes 0.4
	$(BIN)/python tests/campaigns/kills.py --kills 8 --store maildir
	$(BIN)/python tests/campaigns/moves.py --kills 2
	$(BIN)/python tests/campaigns/faults.py --minutes 0.5
	$(BIN)/python tests/campaigns/moods.py --minutes 0.5
	$(MAKE) fuzz FUZZ_SECONDS=8
	$(RANDOM_EXAMPLES) tests/store/test_conformance.py -k walks

soak: $(READY)
	$(MAKE) fuzz FUZZ_SECONDS=120
	$(RANDOM_EXAMPLES) tests/unit tests/store tests/dialogues tests/reports
	$(BIN)/python tests/campaigns/kills.py --kills $(SOAK_KILLS)
	$(BIN)/python tests/campaigns/kills.py --kills $(SOAK_KILLS) --store maildir
	$(BIN)/python tests/campaigns/spoolcuts.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/moves.py --kills 40
	$(BIN)/python tests/campaigns/reroutes.py --kills $(SOAK_KILLS) --messages 20000
	$(BIN)/python tests/campaigns/verify.py --kills 40
	$(BIN)/python tests/campaigns/powercut.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/faults.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/programs.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/programs.py --minutes $(SOAK_MINUTES) --server 18
	$(BIN)/python tests/campaigns/outboxes.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/outboxes.py --minutes $(SOAK_MINUTES) --server 18
	$(BIN)/python tests/campaigns/producers.py
	$(BIN)/python tests/campaigns/drops.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/foreign.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/reloads.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/reloads.py --minutes $(SOAK_MINUTES) --kills 60
	$(BIN)/python tests/campaigns/reloads.py --minutes $(SOAK_MINUTES) --kills 10 --store postgresql
	$(BIN)/python tests/campaigns/qp.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/moods.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/finished.py --rows $(SOAK_ROWS)
	$(BIN)/python tests/campaigns/listening.py --kills $(SOAK_KILLS)
	$(BIN)/python tests/campaigns/listening.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/writers.py --minutes $(SOAK_MINUTES)
	$(BIN)/python tests/campaigns/hosts.py --messages 100000
	$(BIN)/python tests/campaigns/hosts.py --failovers 20
	$(BIN)/python tests/campaigns/leases.py --minutes $(SOAK_MINUTES) --store sqlite
	$(BIN)/python tests/campaigns/leases.py --minutes $(SOAK_MINUTES) --store postgresql
	$(BIN)/python tests/campaigns/steady.py --minutes 30
	$(BIN)/python tests/campaigns/bare.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
