# Everything is one command and does its own set-up; CONTRIBUTING.md says what each is for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTEST ?= $(BIN)/python -m pytest
# Tests run in parallel; PYTEST_FLAGS="-x tests/unit" or the like runs some of them in one process.
PYTEST_FLAGS ?= -n auto --dist worksteal -p no:benchmark
ROUNDS ?= 200
IMAGES ?= 2000
SEED ?= 0
FUZZ_SECONDS ?= 60
N ?= 2000
MUTATION_CRASHES ?= 5000
GROUP_ROUNDS ?= 10000
FLIPS ?= 1000

.PHONY: help demo test check format bench fuzz sim sim-groups sim-mutations crash-images scrub-flips kill9 clients clean

help:
	@echo "make demo     the main job end to end on temporary files, under a minute"
	@echo "make test     all tests; installs the real clients they use where it may, else says what it skips"
	@echo "make check    formatting, lint, types, import contracts"
	@echo "make format   apply the formatting and the safe lint fixes"
	@echo "make bench    side by side with tgtd and others, micro benchmarks (BENCH=--quick for a look)"
	@echo "make fuzz     FUZZ_SECONDS=60 of spoilt bytes at every iSCSI parser, from SEED=0 on"
	@echo "make sim      N=10000 simulated crashes of the volume file from SEED=0; a failure prints how to replay it"
	@echo "make sim-groups  GROUP_ROUNDS=10000 group snapshots under ordered writers, with crashes, from SEED=0"
	@echo "make sim-mutations  each rule of the store and of mirrors taken away in turn, and how many crashes it took to notice"
	@echo "make crash-images  IMAGES=2000 crash images from a recorded run of a real daemon"
	@echo "make scrub-flips  FLIPS=1000 flipped bits in frozen chunks, all found by a scrub beside a writer, and nothing else"
	@echo "make kill9    ROUNDS=200 rounds of kill -9 under write load"
	@echo "make clean    remove what these made"

# venv, the package (editable) and all tools; again when the dependencies change.
$(STAMP): pyproject.toml
	PYTHON='$(PYTHON)' .ci/setup-venv $(VENV)
	@touch $@

demo: $(STAMP)
	@.ci/setup-clients demo
	$(BIN)/twinvol demo

test: $(STAMP) clients
	$(PYTEST) $(PYTEST_FLAGS)

clients: $(STAMP)
	@.ci/setup-clients test
	@$(BIN)/python -m tests.support.clients || test "$$TWINVOL_REQUIRE_CLIENTS" != 1

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	@.ci/setup-clients bench
	$(BIN)/python -m bench.side_by_side $(BENCH)
	$(BIN)/python -m bench.copy_engine $(BENCH)
	$(BIN)/python -m bench.snapshot_scale
	@mkdir -p bench/results
	$(BIN)/python -m pytest bench -q -p no:xdist --benchmark-columns=median,iqr,ops --benchmark-json=bench/results/micro.json

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz --seed $(SEED) --seconds $(FUZZ_SECONDS)

sim: $(STAMP)
	$(BIN)/python -m tests.simulation --seed $(SEED) --crashes $(N)

sim-groups: $(STAMP)
	$(BIN)/python -m tests.simulation.group_world --seed $(SEED) --rounds $(GROUP_ROUNDS)

sim-mutations: $(STAMP)
	$(BIN)/python -m tests.simulation --mutations --seed $(SEED) --crashes $(MUTATION_CRASHES)
	$(BIN)/python -m tests.simulation.group_mutations
	$(BIN)/python -m tests.simulation.replication_mutations

crash-images: $(STAMP)
	$(BIN)/python -m tests.crash_images --seed $(SEED) --images $(IMAGES)

scrub-flips: $(STAMP)
	$(BIN)/python -m tests.integration.test_scrub_under_writes $(FLIPS)

kill9: $(STAMP) clients
	TWINVOL_KILL9_ROUNDS=$(ROUNDS) $(PYTEST) tests/integration/test_kill9.py -s

clean:
	rm -rf $(VENV) build bench/build bench/results .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
