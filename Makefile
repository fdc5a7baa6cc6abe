# make demo   set up, then show the embedded trio at work
# make real   set up, then fetch real models (0.6 GB) and show them at work; other pairs: PAIR=qwen
# make test   set up, then run every test that can run here; its end says what was skipped
# make test-harness  set up another environment, then run the tests of other people's harnesses there
# make engines set up another environment with vLLM, then run the tests over three of its servers
# make llamacpp  build llama.cpp's server, then run the tests over three of them
# make lint   set up, then run every check of .pre-commit-config.yaml
# make native set up, then sanitizers, fuzzing, every GPU architecture, and three installations
#
# PYTHON=python3.12 picks another interpreter, VENV=dir another place for the environment, and
# VENV_HARNESS=dir, VENV_ENGINES=dir and LLAMACPP=dir for the other ones.

PYTHON ?= python3
VENV ?= .venv
VENV_HARNESS ?= .venv-harness
VENV_ENGINES ?= .venv-engines
LLAMACPP ?= .llamacpp
JOBS ?= 2

# nvcc takes minutes for all its targets; on a GPU the kernel is built at first use all the same.
export ALIGNBEAM_CUDA ?= OFF

BIN := $(VENV)/bin
# Into the environment where the target is.
PIP_INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# A change in any of these installs again, which also rebuilds the native extension.
SOURCES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*)

# What asks inspect_ai, lm-eval and LiteLLM through their own packages; tests/skips.toml names it too.
HARNESS_TESTS := tests/harness/test_agreement.py tests/harness/test_inspect.py \
  tests/harness/test_lm_eval.py tests/server/test_clients.py

PAIR ?= smollm2

.PHONY: demo real test test-harness engines llamacpp lint native clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-demo
	$(BIN)/alignbeam demo

real: $(VENV)/.ready-real
	$(BIN)/python examples/real_models/show.py $(PAIR)

test: $(VENV)/.ready-test
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-harness: $(VENV_HARNESS)/.ready-harness
	$(VENV_HARNESS)/bin/python -m pytest -q -n $(JOBS) --skips=none $(PYTEST_ARGS) $(HARNESS_TESTS)

# Where vLLM cannot be had, the tests skip and say so.
engines: $(VENV)/.ready-test
	test -f $(VENV_ENGINES)/.ready || { tests/engines/install_vllm.sh $(VENV_ENGINES) \
	  && touch $(VENV_ENGINES)/.ready; } || test $$? -eq 3
	test ! -f $(VENV_ENGINES)/.ready || export ALIGNBEAM_VLLM="$(abspath $(VENV_ENGINES))/bin/python"; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST_ARGS) \
	    tests/engines/test_vllm.py tests/engines/test_real_pair.py

# Where it cannot be built, the tests skip and say so.
llamacpp: $(VENV)/.ready-test
	test -f $(LLAMACPP)/.ready || { JOBS=$(JOBS) tests/engines/install_llamacpp.sh $(LLAMACPP) \
	  && touch $(LLAMACPP)/.ready; } || test $$? -eq 3
	test ! -f $(LLAMACPP)/.ready || \
	  export ALIGNBEAM_LLAMACPP="$(abspath $(LLAMACPP))/build/bin/llama-server"; \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PYTEST_ARGS) tests/engines/test_llamacpp.py

lint: $(VENV)/.ready-lint
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

native: $(VENV)/.ready-test
	tests/native/sanitize.sh $(BIN)/python
	tests/native/planted_faults.sh $(BIN)/python
	tests/native/compile_cuda.sh
	tests/native/install.sh $(BIN)/python

$(VENV)/.created $(VENV_HARNESS)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignbeam needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(@D)
	touch $@

$(VENV)/.ready-demo: $(VENV)/.created $(SOURCES)
	@echo "installing alignbeam into $(VENV) (torch is large; once)"
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.ready-real: $(VENV)/.ready-demo
	$(PIP_INSTALL) -e '.[gguf,adapters]'
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready-demo
	$(PIP_INSTALL) -e '.[test,jit,triton]'
	touch $@

# Large, and of many packages that alignbeam never needs: apart from the rest.
$(VENV_HARNESS)/.ready-harness: $(VENV_HARNESS)/.created $(SOURCES)
	@echo "installing alignbeam, inspect-ai, lm-eval and LiteLLM into $(VENV_HARNESS) (minutes; once)"
	$(PIP_INSTALL) -e '.[test,lm-eval]' litellm
	touch $@

$(VENV)/.ready-lint: $(VENV)/.ready-demo
	$(PIP_INSTALL) -e '.[lint,test]'
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
