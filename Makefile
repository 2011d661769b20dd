# The first command is `make demo`, the second `make test`; `make help` lists the rest.
#
# The library is one header, so all that is built here are its tests, examples and benchmarks, into
# build/. Every tests/*.cpp goes into one test program; every examples/*.cpp and tests/bench/*.cpp
# is a program of its own. New files are found by themselves.

.DEFAULT_GOAL := help

# OPTIONS ==========================================================================================

CXX         ?= g++
#: CXX=clang++      another compiler (as in every Makefile)
OMP         ?= 1
#: OMP=0            without OpenMP: one thread
ARCH        ?= native
#: ARCH=x86-64-v3   another instruction set for -march; empty leaves -march out
EIGEN       ?= 0
#: EIGEN=1          matrix products by Eigen instead of our own kernels
EIGEN_DIR   ?= /usr/include/eigen3
#: EIGEN_DIR=...    where <Eigen/Core> is found
STRICT      ?= 0
#: STRICT=1         a warning is an error, as in lint and CI
RUN         ?=
#: RUN=...          what runs the programs, such as qemu-aarch64 -L /usr/aarch64-linux-gnu
ARGS        ?=
#: ARGS=...         arguments of the demo or of the test program, or the rule that lint checks
N           ?=
#: N=3              which exercise to check, or which laboratory to run
TRY         ?= stub
#: TRY=stub         and which file of its folder: stub, solution, wrong_1, ...
JOBS        ?= $(or $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null),2)
#: JOBS=1           compilers at the same time; one per core unless given
V           ?= 0
#: V=1              show the commands
PYTHON      ?= python3
#: PYTHON=...       the Python that has torch, for bench-torch and golden
PREFIX      ?= /usr/local
#: PREFIX=...       where `make install` puts the library; DESTDIR is honoured
NVCC        ?= nvcc
#: NVCC=...         the CUDA compiler
SM          ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null \
                 | sed -n '1s/^\([0-9]*\)\.\([0-9]*\)$$/sm_\1\2/p'),sm_80)
#: SM=sm_90         the GPU architecture that it compiles for: this machine's, or sm_80
CUDA_O      ?=
#: CUDA_O=-O2       optimise the host's half of it, too; bench-gpu does so

ifeq ($(MAKELEVEL),0)
MAKEFLAGS   += -j$(JOBS) --output-sync=target --no-print-directory --no-builtin-rules
endif
SHELL       := bash
Q           := $(if $(filter 1,$(V)),,@)

# FLAGS ============================================================================================

# -ffp-contract=off: products and sums are fused where the header says fma and nowhere else, so the
# bits are the same with every compiler. GCC 12 warns about its own AVX-512 header, hence the -Wno.
CLANG       := $(findstring clang,$(CXX))
WARNINGS    := -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast
BASE        := -std=c++17 -ffp-contract=off -I. -Iexamples -isystem $(EIGEN_DIR) \
               $(if $(ARCH),-march=$(ARCH)) $(if $(filter 1,$(EIGEN)),-DWIDENET_EIGEN=1)
OPENMP      := $(if $(filter 1,$(OMP)),-fopenmp)
STRICTLY    := $(WARNINGS) $(if $(CLANG),,-Wno-maybe-uninitialized) \
               $(if $(filter 1,$(STRICT)),-Werror)
FLAGS       := $(BASE) $(OPENMP) $(STRICTLY)

# The tests of chapter 15 let system calls fail, one after the other.
WRAPPED     := open write fsync close rename

# One set of flags per folder of build/; the file `flags` in each remembers them, and when they
# change, or the compiler does, all in the folder is built again. The four checks that the sanitized
# build leaves out take g++ 12 from 37 s to 100 s for one test file; the address sanitizer sees what
# they see but for misaligned pointers.
tests_compiler    := $(CXX) $(FLAGS) -O2
examples_compiler := $(CXX) $(FLAGS) -O3
bench_compiler    := $(CXX) $(FLAGS) -O3
exercises_compiler := $(CXX) $(BASE) -O0 -D_GLIBCXX_ASSERTIONS -Wall -Wextra \
                      -Wno-unused-parameter $(if $(CLANG),,-Wno-maybe-uninitialized) \
                      $(if $(filter 1,$(STRICT)),-Werror)
sanitize_compiler := $(CXX) $(BASE) $(OPENMP) -O1 -g1 -fno-omit-frame-pointer \
                     -D_GLIBCXX_ASSERTIONS -fno-sanitize-recover=all \
                     -fsanitize=address,undefined -fno-sanitize=null,alignment,object-size,vptr
tools_compiler    := $(CXX) -std=c++17 -O1 $(STRICTLY)
# Not -Wparentheses: nvcc puts parentheses around a pointer to member, of which g++ then warns.
cuda_compiler     := $(NVCC) -std=c++17 --extended-lambda -DWIDENET_CUDA=1 -fmad=false \
                     -arch=$(SM) -I. -Iexamples -isystem $(EIGEN_DIR) \
                     -Xcompiler -Wall,-Wextra,-Wno-parentheses,-ffp-contract=off \
                     $(if $(filter 1,$(STRICT)),-Werror all-warnings) $(CUDA_O)

# The CUDA build for a GPU that the host plays (tests/emulated_gpu): only the launches of kernels,
# which are no C++, are written anew. If fortified, longjmp refuses to go from stack to stack. The
# race detector itself is not linked: it only makes every access known to watch.cpp.
emulated_compiler := $(CXX) -std=c++17 -O1 $(if $(ARCH),-march=$(ARCH)) -ffp-contract=off \
                     -U_FORTIFY_SOURCE -fsanitize=thread -DWIDENET_CUDA=1 -Ibuild/emulated \
                     -isystem tests/emulated_gpu -I. -Iexamples -isystem $(EIGEN_DIR) $(STRICTLY)

# FILES ============================================================================================

TESTS       := $(wildcard tests/*.cpp)
EXAMPLES    := $(wildcard examples/*.cpp)
BENCHES     := $(wildcard tests/bench/*.cpp)

test_program     := build/tests/widenet_tests
sanitize_program := build/sanitize/widenet_tests
cuda_program     := build/cuda/widenet_tests
emulated_program := build/emulated/widenet_tests
# Not the others: gradcheck of a whole model takes minutes on an emulated GPU.
emulated_tests   := tests/test_main.cpp $(addprefix tests/test_, \
                    emulated_gpu.cpp errors.cpp layers.cpp memory.cpp autograd.cpp)
emulated_gpu     := build/emulated/watch.o build/emulated/cublas.o
emulated_examples := $(addprefix build/emulated/examples/,autograd routing_by_hand checkpoint \
                      validate)
crossing         := build/tests/go_on build/emulated/go_on
example_programs := $(EXAMPLES:examples/%.cpp=build/examples/%)
shown_examples   := $(filter-out $(addprefix build/examples/,demo paper train_%), \
                      $(example_programs))
page_writers     := $(addprefix build/examples/,report demo train_vision train_language)
exercise_folder  := $(notdir $(wildcard examples/exercises/$(N)_* examples/exercises/0$(N)_*))
shipped_answers  := $(wildcard $(addprefix examples/exercises/*/,stub.cpp solution.cpp wrong_*.cpp))
bench_programs   := $(BENCHES:tests/bench/%.cpp=build/bench/%)
bench_page       := $(addprefix build/bench/,report bench.json torch.json index.html)
cuda_examples    := $(EXAMPLES:examples/%.cpp=build/cuda/examples/%)

# TARGETS ==========================================================================================

demo: build/examples/demo  ## train a WideNet on handwritten digits, and show what it learned
	+@$(RUN) build/examples/demo $(ARGS)

paper: build/examples/paper  ## every experiment of the paper at toy scale, in build/paper
	+@$(RUN) build/examples/paper --out build/paper $(ARGS)

paper-quick: build/examples/paper  ## the same with fewer seeds and steps: build/paper_quick
	+@$(RUN) build/examples/paper --quick --out build/paper_quick $(ARGS)

test: $(test_program)  ## the tests that take less than five minutes
	+@$(RUN) $(test_program) --test-suite-exclude=slow $(ARGS)

test-slow: $(test_program)  ## the tests that take longer (test suite "slow")
	+@$(RUN) $(test_program) --test-suite=slow $(ARGS)

test-all: test  ## both
	+@$(MAKE) test-slow

check-examples: $(example_programs)  ## run the examples and compare what they print
	+@RUN="$(RUN)" tests/tools/check_examples.sh $(shown_examples)

exercise: $(exercise_folder:%=build/exercises/%/$(TRY))  ## check your answer to an exercise: N=3
	@$(if $<,$(RUN) $< $(N),sed -n 's/^# Exercise/ /p' examples/exercises/*/README.md; \
	  echo "Write the answer in stub.cpp of an exercise, then: make exercise N=3"; $(if $(N),exit 1))

check-exercises: $(shipped_answers:examples/%.cpp=build/%)  ## right answers pass, wrong ones fail
	@RUN="$(RUN)" TRY_COMPILER="$(exercises_compiler)" tests/tools/check_exercises.sh

laboratory: build/examples/laboratory  ## an experiment with routers: N=1, or none for a list
	+@$(RUN) $< $(N) $(ARGS)

check-laboratories: build/examples/laboratory  ## each laboratory, with few steps, leaves its page
	+@RUN="$(RUN)" tests/tools/check_laboratories.sh

check-demo: build/examples/demo  ## a short demo, interrupted and resumed, ends with the same bits
	+@RUN="$(RUN)" tests/tools/check_demo.sh

check-vision: build/examples/train_vision  ## train_vision: every preset and recipe, CIFAR, errors
	+@RUN="$(RUN)" tests/tools/check_vision.sh

check-paper: build/examples/paper  ## tiny experiments, interrupted and resumed, the same numbers
	+@RUN="$(RUN)" tests/tools/check_paper.sh

check-language: build/examples/train_language  ## train_language on small files of every kind
	+@RUN="$(RUN)" tests/tools/check_language.sh

check-report: $(page_writers)  ## the pages of runs: whole, small, well-formed, opened in a browser
	+@RUN="$(RUN)" tests/tools/check_report.sh

expected: $(shown_examples)  ## write what the examples print to examples/expected
	@mkdir -p examples/expected
	@for program in $^; do \
	  $(RUN) $$program > examples/expected/$${program##*/}.txt || exit 1; done
	@git --no-pager diff --stat examples/expected

sanitize: $(sanitize_program)  ## the tests under the address and undefined behaviour sanitizers
	+@UBSAN_OPTIONS=print_stacktrace=1 $(sanitize_program) --test-suite-exclude=slow $(ARGS)

lint: | need-lint  ## what a tool can check of style: warnings, contents, macros, columns, ...
	+@BASE="$(BASE)" WARNINGS="$(WARNINGS)" JOBS=$(JOBS) tests/tools/lint.sh $(ARGS)

format:  ## what clang-format would change; changes nothing
	@for file in widenet.hpp $(TESTS) $(EXAMPLES); do \
	  clang-format $$file | diff -u --label $$file --label formatted $$file - || true; done

equations: build/tools/equations  ## each equation beside its code and test: build/equations.html
	@$(RUN) $< widenet.hpp tests/tools/equations.txt build/equations.html $(TESTS)
	@echo "build/equations.html"

golden:  ## write data/golden and data/foreign anew: PYTHON=... with torch, transformers, timm
	@$(PYTHON) tests/reference/make_golden.py
	@$(PYTHON) tests/reference/make_foreign.py

check-golden:  ## data/golden and data/foreign are what their manifests say
	@tests/tools/check_golden.sh

zoo: build/examples/validate | need-tests  ## real bugs, made in copies of the header, are caught
	+@RUN="$(RUN)" JOBS=$(JOBS) COMPILER="$(CXX) $(BASE)" tests/tools/check_zoo.sh $(ARGS)

check-zoo: build/examples/validate | need-tests  ## a few of these bugs, and a harmless variation
	+@RUN="$(RUN)" JOBS=$(JOBS) COMPILER="$(CXX) $(BASE)" tests/tools/check_zoo.sh quick

bench: $(bench_programs) | need-bench  ## time everything: build/bench/index.html (ARGS=--short)
	+@CXX="$(CXX)" FLAGS="$(BASE) $(OPENMP)" RUN="$(RUN)" tests/bench/run.sh $(ARGS)
	+@$(RUN) $(bench_page)

bench-torch: $(bench_programs) | need-torch  ## steps beside PyTorch's: PYTHON=... that has torch
	+@$(PYTHON) tests/bench/bench_torch.py $(ARGS)
	+@$(RUN) $(bench_page)

bench-gpu: | need-cuda  ## tests, demo, sanitizer and times on a GPU: tests/bench/GPU.md
	+@PYTHON="$(PYTHON)" NVCC="$(NVCC)" MAKE="$(MAKE)" tests/bench/gpu.sh $(ARGS)

cuda: $(cuda_examples) $(cuda_program)  ## compile examples and tests with nvcc
	@echo "cuda: compiled $(words $(cuda_examples)) examples and the tests for $(SM)"

test-cuda: cuda  ## the tests on a GPU, where there is one
	+@if nvidia-smi -L 2> build/cuda/nvidia-smi.txt; then \
	  $(cuda_program) --test-suite-exclude=slow $(ARGS); \
	else echo "test-cuda: compiled only; not run, because no GPU answers here"; fi

test-emulated: $(emulated_program)  ## tests of the CUDA build on an emulated GPU: needs none
	+@$(RUN) $(emulated_program) --test-suite-exclude=slow $(ARGS)

check-emulated: $(emulated_examples) build/examples/validate $(crossing)  ## its examples and bits
	+@RUN="$(RUN)" tests/tools/check_examples.sh $(emulated_examples)
	+@tests/tools/check_crossing.sh $(crossing)
	+@tests/tools/check_bits.sh build/examples/validate build/emulated/examples/validate
	+@EMULATED_ORDER=reverse tests/tools/check_bits.sh build/examples/validate \
	  build/emulated/examples/validate

install: build/install/widenet.pc  ## install header, pkg-config file, CMake package: PREFIX=...
	@mkdir -p "$(DESTDIR)$(PREFIX)/include" "$(DESTDIR)$(PREFIX)/share/pkgconfig" \
	  "$(DESTDIR)$(PREFIX)/share/cmake/widenet"
	install -m 644 widenet.hpp "$(DESTDIR)$(PREFIX)/include"
	install -m 644 build/install/widenet.pc "$(DESTDIR)$(PREFIX)/share/pkgconfig"
	install -m 644 build/install/widenetConfig.cmake build/install/widenetConfigVersion.cmake \
	  "$(DESTDIR)$(PREFIX)/share/cmake/widenet"

test-install: | need-install  ## install into build/, then build a project with pkg-config and CMake
	+@CXX="$(CXX)" MAKE="$(MAKE)" EIGEN_DIR="$(EIGEN_DIR)" tests/install/run.sh

clean:  ## remove build/
	rm -rf build

help:  ## this list
	@echo "make TARGET [OPTION=...]"; echo
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/  \1 \2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while read -r name text; do printf '  %-15s %s\n' "$$name" "$$text"; done
	@echo; echo "Options:"; sed -n 's/^#: /  /p' $(firstword $(MAKEFILE_LIST))

# RULES ============================================================================================

# What a rule needs on the machine is seen to before it: see tests/tools/need.sh.
need         = CXX="$(1)" EIGEN_DIR="$(EIGEN_DIR)" tests/tools/need.sh
basics      := compiler $(if $(OPENMP),openmp) $(if $(filter 1,$(EIGEN)),eigen)
need-basics:   ; @$(call need,$(CXX)) $(basics)
need-tests:    ; @$(call need,$(CXX)) $(basics) doctest eigen
need-sanitize: ; @$(call need,$(CXX)) $(basics) doctest eigen sanitizers
need-install:  ; @$(call need,$(CXX)) $(basics) cmake pkg-config
need-bench:    ; @$(call need,$(CXX)) $(basics) eigen
need-torch: need-bench
	@$(PYTHON) -c 'import numpy, safetensors, torch' || { echo "bench-torch: $(PYTHON) has no numpy, \
	safetensors and torch: install them with pip, or say which Python has them, PYTHON=..."; exit 1; }
need-lint:
	@$(call need,g++) compiler openmp doctest eigen
	@$(call need,clang++) compiler openmp
need-cuda:
	@command -v $(NVCC) > /dev/null || { echo "cuda: there is no $(NVCC) here: install the CUDA \
	toolkit (developer.nvidia.com/cuda-downloads) or say where it is, NVCC=..."; exit 1; }

flag_folders := tests examples exercises bench sanitize tools cuda emulated
$(flag_folders:%=build/%/flags): build/%/flags: FORCE | need-basics
	@mkdir -p $(@D)
	@now='$($*_compiler)'; now="$$now; $$($(firstword $($*_compiler)) --version | tr '\n' ' ')"; \
	  [ "$$now" = "$$(cat $@ 2>/dev/null)" ] || echo "$$now" > $@

build/tests/%.o: tests/%.cpp build/tests/flags | need-tests
	@echo "$(CXX) $<"
	$(Q)$(tests_compiler) -MMD -MP -c $< -o $@

$(test_program): $(TESTS:tests/%.cpp=build/tests/%.o)
	$(Q)$(tests_compiler) $(WRAPPED:%=-Wl,--wrap=%) $^ -o $@

build/sanitize/%.o: tests/%.cpp build/sanitize/flags | need-sanitize
	@echo "$(CXX) sanitizing $<"
	$(Q)$(sanitize_compiler) -MMD -MP -c $< -o $@

$(sanitize_program): $(TESTS:tests/%.cpp=build/sanitize/%.o)
	$(Q)$(sanitize_compiler) $(WRAPPED:%=-Wl,--wrap=%) $^ -o $@

build/examples/%: examples/%.cpp build/examples/flags | need-basics
	@echo "$(CXX) $<"
	$(Q)$(examples_compiler) -MMD -MP -MF $@.d -MT $@ $< -o $@

build/exercises/checker.o: examples/exercises/checker.cpp build/exercises/flags | need-basics
	@echo "$(CXX) $<"
	$(Q)$(exercises_compiler) -MMD -MP -c $< -o $@

build/exercises/%: examples/exercises/%.cpp build/exercises/checker.o
	@mkdir -p $(@D); echo "$(CXX) $<"
	$(Q)$(exercises_compiler) $^ -o $@

build/bench/%: tests/bench/%.cpp build/bench/flags | need-bench
	@echo "$(CXX) $<"
	$(Q)$(bench_compiler) -MMD -MP -MF $@.d -MT $@ $< -o $@

build/tools/%: tests/tools/%.cpp build/tools/flags | need-basics
	@echo "$(CXX) $<"
	$(Q)$(tools_compiler) -MMD -MP -MF $@.d -MT $@ $< -o $@

build/cuda/tests/%.o: tests/%.cpp build/cuda/flags | need-cuda need-tests
	@mkdir -p $(@D); echo "$(NVCC) $<"
	$(Q)$(cuda_compiler) -x cu -MMD -MP -MF $(@:.o=.d) -MT $@ -c $< -o $@

$(cuda_program): $(TESTS:tests/%.cpp=build/cuda/tests/%.o)
	$(Q)$(cuda_compiler) $(WRAPPED:%=-Xlinker --wrap=%) $^ -o $@ -lcublas

build/cuda/examples/%: examples/%.cpp build/cuda/flags | need-cuda need-basics
	@mkdir -p $(@D); echo "$(NVCC) $<"
	$(Q)$(cuda_compiler) -x cu -MMD -MP -MF $@.d -MT $@ $< -o $@ -lcublas

# What is timed is optimised on the host, too. bf16 stands for -DWIDENET_BF16=1, and so on.
build/cuda/train_step_%: tests/bench/train_step.cpp build/cuda/flags | need-cuda need-basics
	@echo "$(NVCC) $< ($*)"
	$(Q)$(filter-out -O%,$(cuda_compiler)) -O3 -DWIDENET_$(shell echo $* | tr a-z A-Z)=1 \
	  -x cu -MMD -MP -MF $@.d -MT $@ $< -o $@ -lcublas

build/emulated/widenet.hpp: widenet.hpp build/emulated/flags $(wildcard tests/emulated_gpu/*.h)
	$(Q)sed -E 's/detail::run_([a-z]+)<<<(.*)>>>\((.*)\);/emulated_gpu::launch_\1(\2, [=] { \
	  detail::run_\1(\3); });/' $< > $@
	$(Q)! grep -n '<<<' $@

build/emulated/%.o: tests/%.cpp build/emulated/flags build/emulated/widenet.hpp | need-tests
	@echo "$(CXX) emulating a GPU: $<"
	$(Q)$(emulated_compiler) -MMD -MP -c $< -o $@

build/emulated/examples/%.o: examples/%.cpp build/emulated/flags build/emulated/widenet.hpp
	@mkdir -p $(@D); echo "$(CXX) emulating a GPU: $<"
	$(Q)$(emulated_compiler) -MMD -MP -c $< -o $@

build/emulated/%.o: tests/emulated_gpu/%.cpp build/emulated/flags build/emulated/widenet.hpp
	$(Q)$(emulated_compiler) -MMD -MP -c $< -o $@

$(emulated_gpu): build/emulated/%.o: tests/emulated_gpu/%.cpp build/emulated/flags
	$(Q)$(filter-out -fsanitize=thread,$(emulated_compiler)) -O2 -MMD -MP -c $< -o $@

build/emulated/examples/%: build/emulated/examples/%.o $(emulated_gpu)
	$(Q)$(CXX) $(filter %.o,$^) -o $@

build/tests/go_on: tests/emulated_gpu/go_on.cpp build/tests/flags
	$(Q)$(tests_compiler) -MMD -MP -MF $@.d -MT $@ $< -o $@

build/emulated/go_on: build/emulated/go_on.o $(emulated_gpu)
	$(Q)$(CXX) $(filter %.o,$^) -o $@

$(emulated_program): $(emulated_tests:tests/%.cpp=build/emulated/%.o) $(emulated_gpu)
	$(Q)$(CXX) $(WRAPPED:%=-Wl,--wrap=%) $(filter %.o,$^) -o $@

build/install/widenet.pc: widenet.hpp tests/install/generate.sh FORCE
	@mkdir -p $(@D)
	@PREFIX="$(PREFIX)" tests/install/generate.sh $(@D)

FORCE:
-include $(wildcard build/*/*.d build/*/*/*.d)

.DELETE_ON_ERROR:
.PRECIOUS: build/emulated/examples/%.o
.PHONY: $(shell sed -nE 's/^([a-z-]+):([^=].*)?$$/\1/p' $(firstword $(MAKEFILE_LIST))) FORCE
