# The verbs of the tree; `make` alone lists them. What each does in detail lives in scripts/ and xtask/.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-tests build run down test ci bench fmt lint

NAME ?= weft
NODES ?= 3
ROUTING ?= direct
APP ?= examples/shop
WEFT := target/release/weft

help: ## List the verbs
	@echo 'make VERB, with'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'make run takes APP=FILE_OR_FOLDER NODES=3 ROUTING=direct|vxlan NAME=weft'

setup: ## Install from Debian what building and running need and this machine lacks
	@scripts/setup build

setup-tests: ## As setup, with what only tests and benchmarks need
	@scripts/setup build tests

build: setup ## Build the program: target/release/weft
	@cargo build --release --locked

run: build ## Weave a cluster on this machine and run an application on it; Ctrl-C takes it down
	@test -e "$(APP)" || { echo "make run: APP=$(APP) is not there" >&2; exit 1; }
	@exec $(WEFT) up --name "$(NAME)" --nodes "$(NODES)" --routing "$(ROUTING)" --apply "$(APP)"

down: ## Remove the cluster NAME, whatever state it is in
	@test -x $(WEFT) || { echo "make down: $(WEFT) is not built; make build" >&2; exit 1; }
	@$(WEFT) down --name "$(NAME)"

test: setup-tests ## Run every check and test; ends with the counts and each skip's reason
	@scripts/test

ci: test ## What CI runs

bench: setup-tests ## Measure the data path against loopback and Debian's bridge plugin
	@scripts/bench

fmt: ## Format the Rust code
	@cargo fmt --all

lint: setup ## Check formatting and clippy's findings
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
