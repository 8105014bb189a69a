# Everything runs in .venv, made on first use. `make` alone lists the targets.
VENV := .venv
PY := $(VENV)/bin/python
INPUTS := pyproject.toml constraints.txt tools/bootstrap.sh
export PYTHONPATH =

.PHONY: help demo test lint type bench bench-full plots fuzz chaos acceptance soak clean redis

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.stamp-local  ## handwritten digits through an embedded server and an executor
	$(PY) examples/demo.py

# Workers that steal tests from each other: the tests that share a server stay together, and nobody is left with the rest.
test: lint type redis  ## lint, types, then every test, on all cores (WORKERS=0: one after the other)
	$(PY) -m pytest -n $(or $(WORKERS),auto) --dist worksteal

lint: $(VENV)/.stamp-dev  ## ruff, formatting, generated code
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(if $(wildcard tools/unasync.py),$(PY) tools/unasync.py --check)

type: $(VENV)/.stamp-dev  ## mypy, strict
	$(PY) -m mypy
	$(PY) -m mypy --explicit-package-bases $(wildcard tests examples benchmarks/*.py tools/*.py)

bench: $(VENV)/.stamp-dev redis  ## all benchmarks, short (two minutes); figures in .cache/bench.json
	$(PY) benchmarks/run.py --output .cache/bench.json

bench-full: $(VENV)/.stamp-dev redis  ## all in full, with all peers (20 minutes): benchmarks/results.json, docs/benchmarks
	$(PY) benchmarks/run.py --full

plots: $(VENV)/.stamp-dev  ## the charts in docs/benchmarks once more, from benchmarks/results.json
	$(PY) benchmarks/plots.py

fuzz: $(VENV)/.stamp-dev redis  ## the fuzzers, ten minutes each (FUZZ_SECONDS), and property tests with more examples
	FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(PY) -m pytest tests/fuzz -s -o timeout=0
	HYPOTHESIS_PROFILE=fuzz $(PY) -m pytest -m hypothesis --ignore tests/fuzz -o timeout=0

chaos: $(VENV)/.stamp-dev redis  ## load with all answers checked while things go wrong, on one server (CHAOS="--cluster valkey", ...)
	$(PY) -m tests.chaos --wait $(CHAOS)

acceptance: $(VENV)/.stamp-dev redis  ## 20,000 checked requests on clusters through a failover, a killed executor and moved slots
	$(PY) -m tests.chaos.acceptance --json .cache/acceptance.json

soak: $(VENV)/.stamp-dev redis  ## half an hour of that; figures in .cache/soak.json (SOAK="--cluster redis", ...)
	$(PY) benchmarks/soak.py $(SOAK)

clean:  ## remove the venv, caches and everything built
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo needs a fraction of what development needs, so each has its own stamp in the same venv.
$(VENV)/.stamp-local $(VENV)/.stamp-dev: $(VENV)/.stamp-%: $(INPUTS)
	@sh tools/bootstrap.sh $*

# Not a file target: what it unpacks or links may vanish with the system's package, so it looks each time.
redis:
	@sh tools/get_redis.sh
