# The project's commands. `make demo` and `make test` set up what they need on a fresh Debian machine.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: demo demo-down test test-vm bench soak build lint unit e2e deny fuzz

demo: ## The walkthrough on this machine, from nothing, with what each step shows
	hack/prepare.sh build
	$(CARGO) build --release --locked -p kakoi
	hack/demo/up.sh

demo-down: ## Undo the demo
	hack/demo/down.sh

build:
	$(CARGO) build --locked -p kakoi

test: ## Everything that CI runs
	hack/prepare.sh test
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory e2e
	$(MAKE) --no-print-directory fuzz

lint: ## Formatting, the crate table, licences, clippy
	$(CARGO) fmt --all -- --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml -- --check
	$(CARGO) xtask tidy
	hack/deny.sh
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

unit: ## Each crate's own tests; some make namespaces and need root
	$(CARGO) test --locked --workspace --exclude tests

e2e: ## The whole system, driven by the real kubectl
	$(CARGO) build --locked -p kakoi
	$(CARGO) test --locked -p tests

fuzz: ## Every fuzz target for KAKOI_FUZZ_SECONDS (60)
	hack/fuzz.sh

test-vm: ## The node on Debian 12 with systemd and cgroup v2, in an emulated machine
	hack/vm/test.sh

bench: ## The promises of SPECIFICATION.md, measured
	hack/prepare.sh test
	$(CARGO) build --release --locked -p kakoi
	KAKOI_BINARY=$${CARGO_TARGET_DIR:-$(CURDIR)/target}/release/kakoi $(CARGO) run --release --locked -p tests --bin bench

soak: ## The long fault runs
	KAKOI_SOAK=1000 $(CARGO) test --locked -p tests --test faults
	KAKOI_SOAK_KILLS=1000 $(CARGO) test --locked -p store --test writers
	for run in {1..10}; do KAKOI_SOAK_CHURN=12 $(CARGO) test --locked -p apiserver --test controllers || exit 1; done
