# parity: every command a person runs. `make help` lists them.
MAKEFLAGS += -rR
.DELETE_ON_ERROR:
.SUFFIXES:

MODE ?= release
B := build/$(MODE)
V ?= 0
Q := $(if $(filter 1,$(V)),,@)
CC := gcc
AR := ar

# ---- flags -----------------------------------------------------------------------------------------------------
# Contraction is off everywhere: a kernel that fuses says fmaf or _mm_fmadd itself. No -march, no fast-math.
warn := -Wall -Wextra -Wshadow -Wconversion -Wmissing-prototypes -Wstrict-prototypes -Wvla -Wundef -Wdouble-promotion
# The sanitizers make gcc warn of conversions inside its own intrinsics: there a warning is not an error.
warn += $(if $(filter release debug cov,$(MODE)),-Werror)
base := -std=c11 -g -ffp-contract=off -fno-math-errno -pthread -D_POSIX_C_SOURCE=200809L -Iengine -Iharness -I$(B)/gen
opt_release := -O2
opt_debug := -O0
opt_asan := -O1 -fsanitize=address -fno-omit-frame-pointer
opt_ubsan := -O1 -fsanitize=undefined -fno-sanitize-recover=all
opt_tsan := -O1 -fsanitize=thread
opt_fuzz := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
opt_cov := -O0 --coverage
ifeq ($(opt_$(MODE)),)
$(error MODE=$(MODE): expected release, debug, asan, ubsan, tsan, fuzz or cov)
endif
# The judge decodes and multiplies whole models; its loops are plain C for the vectoriser.
cflags_spec_dot.c := $(if $(filter release,$(MODE)),-O3)
cflags_spec_decode.c := $(cflags_spec_dot.c)
cflags_eval_matmul.c := $(cflags_spec_dot.c)
cflags_spec_tensor.c := $(cflags_spec_dot.c)
packages := libcjson libzstd libpcre2-8 libcrypto
isa_avx2 := -mavx2 -mfma -mf16c -mbmi2
isa_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx2 -mfma -mf16c -mbmi2
EXTRA_CFLAGS ?=

# CUDA where its compiler is: everything in engine/cuda and engine/paths/cuda_*; else those paths are listed as not built.
# Machine code for Hopper and sm_80, PTX for every card from sm_80 on; the sanitizers do not reach it, so that one build
# serves all modes but debug. Exact kernels: contraction off there too.
NVCC := $(firstword $(wildcard /usr/local/cuda/bin/nvcc) $(shell command -v nvcc 2>/dev/null))
CUDA := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_CODE ?= -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=[sm_80,compute_80]
CU := build/cuda$(if $(filter debug,$(MODE)),-debug)
nvcc_flags := -std=c++17 -g -lineinfo --fmad=false -Iengine -Xcompiler -Wall,-Wextra,-ffp-contract=off $(CUDA_CODE)
# cuda.h of the engine is C: the runtime's own header is not ours to warn about.
cuda_cflags := $(if $(NVCC),-isystem $(CUDA)/include)
cuda_libs := $(if $(NVCC),-L$(CUDA)/lib64 -lcudart_static -ldl -lrt -lstdc++)

ifeq ($(filter help clean deps,$(MAKECMDGOALS)),)
include ci/deps.mk
endif
CFLAGS := $(base) $(warn) $(opt_$(MODE)) $(cuda_cflags) $(shell pkg-config --cflags $(packages) 2>/dev/null) $(EXTRA_CFLAGS)
LDLIBS := $(shell pkg-config --libs $(packages) 2>/dev/null) $(cuda_libs) -lm -pthread

# ---- sources: wildcards only; the ISA comes from the file's suffix -----------------------------------------------
arch := $(shell uname -m)
x86_only := $(if $(filter x86_64,$(arch)),,%_avx2.c %_avx512.c)
# What needs the CUDA toolkit, and what stands in for it.
cuda_c := $(filter-out engine/cuda/tiles.c,$(wildcard engine/cuda/*.c)) $(filter-out %/cuda_absent.c,$(wildcard engine/paths/cuda_*.c))
cuda_cu := $(if $(NVCC),$(wildcard engine/cuda/*.cu))
without := $(x86_only) $(if $(NVCC),engine/paths/cuda_absent.c,$(cuda_c))
engine_src := $(filter-out $(without),$(wildcard engine/*.c engine/core/*.c engine/format/*.c engine/quant/*.c engine/model/*.c \
	engine/ops/*.c engine/ops/*/*.c engine/cuda/*.c engine/paths/*.c))
harness_src := $(wildcard harness/tap/*.c harness/spec/*.c harness/compare/*.c harness/localise/*.c harness/contract/*.c \
	harness/fault/*.c harness/report/*.c harness/run/*.c harness/judge/*.c harness/fixture/*.c)
cli_src := $(wildcard harness/cli/*.c)
cuda_tests := $(wildcard engine/test/test_cuda_*.c)
test_src := $(filter-out $(if $(NVCC),,$(cuda_tests)),$(wildcard engine/test/test_*.c harness/test/test_*.c))
fuzz_src := $(wildcard engine/test/fuzz_*.c harness/test/fuzz_*.c)
obj = $(patsubst %.c,$(B)/%.o,$(1))
tests := $(patsubst %.c,$(B)/bin/%,$(notdir $(test_src)))
fuzzers := $(patsubst %.c,$(B)/bin/%,$(notdir $(filter-out %_driver.c,$(fuzz_src))))
parity := $(B)/bin/parity

.PHONY: help all check check-gpu check-long check-sanitized parity selftest model bench lint format fuzz-smoke install deps clean tests fuzzers FORCE

help: ## this list
	@awk -F'## ' '/^[a-z-]+:.*## /{split($$1,t,":"); printf "  make %-14s %s\n", t[1], $$2}' $(MAKEFILE_LIST)

all: $(parity) tests ## build the program and the tests
tests: $(tests)
fuzzers: $(fuzzers)

$(B)/libforward.a: $(call obj,$(engine_src)) $(patsubst %.cu,$(CU)/%.cu.o,$(cuda_cu))
$(B)/libparity.a: $(call obj,$(harness_src))
$(B)/%.a:
	@mkdir -p $(@D)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

suffix_isa = $(isa_$(lastword $(subst _, ,$(basename $(notdir $(1))))))
$(B)/%.o: %.c Makefile
	@mkdir -p $(@D)
	@$(if $(filter 1,$(V)),,echo "  cc $<")
	$(Q)$(CC) $(CFLAGS) $(call suffix_isa,$<) $(cflags_$(notdir $<)) -MMD -MP -c $< -o $@

$(CU)/%.cu.o: %.cu Makefile
	@mkdir -p $(@D)
	@$(if $(filter 1,$(V)),,echo "  nvcc $<")
	$(Q)$(NVCC) $(nvcc_flags) $(if $(filter debug,$(MODE)),-O0 -G,-O3) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
-include $(patsubst %.cu,$(CU)/%.cu.d,$(cuda_cu))

# Data files that the program carries, as C arrays of bytes.
embedded := fixtures/models.json fixtures/prompts/default.txt fixtures/prompts/loss.txt fixtures/prompts/selftest.txt
$(B)/gen/embedded.c: $(embedded) $(B)/gen/build_id ci/embed.sh Makefile
	@mkdir -p $(@D)
	$(Q)sh ci/embed.sh $(B)/gen/build_id $(embedded) > $@

# What was built, for the receipt: the commit, and "-dirty" when the tree has changes. Touched only when it changes.
$(B)/gen/build_id: FORCE
	@mkdir -p $(@D)
	@git describe --always --dirty --abbrev=12 2>/dev/null > $@.new || echo unknown > $@.new
	@cmp -s $@.new $@ && rm -f $@.new || mv $@.new $@
FORCE:
$(B)/gen/embedded.o: $(B)/gen/embedded.c
	$(Q)$(CC) $(CFLAGS) -c $< -o $@

libs := $(B)/libparity.a $(B)/libforward.a
$(parity): $(call obj,$(cli_src)) $(B)/gen/embedded.o $(libs)
	@mkdir -p $(@D)
	@$(if $(filter 1,$(V)),,echo "  ld $@")
	$(Q)$(CC) $(CFLAGS) -o $@ $(filter-out %.a,$^) -Wl,--start-group $(libs) -Wl,--end-group $(LDLIBS)

# These tests fail the n-th allocation of the code under test.
wrap_test_model.c := -Wl,--wrap=posix_memalign
wrap_test_paths_ref.c := -Wl,--wrap=posix_memalign
# A test sees the whole of both libraries; --wrap lets it fail the n-th allocation.
wrap_test_tokenizer_made.c := -Wl,--wrap=posix_memalign
define test_rule
$(B)/bin/$(basename $(notdir $(1))): $(call obj,$(1)) $(B)/gen/embedded.o $(libs)
	@mkdir -p $$(@D)
	$(Q)$(CC) $(CFLAGS) -o $$@ $$(filter %.o,$$^) -Wl,--start-group $(libs) -Wl,--end-group $$(wrap_$(notdir $(1))) $$(shell pkg-config --libs check) $(LDLIBS)
endef
$(foreach t,$(test_src),$(eval $(call test_rule,$(t))))

define fuzz_rule
$(B)/bin/$(basename $(notdir $(1))): $(call obj,$(1)) $(call obj,engine/test/fuzz_driver.c) $(B)/gen/embedded.o $(libs)
	@mkdir -p $$(@D)
	$(Q)$(CC) $(CFLAGS) -o $$@ $$(filter %.o,$$^) -Wl,--start-group $(libs) -Wl,--end-group $(LDLIBS)
endef
$(foreach t,$(filter-out %_driver.c,$(fuzz_src)),$(eval $(call fuzz_rule,$(t))))

-include $(patsubst %.o,%.d,$(call obj,$(engine_src) $(harness_src) $(cli_src) $(test_src) $(fuzz_src)))

# ---- what a person runs ----------------------------------------------------------------------------------------
check: all ## build and run every test this machine can run
	@sh ci/check.sh $(tests) $(script_tests) $(not_built)
# Scripts that are tests: exit 0 passed, 77 skipped (with a line "SKIPPED: why"), anything else failed.
not_built := $(if $(NVCC),,$(patsubst engine/test/%.c,not-built:%,$(cuda_tests)))
script_tests := $(wildcard ci/test_*.sh fixtures/test_*.sh)
export PARITY := $(abspath $(parity))

check-long: all ## the tests again with longer sweeps, and every planted fault on both real models
	@CHECK_LONG=1 sh ci/check.sh $(tests) $(script_tests) $(not_built)

check-gpu: all ## what needs an NVIDIA card: every kernel against the CPU's bits, the GPU paths, the story; SANITIZE=1 too
	@SANITIZE=$(SANITIZE) sh ci/check_gpu.sh $(B)/bin

# Under a sanitizer: everything but what takes minutes there and drives code that others drive too (whole runs: test_trust;
# faults and cases: test_case); ThreadSanitizer runs the programs in which threads share data.
slow_tests := test_declared test_fault test_impact test_run
tsan_tests := test_core test_matmul_f test_matmul_q test_judge test_path_q4k
sanitized_asan := $(filter-out $(addprefix %/,$(slow_tests)),$(tests))
sanitized_ubsan := $(sanitized_asan)
sanitized_tsan := $(filter $(addprefix %/,$(tsan_tests)),$(tests))
check-sanitized: all
	@sh ci/check.sh $(sanitized_$(MODE))

lint: ## include DAG, banned calls, orphan kernels, file length, spelling, format
	@sh ci/lint.sh

format: ## clang-format every source file in place
	@clang-format -i $$(git ls-files '*.c' '*.h')

include ci/models.mk

FUZZ_SECONDS ?= 20
fuzz-smoke: ## every fuzz target for FUZZ_SECONDS (default 20) under ASan and UBSan
	@$(MAKE) --no-print-directory MODE=fuzz fuzzers
	@sh ci/fuzz.sh $(FUZZ_SECONDS) build/fuzz/bin

bench: $(parity) ## tokens per second, beside llama.cpp where llama-cpp-python is installed: MODEL=...
	@sh ci/bench.sh $(parity) "$(if $(MODEL),$(MODEL),qwen2.5-coder-1.5b)" $(PYTHON)

PREFIX ?= /usr/local
install: $(parity) ## install the program and its contracts under PREFIX (default /usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/parity/contracts/hypotheses
	install -m 755 $(parity) $(DESTDIR)$(PREFIX)/bin/parity
	install -m 644 contracts/*.json $(DESTDIR)$(PREFIX)/share/parity/contracts
	install -m 644 contracts/hypotheses/*.json $(DESTDIR)$(PREFIX)/share/parity/contracts/hypotheses

deps: ## install the Debian packages a build needs (DEPS=lint: the linters too)
	@sh ci/deps.sh $(if $(DEPS),--$(DEPS))

clean: ## remove build/
	rm -rf build
