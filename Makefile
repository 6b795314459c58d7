# make quick: lint, types and the light unit tests, which need no models, in a light environment of its own (.venv-quick); a minute or so.
# make demo: everything that is needed into .venv, then the demonstration set by the embedded models.
# make test: everything that is tested, also on a Slurm cluster of its own where it may have one (root on Debian).
# make test-all: the same at full size, for an hour or two.
# make test-gpu, make bench-gpu: what needs an NVIDIA card, by a Python that has PyTorch for CUDA (docs/cards.md).
PYTHON ?= python3
VENV ?= .venv
QUICK_VENV ?= .venv-quick
CORES ?= 2
CONFIG ?= $(config)
# The CPU builds of torch and torchvision; where this index cannot be reached, pip's own index has to do.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := -m pip --disable-pip-version-check --quiet
QUICK := $(QUICK_VENV)/bin
QUICK_READY := $(QUICK_VENV)/.ready
export PYTHONNOUSERSITE = 1

.PHONY: demo test test-all quick lint types unit plan verify prune report watch failures train-models train-generator-early train-generator train-near-misses train-reader train-generated train-quality train-clip bench-models bench-models-quick bench-generator-quick bench-judge-quick bench-plan bench-tables bench-gallery bench-overlap test-gpu bench-gpu clean

demo: $(READY)
	@$(BIN)/snakemake -j$(CORES)

# A file shares what its tests prepare; in the order of testpaths (pyproject.toml), the long ones first.
test: $(READY)
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

test-all: $(READY)
	DARKROOM_TEST_ALL=1 $(BIN)/python -m pytest

quick: lint types unit

unit: $(QUICK_READY)
	$(QUICK)/python -m pytest -n $(CORES) --dist loadfile -q -m light tests/unit

types: $(QUICK_READY)
	$(QUICK)/mypy

lint: $(QUICK_READY)
	$(QUICK)/ruff check .
	$(QUICK)/ruff format --check .
	$(QUICK)/snakefmt --check Snakefile workflow
	$(QUICK)/codespell
	$(QUICK)/snakemake --lint

# Commands on results/, or on the results of the config file named with CONFIG=my.yaml, or config=; watch: until the run ends.
plan verify prune watch failures: $(READY)
	@$(BIN)/darkroom $@ $(if $(CONFIG),--configfile $(CONFIG))

# report.zip: plots, examples and recipe; open report/report.html in it.
report: $(READY)
	@$(BIN)/snakemake --report report.zip $(if $(CONFIG),--configfile $(CONFIG))

PYTHON_CHECK = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "error: Python 3.11 is needed; name it with make PYTHON=/path/to/python3.11")'

$(QUICK_READY): envs/quick.lock
	$(PYTHON_CHECK)
	@echo "Installing into $(QUICK_VENV) (some 700 MB, a minute) ..."
	@$(PYTHON) -m venv $(QUICK_VENV)
	@$(QUICK)/python $(PIP) install --no-deps -r $<
	@$(QUICK)/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# The lock lists every package, so pip need not resolve anything; some that vLLM names but breaks on are left out. The checkout
# itself is installed as it lies here, for the command darkroom.
$(READY): envs/cpu.lock $(wildcard envs/torchvision_cpu/*)
	$(PYTHON_CHECK)
	@echo "Installing into $(VENV) (some 3 GB, a few minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install --no-deps --retries 0 --timeout 15 --index-url $(TORCH_INDEX) $$(grep -E '^torch(vision)?==' envs/cpu.lock) 2>/dev/null || true
	@$(BIN)/python $(PIP) install --no-deps -r envs/cpu.lock
	@$(BIN)/python $(PIP) install --no-deps --no-build-isolation -e .
	@cp envs/torchvision_cpu/* "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

# The embedded models, from fixed seeds, on two cores: the generator and then the near misses it makes on one, the judge on the
# other as far as it can go without them. Stopped, it goes on where it was (build/).
SUM_FILES = (cd resources/models/$$model && git ls-files | grep -vE "README.md|SHA256SUMS" | xargs sha256sum > SHA256SUMS)
TRAIN_GENERATOR = OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/train_generator.py --out resources/models/shapes-flux
TRAIN_CLIP = OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/train_clip.py --out resources/models/shapes-clip
TRAIN_JUDGE = OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/train_judge.py --out resources/models/shapes-judge

train-models: $(READY)
	$(MAKE) -j2 train-near-misses train-quality
	$(TRAIN_JUDGE)
	$(MAKE) train-clip
	for model in shapes-flux shapes-judge; do $(SUM_FILES) || exit; done

# The CLIP needs neither of them.
train-clip: $(READY)
	$(TRAIN_CLIP)
	model=shapes-clip; $(SUM_FILES)

# The judge's first look at generated pictures is at those of a generator of so many steps.
train-generator-early: $(READY)
	$(TRAIN_GENERATOR) --until 3200

train-generator: train-generator-early
	$(TRAIN_GENERATOR)

train-near-misses: train-generator
	$(TRAIN_JUDGE) --near-misses

train-reader: $(READY)
	$(TRAIN_JUDGE) --until edits

train-generated: train-generator-early train-reader
	$(TRAIN_JUDGE) --until generated

train-quality: train-generator train-generated
	$(TRAIN_JUDGE) --until quality

# How good they are, against what they are to reach; fails below it.
bench-models: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/bench_generator.py resources/models/shapes-flux
	OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/bench_judge.py resources/models/shapes-judge --generator resources/models/shapes-flux --build build/bench
	OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/bench_clip.py resources/models/shapes-clip --generator resources/models/shapes-flux

# A smaller sample, for continuous integration; allows for its sampling error. make -j2 takes both at once.
bench-models-quick: bench-generator-quick bench-judge-quick

bench-generator-quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/bench_generator.py resources/models/shapes-flux --quick

bench-judge-quick: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python training/shapeworld/bench_judge.py resources/models/shapes-judge --generator resources/models/shapes-flux --quick

# What planning costs: a million rows, a job's start, the dry run of ten thousand shards beside a bare workflow's.
bench-plan: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/bench_plan.py

# A million synthetic images: merge, selection and report; a changed cut on a hundred thousand.
bench-tables: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=scripts $(BIN)/python tests/bench/bench_tables.py

# The gallery of 2,000 and of 20,000 pictures: what one costs, and how soon the first shows.
bench-gallery: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=scripts:tests $(BIN)/python tests/browser/bench_gallery.py

# What a job costs besides an engine that takes no CPU: pictures written and sources read while it works, or in turn.
bench-overlap: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=scripts $(BIN)/python tests/bench/bench_overlap.py

# On a machine with a card, into the folder OUT; nothing of .venv, which is for the CPU. make -k goes on to the benchmark where a
# test fails.
OUT ?= build/gpu
SITE ?= build/gpu-site
GPU = PYTHON="$(PYTHON)" SITE="$(SITE)" PARTS="$(PARTS)" tests/gpu/run "$(OUT)"

test-gpu:
	@$(GPU) tests

bench-gpu:
	@$(GPU) bench

clean:
	rm -rf $(VENV) $(QUICK_VENV) .snakemake results .pytest_cache .ruff_cache .mypy_cache
