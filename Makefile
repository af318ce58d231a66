# A thin front: scripts/setup brings what is missing, CMake (see CMakePresets.json) does the work.
# SETUP=0 leaves the machine as it is; JOBS=N limits the processes of a build.

JOBS ?= $(shell nproc 2>/dev/null || echo 2)
SETUP ?= 1
DESTDIR ?=
PREFIX ?= /usr/local
DEMO_FLAGS ?=
BENCH_FLAGS ?=
comma := ,
setup = $(if $(filter 0,$(SETUP)),@:,@scripts/setup --group $(1))
build = @scripts/build $(1) $(JOBS)

.PHONY: all build demo test bench lint fmt install help clean asan tsan fuzz clang dev setup
all: build

build: ## build/naru and the plug-ins under build/backends/ (the default)
	$(call setup,build)
	$(call build,release)

demo: build ## serve the example models and print the addresses; DEMO_SECONDS=N ends it
	@scripts/demo $(DEMO_FLAGS)

test: ## every test; the last line says "N passed, N failed"
	$(call setup,test)
	@JOBS=$(JOBS) scripts/run-tests

bench: build ## naru beside its peers, in one run; prints tables with ratios, writes build/bench.md
	$(call setup,test$(comma)bench)
	@scripts/bench $(BENCH_FLAGS)

lint: ## format, clang-tidy, layers, banned functions, sizes, both compilers
	$(call setup,lint)
	@JOBS=$(JOBS) scripts/lint

fmt: ## format every C file in place
	$(call setup,lint)
	@scripts/lint --fix-format

dev asan tsan fuzz clang: ## the same tree under another preset, in build-NAME/
	$(call setup,$(if $(filter fuzz clang,$@),lint,test))
	$(call build,$@)

install: build ## into PREFIX (/usr/local), below DESTDIR if given
	@DESTDIR='$(DESTDIR)' cmake --install build --prefix '$(PREFIX)'

setup: ## only bring what building and testing needs
	$(call setup,test)

clean: ## remove every build folder; .deps/ stays
	rm -rf build build-dev build-asan build-tsan build-fuzz build-clang

help: ## this list
	@sed -nE 's/^([a-z][a-z ]*):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 34
