# `make setup` needs Python 3.11 or newer and a package registry, nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
# A folder that already holds an environment keeps its interpreter; else the first Python that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.steppe-setup
BENCH_STAMP := .venv-bench/.steppe-setup
REJAX_STAMP := .venv-rejax/.steppe-setup
RLLIB_STAMP := .venv-rllib/.steppe-setup
SCALE := scale remote-envs jaxenvs
DEMO := examples/hot_and_cold

# What must be there, and the package of Debian that brings it.
TOOLS := node:nodejs mcs:mono-mcs mono:mono-runtime /usr/lib/mono/4.5/System.Net.Http.dll:libmono-system-net-http4.0-cil \
	chromium:chromium chromedriver:chromium-driver

.PHONY: help setup setup-serving check format test test-slow test-cluster learn pictures docs bench bench-scale bench-serving demo lock clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make .venv with the locked dependencies and steppe in it

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "steppe needs Python 3.11 or newer on the PATH (or make PYTHON=...)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

setup-serving: setup  ## What tests of clients and pages need: Node, a C# compiler, Chromium (Debian, root)
	@there() { command -v "$$1" || test -e "$$1"; }; missing=; \
	for tool in $(TOOLS); do there "$${tool%%:*}" > /dev/null || missing="$$missing $${tool##*:}"; done; \
	test -z "$$missing" || apt-get update -qq; export DEBIAN_FRONTEND=noninteractive; \
	for package in $$missing; do apt-get install -y -qq --no-install-recommends $$package > /dev/null || true; done; \
	for tool in $(TOOLS); do there "$${tool%%:*}" || echo "no $${tool%%:*} ($${tool##*:}): tests of it are skipped"; done

check: setup  ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup  ## Format and apply the safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup  ## The fast tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: setup  ## The long-running tests
	$(BIN)/python -m pytest -q -m slow --ignore=tests/learning

test-cluster: setup  ## A Ray over several hosts, which are namespaces: root on Linux, else skipped with the reason
	@command -v ip > /dev/null || { apt-get update -qq && apt-get install -y -qq iproute2; } || echo "no iproute2"
	$(BIN)/python -m pytest -q -rs -m cluster tests/cluster

learn: setup  ## The learning tests, or one: make learn ROW=ppo_cartpole; then the pages that show them
	$(BIN)/python -m pytest -q -m slow tests/learning $(if $(ROW),--row $(ROW))
	$(BIN)/python -m benchmarks.curves

pictures: setup  ## Draw the recorded learning curves, and write the pages' sections on them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[plot]'
	$(BIN)/python -m benchmarks.curves

docs: setup  ## Write the parts of the docs that are made from the code
	$(BIN)/python docs/generate.py

demo: setup  ## The hot-and-cold tutorial: random baseline, five iterations, the restored policy
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e $(DEMO)
	cd $(DEMO) && ../../$(BIN)/python sample.py && ../../$(BIN)/python train.py

bench: $(BENCH_STAMP)  ## Speed and memory in one process against the bars and the peers; writes benchmarks/results/
	.venv-bench/bin/python -m benchmarks.bench --but $(SCALE) serving

bench-scale: $(BENCH_STAMP) $(REJAX_STAMP) $(RLLIB_STAMP)  ## Runners, remote envs, envs in JAX, and how far it all goes
	.venv-bench/bin/python -m benchmarks.bench $(SCALE)
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[plot]'
	.venv-bench/bin/steppe bench scale --out benchmarks/results/bench-scale-model.json
	mv benchmarks/results/bench-scale-model.png docs/images/scale.png

bench-serving: setup  ## A policy server under load, attacked and killed: half an hour; ROWS="actions idle" for some
	$(BIN)/python -m benchmarks.bench serving $(if $(ROWS),--rows $(ROWS))

$(BENCH_STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "steppe needs Python 3.11 or newer on the PATH (or make PYTHON=...)"; exit 1; }
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[bench]'
	touch $@

# A peer alone: it needs older packages than we do.
$(REJAX_STAMP):
	@test -n "$(PYTHON)" || { echo "steppe needs Python 3.11 or newer on the PATH (or make PYTHON=...)"; exit 1; }
	test -x .venv-rejax/bin/python || $(PYTHON) -m venv .venv-rejax
	.venv-rejax/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock rejax==0.1.3
	touch $@

$(RLLIB_STAMP):
	@test -n "$(PYTHON)" || { echo "steppe needs Python 3.11 or newer on the PATH (or make PYTHON=...)"; exit 1; }
	test -x .venv-rllib/bin/python || $(PYTHON) -m venv .venv-rllib
	.venv-rllib/bin/python -m pip install --quiet --disable-pip-version-check 'ray[rllib]==2.60.0' torch==2.13.0
	touch $@

lock: setup  ## Resolve requirements.lock anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra box2d --extra pettingzoo --extra ray --extra ray-tune --extra serve --extra tune --universal \
		--python-version 3.11 --upgrade --no-header --no-annotate --quiet -o requirements.lock

clean:  ## Remove what tools and runs left; the environments stay
	rm -rf .jax_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	rm -rf $(DEMO)/tmp $(DEMO)/runs $(DEMO)/*.egg-info
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
