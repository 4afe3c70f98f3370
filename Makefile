# Everything runs from the virtual environment in $(VENV), which is made when it is
# missing and brought up to date when pyproject.toml is newer.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
TEST = $(RUN) -m pytest -n 2 --dist worksteal
DEMO_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help demo papers docs test lint format bench peers accelerators test-accelerators \
    test-lowest clean

help:
	@echo "make demo              train a GAN on eight workers, on 8x8 digits (3 minutes)"
	@echo "make papers            test the papers' claims (FULL=1: in their long form)"
	@echo "make docs              build the site into out/docs, without a network"
	@echo "make test              run all tests"
	@echo "make lint              ruff and pyright"
	@echo "make format            ruff format"
	@echo "make bench             the short benchmarks of BENCHMARKS.md"
	@echo "make peers             jaxsp beside optax, cooper, DrJAX and PyTorch's DDP"
	@echo "make accelerators      what the compilers of TPUs and GPUs make of every step"
	@echo "make test-accelerators test the same, on some of them"
	@echo "make test-lowest       run all tests with the oldest versions in pyproject.toml"
	@echo "make clean             remove the virtual environments and caches"

$(VENV)/.gan: pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[gan]"
	@touch $@

$(VENV)/.all: pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[all]"
	@touch $@ $(VENV)/.gan

$(VENV)/.bench: pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	@touch $@

$(VENV)/.docs: pyproject.toml
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	@touch $@

demo: $(VENV)/.gan
	$(RUN) examples/train_gan.py --dataset=digits --steps=4000 --batch_size=32 \
	    --workdir=$(DEMO_DIR)

papers: $(VENV)/.gan
	$(RUN) claims/run.py $(if $(FULL),--full)

docs: $(VENV)/.docs
	JAX_PLATFORMS=cpu $(RUN) -m sphinx -W --keep-going -q docs out/docs
	@echo "written: out/docs/index.html"

test: $(VENV)/.all
	$(TEST)

lint: $(VENV)/.all
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(VENV)/.all
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.gan
	$(RUN) benchmarks/gossip_scaling.py
	$(RUN) benchmarks/step_overhead.py
	$(RUN) benchmarks/step_overhead.py --devices=8

# With PyTorch, of which the index has builds with CUDA for Linux; where a CPU one is
# wanted, install that first.
peers: $(VENV)/.bench
	$(RUN) benchmarks/peers/peers.py --output=out/peers.json

# Beside the environment, as JAX would look for a TPU and a GPU in every run of it.
$(VENV)/compilers: $(VENV)/.all
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	    --target=$@ $$($(RUN) benchmarks/compilers.py)
	@touch $@

COMPILERS = JAX_PLATFORMS=cpu PYTHONPATH=$(VENV)/compilers

accelerators: $(VENV)/compilers
	$(COMPILERS) $(RUN) benchmarks/accelerators.py $(FLAGS)

test-accelerators: $(VENV)/compilers
	$(COMPILERS) $(RUN) -m pytest -m accelerators tests/test_accelerators.py

test-lowest: $(VENV)/.all
	$(RUN) -m pip install --quiet --disable-pip-version-check uv
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(RUN) -m uv pip install --quiet --upgrade --resolution=lowest-direct \
	    --python=$(VENV)-lowest/bin/python -e ".[all]"
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) $(VENV)-lowest .pytest_cache .ruff_cache .hypothesis build *.egg-info
