# make demo   everything on this machine: controller, services with sidecars, learned, enforced, shown
# make test   every test that runs on one machine
# make bench  what two sidecars cost beside none
# make bench-dataplane (-short)   the same beside Envoy and HAProxy, against the targets: bench/README.md
# make soak   ten minutes at half load: memory, descriptors and tasks must not grow
# make e2e-apiserver   the Kubernetes parts against a real API server, which is built the first time (8 minutes)
# make e2e-cluster     the mesh in real pods; on a cluster of yours with KUBECONFIG=FILE
# make e2e-dockerfile  the images as the Dockerfile makes them
# make check  format, lint, types, the direction of imports, the generated code

SHELL := /bin/sh
VENV := .venv
PY := $(VENV)/bin/python
WIRE := graph/wire/hedgerow.proto
UI_SOURCES := $(shell find ui -type f -not -path '*/node_modules/*' -not -path '*/dist/*' 2>/dev/null)
PAGE := controller/web/static/.built

.PHONY: setup demo test check wire clean bench
.DEFAULT_GOAL := setup

setup: $(VENV)/.installed $(PAGE)
	@.ci/system-packages demo

$(VENV)/.installed: requirements/dev.txt pyproject.toml .ci/find-python
	@python=$$(.ci/find-python) && echo "Python: $$python" && \
	    { [ -x $(PY) ] && $(PY) -c '' 2>/dev/null || "$$python" -m venv --clear $(VENV); }
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(PAGE): $(UI_SOURCES) .ci/build-ui
	@.ci/build-ui

demo: setup
	@$(VENV)/bin/hedgerow demo

# Files run side by side, each worker in a sandbox of its own; WORKERS=0 runs one test after the other.
WORKERS ?= $(if $(TESTS),0,2)
test: setup
	@.ci/system-packages test
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

check: $(VENV)/.installed
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run: $(VENV)/bin/ruff format ."; exit 1; }
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(MAKE) --no-print-directory check-wire

# The generated code beside the .proto is what the pinned generator makes of it.
.PHONY: check-wire
check-wire: $(VENV)/.installed
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	    $(PY) -m grpc_tools.protoc -I . --python_out="$$out" --pyi_out="$$out" --grpc_python_out="$$out" $(WIRE) && \
	    for file in hedgerow_pb2.py hedgerow_pb2.pyi hedgerow_pb2_grpc.py; do \
	        cmp "$$out/graph/wire/$$file" "graph/wire/$$file" || { echo "run: make wire"; exit 1; }; \
	    done && echo "generated code: as the .proto says"

wire: $(VENV)/.installed
	@$(PY) -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(WIRE)

bench: setup
	@.ci/system-packages test
	@$(PY) -m bench.tunnel

# Figures of one round are compared; the short one takes five minutes at most.
.PHONY: bench-dataplane bench-dataplane-short
bench-dataplane: setup
	@.ci/system-packages bench
	@$(PY) -m bench.dataplane

bench-dataplane-short: setup
	@.ci/system-packages bench
	@$(PY) -m bench.dataplane --short

# The tests have a short one. Samples and slopes are written to bench/results/soak.json.
.PHONY: soak
soak: setup
	@.ci/system-packages test
	@HEDGEROW_SOAK_SECONDS=$${HEDGEROW_SOAK_SECONDS:-600} HEDGEROW_SOAK_JSON=bench/results/soak.json \
	    $(PY) -m pytest --capture=no tests/endurance/test_soak.py

# Programs are built once, into the cache of whoever runs this: e2e/kube/README.md. Each worker has an API server of its own.
.PHONY: e2e-apiserver e2e-cluster e2e-programs
e2e-apiserver: E2E_WORKERS ?= $(if $(TESTS),0,2)
e2e-apiserver: setup
	@.ci/system-packages e2e
	@$(PY) -m e2e.kube --quiet apiserver
	@$(PY) -m pytest -n $(E2E_WORKERS) --dist loadfile --no-loadscope-reorder $(or $(TESTS),e2e/apiserver)

# What the two suites need that takes long to make, ahead of them; SUITE=apiserver makes that one's alone.
e2e-programs: SUITE ?= cluster
e2e-programs: setup
	@.ci/system-packages e2e
	@$(PY) -m e2e.kube --quiet apiserver
	@[ $(SUITE) != cluster ] || $(PY) -m e2e.kube --quiet cluster
	@[ $(SUITE) != cluster ] || $(PY) -m e2e.images --quiet

# With KUBECONFIG, tests run outside of the sandbox, which has no way to another machine.
e2e-cluster: setup
	@.ci/system-packages e2e
	@$(PY) -m e2e.kube --quiet $(if $(KUBECONFIG),tools,cluster)
	@$(if $(KUBECONFIG),HEDGEROW_TESTS_OUTSIDE=1,$(PY) -m e2e.images --quiet &&) \
	    $(PY) -m pytest $(or $(TESTS),e2e/cluster)

# The Dockerfile, built by buildah on bases made here, and taken apart: e2e/dockerfile/README.md.
.PHONY: e2e-dockerfile
e2e-dockerfile: setup
	@.ci/system-packages dockerfile
	@$(PY) -m e2e.dockerfile --quiet
	@$(PY) -m pytest $(or $(TESTS),e2e/dockerfile)

clean:
	@rm -rf $(VENV) ui/node_modules controller/web/static .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache \
	    build dist bench/results
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
