# The doors of the repository. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

# A static binary must name its target (see .cargo/config.toml); on another architecture, that one.
export CARGO_BUILD_TARGET ?= $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
OUT := $(or $(CARGO_TARGET_DIR),target)/$(CARGO_BUILD_TARGET)

# One profile for all checks, so that dependencies (SQLite and zstd in C among them) are compiled once. The default has
# debug assertions and overflow checks.
PROFILE ?= dev
BUILT := $(OUT)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

PREFIX ?= /usr/local
DESTDIR ?=
UNITDIR ?= /etc/systemd/system
TARGET ?= tar_to_erofs
SECONDS ?= 60
# End-to-end tests start many processes each: more threads than cores only makes them wait for each other.
TEST_THREADS ?= $(shell nproc)

.DEFAULT_GOAL := help
.PHONY: help
help: ## List these targets
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

.PHONY: demo
demo: ## Build Dhow, run the embedded image in each hull, and compare them
	@.ci/needs demo
	@cargo build --release --locked --package dhow-dhow
	@contrib/demo.sh $(OUT)/release/dhow

# Cheap checks first. The last line is the sum of what the test runners counted.
STEPS := fmt lint layers deny doc unit e2e
.PHONY: test
test: ## Check and test everything, as continuous integration does
	@.ci/needs test
	@for step in $(STEPS); do \
	  echo "=== $$step"; \
	  start=$$(date +%s); \
	  $(MAKE) $$step; \
	  echo "=== $$step: $$(( $$(date +%s) - start )) s"; \
	done
	@.ci/count $(OUT)/unit.log $(OUT)/e2e.log

.PHONY: fmt
fmt: ## Check the format
	@cargo fmt --all --check

.PHONY: lint
lint: ## Run clippy; a warning is an error
	@cargo clippy --profile $(PROFILE) --workspace --all-targets --locked -- -D warnings

.PHONY: layers
layers: ## Check who may know whom, where unsafe code lives, and how long files are
	@cargo xtask layers
	@cargo xtask sizes

.PHONY: deny
deny: ## Check licences, sources and duplicates of dependencies
	@cargo xtask deps
	@if command -v cargo-deny >/dev/null; then \
	  cargo deny --all-features check bans licenses sources; \
	  cargo deny --all-features check advisories || echo "deny: advisories not checked, or some found (see above); they do not fail this step"; \
	else \
	  echo "deny: cargo-deny is not installed: advisories were not checked"; \
	fi

.PHONY: doc
doc: ## Build the documentation; a warning is an error
	@RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --profile $(PROFILE) --workspace --no-deps --document-private-items --locked --quiet

.PHONY: build
build: ## Build the program in the release profile
	@cargo build --release --locked --package dhow-dhow

.PHONY: unit
unit: ## Run the tests beside the code
	@mkdir -p $(OUT)
	@cargo test --profile $(PROFILE) --locked --workspace --exclude dhow-tests 2>&1 | tee $(OUT)/unit.log

.PHONY: e2e
e2e: ## Run the tests that drive the program
	@cargo build --profile $(PROFILE) --locked --package dhow-dhow
	@DHOW_BIN=$(abspath $(BUILT)/dhow) cargo test --profile $(PROFILE) --locked --package dhow-tests --no-fail-fast -- --test-threads $(TEST_THREADS) 2>&1 \
	  | tee $(OUT)/e2e.log

.PHONY: bench
bench: dist ## Measure, side by side with what else is installed
	@DHOW_BIN=$(abspath $(OUT)/dist/dhow) benches/run

.PHONY: kernel
kernel: build ## Build the lean kernel of microVMs (some 15 minutes, once), and put it into this host's store
	@.ci/needs kernel
	@$(OUT)/release/dhow kernel import --name lean "$$(kernel/build)"

.PHONY: fuzz
fuzz: ## Fuzz TARGET (see fuzz/fuzz_targets) for SECONDS
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@mkdir -p fuzz/corpus/$(TARGET)
	@RUSTC_BOOTSTRAP=1 cargo fuzz run $(TARGET) fuzz/corpus/$(TARGET) $(wildcard fuzz/seeds/$(TARGET)) -- -max_total_time=$(SECONDS)

.PHONY: dist
dist:
	@.ci/needs build
	@DHOW_GIT_COMMIT=$$(git describe --always --dirty 2>/dev/null || echo unknown) cargo build --profile dist --locked --package dhow-dhow

.PHONY: install
install: dist ## Install under PREFIX (and DESTDIR): program, completions, systemd unit
	@install -Dm755 $(OUT)/dist/dhow $(DESTDIR)$(PREFIX)/bin/dhow
	@install -d $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	@for unit in dhow-recover.service dhow.service dhow.socket; do \
	  sed 's|@BINDIR@|$(PREFIX)/bin|' contrib/$$unit >$(DESTDIR)$(UNITDIR)/$$unit; \
	done
	@$(OUT)/dist/dhow completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/dhow
	@$(OUT)/dist/dhow completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dhow
	@$(OUT)/dist/dhow completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dhow.fish
	@echo "installed $(DESTDIR)$(PREFIX)/bin/dhow; to start containers again after a reboot: systemctl enable dhow-recover"

.PHONY: uninstall
uninstall: ## Remove what install installed; images and containers stay
	@rm -f $(DESTDIR)$(PREFIX)/bin/dhow $(DESTDIR)$(UNITDIR)/dhow-recover.service \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions/dhow \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_dhow \
	  $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/dhow.fish

.PHONY: clean
clean: ## Remove what was built
	@cargo clean
	@rm -rf fuzz/target
