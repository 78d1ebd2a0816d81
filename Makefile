# One entry point for everything a developer or CI runs. Needs python3.11 or newer, pip, cargo and a C compiler.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ENCLAVE := target/release/vessels-enclave
RUST := Cargo.toml Cargo.lock $(shell find enclave epc packaging -name '*.rs' -o -name Cargo.toml 2>/dev/null)

# The tests use the binaries as cargo builds them, so that a change needs no reinstall.
export VESSELS_ENCLAVE := $(CURDIR)/$(ENCLAVE)
export VESSELS_EPC := $(CURDIR)/target/release/vessels-epc

.PHONY: help setup build demo demo-serving check test test-all bench evaluation evaluation-serving \
	chaos lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

setup: $(VENV)/.installed ## virtual environment with everything, and this package, in it

$(VENV)/.locked: requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

# Editable: the package is found in python/, its binary is put beside the scripts.
$(VENV)/.installed: $(VENV)/.locked pyproject.toml $(RUST)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--no-deps --no-build-isolation --editable .
	touch $@

$(ENCLAVE): $(RUST)
	cargo build --release --locked
	touch $@

build: $(ENCLAVE) ## the binaries: the enclave, the EPC emulator

demo: $(VENV)/.installed $(ENCLAVE) ## a trained brain-MRI classifier in a simulated enclave
	$(BIN)/python -m vessels.demo

demo-serving: $(VENV)/.installed $(ENCLAVE) ## the same, served confidentially: owner, host, client
	$(BIN)/python -m vessels.demo_serving demo

# In release mode all along, so that the C code of the cryptography is compiled once.
check: $(VENV)/.locked ## formatters, linters, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cargo fmt --all --check
	cargo clippy --locked --release --all-targets --quiet -- -D warnings

test: check $(VENV)/.installed $(ENCLAVE) ## the checks, the Rust tests and all quick Python tests
	cargo test --locked --release --quiet
	$(BIN)/python -m pytest -m "not heavy"

test-all: check $(VENV)/.installed $(ENCLAVE) ## everything, heavy model tests included
	cargo test --locked --release --quiet
	$(BIN)/python -m pytest

bench: $(VENV)/.installed $(ENCLAVE) ## the speed table, against ONNX Runtime
	$(BIN)/python -m benchmarks.speed

evaluation: $(VENV)/.installed $(ENCLAVE) ## the study of the whole zoo; writes docs/evaluation.md
	$(BIN)/python -m benchmarks.evaluation

evaluation-serving: $(VENV)/.installed $(ENCLAVE) ## clients, models, overload; writes docs/evaluation-serving.md
	$(BIN)/python -m benchmarks.serving_evaluation

chaos: $(VENV)/.installed $(ENCLAVE) ## ten minutes of kills under load
	$(BIN)/python -m benchmarks.chaos

lock: ## resolve requirements.lock anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate --all-extras -o requirements.lock pyproject.toml

clean: ## remove everything that was built
	rm -rf $(VENV) target build
