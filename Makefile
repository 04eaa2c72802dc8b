PYTHON ?= python3
BIN := .venv/bin

.PHONY: test test-gpu test-gpu-first soak demo demo-long bench bench-gpu reproduce install

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n 2 .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal

install: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

# Kills, signals, commands at once, an index beside its reader, thousands of damaged files: under an hour on two cores
soak: install
	$(BIN)/python -m tests.soak

bench: install
	$(BIN)/python -m benchmarks run
	$(BIN)/python -m benchmarks processes
	$(BIN)/python -m benchmarks memory

# With the packages of the machine's own python, for one that has a GPU and no network: first, in minutes, what only a GPU
# can show; then all. Tests run one by one where pytest-xdist is missing.
test-gpu: test-gpu-first
	$(GPU_TESTS)

test-gpu-first:
	$(PYTHON) -m tests.packages
	$(GPU_TESTS) -k "cuda or gpu or kernel"

GPU_TESTS = $(PYTHON) -m pytest -q $(shell $(PYTHON) -c "import xdist" 2>/dev/null && echo "-n 8 --dist worksteal")

bench-gpu:
	$(PYTHON) -m benchmarks run --device cuda
	$(PYTHON) -m benchmarks processes --device cuda

# SOP, the published weights and neighbours, the three published evaluations, and one table of both
reproduce: install
	$(BIN)/python -m benchmarks reproduce

# The real commands on drawn photos, and a page to look at; a step that has ended well is not run again, and a training
# that was interrupted goes on. The best epoch is chosen on classes held out of training. EPOCHS are those of the global,
# the frozen and the finetuned training.
demo: install
	$(BIN)/python prepare_data.py --unobserved demo with val_classes=25
	$(MAKE) --no-print-directory demo-chain RUN=logs/demo SEED=1 DATA=data/demo EPOCHS="8 20 1" VIEWS=8
	$(BIN)/python -m utils.logs logs/demo/1/eval_*
	$(BIN)/python -m report logs/demo/1 --out logs/demo/report.html

demo-long: FROZEN_EPOCHS = 120
demo-long: SEEDS = 1 2 3
demo-long: install
	$(BIN)/python prepare_data.py --unobserved demo with demo_dir=data/demo_long demo_products=1400 val_classes=50
	for seed in $(SEEDS); do $(MAKE) --no-print-directory demo-chain RUN=logs/demo_long SEED=$$seed DATA=data/demo_long \
		EPOCHS="10 $(FROZEN_EPOCHS) 3" VIEWS=24 || exit; done
	$(BIN)/python -m utils.logs logs/demo_long/*/eval_*

# bf16 where the machine computes in it, else fp32; asked once
FASTEST = $(eval FASTEST := $(shell $(BIN)/python -c "from utils.runtime.precision import computes_in_bf16; \
	print('bf16' if computes_in_bf16() else 'fp32')"))$(FASTEST)

OBJECTIVE = joint
FOLDER = $(RUN)/$(SEED)
SETTINGS = seed=$(SEED) model.demo dataset.data_path=$(DATA) precision=$(FASTEST)
GLOBAL = $(FOLDER)/global/resnet18_demo_global.pt
FROZEN = $(FOLDER)/frozen/resnet18_demo_rerank.pt
FINETUNED = $(FOLDER)/finetune/resnet18_demo_rerank.pt
CHOOSE = dataset.val_file=val.txt
CACHE = cache_nn_inds=$(FOLDER)/eval_global/nn_inds.pkl
TRIPLETS = $(CHOOSE) cache_nn_inds=$(FOLDER)/nn_val/nn_inds.pkl dataset.train_cache_nn_inds=$(FOLDER)/nn_train/nn_inds.pkl

# $(call step,folder,command): Sacred's folder is the run's own; a training that was interrupted has left last.pt
step = @test -e $(FOLDER)/$(1)/done || { echo "== $(1)" && $(BIN)/python $(firstword $(2)) -F $(FOLDER)/$(1) with \
	temp_dir=$(FOLDER)/$(1) $(wordlist 2,99,$(2)) $(SETTINGS) \
	$$(test ! -e $(FOLDER)/$(1)/last.pt || echo continue_run=True) && touch $(FOLDER)/$(1)/done; }
tau = 'scheduler_tau=[$(shell expr \( $(1) \* 7 + 5 \) / 10),$(shell expr \( $(1) \* 9 + 5 \) / 10)]' epochs=$(1)

.PHONY: demo-chain
demo-chain:
	$(call step,global,experiment_global.py dataset.demo_global $(CHOOSE) lr=0.05 $(call tau,$(word 1,$(EPOCHS))))
	$(call step,eval_global,eval_global.py dataset.demo_global resume=$(GLOBAL))
	$(call step,nn_train,eval_global.py dataset.demo_global resume=$(GLOBAL) query_set=train)
	$(call step,nn_val,eval_global.py dataset.demo_global resume=$(GLOBAL) dataset.test_file=val.txt)
	$(call step,frozen,experiment_rerank.py dataset.demo_rerank resume=$(GLOBAL) $(TRIPLETS) objective=$(OBJECTIVE) lr=0.0005 \
		model.freeze_backbone=True frozen_views=$(VIEWS) dataset.batch_size=60 $(call tau,$(word 2,$(EPOCHS))))
	$(call step,eval_frozen,eval_rerank.py dataset.demo_rerank resume=$(FROZEN) $(CACHE))
	$(call step,finetune,experiment_rerank.py dataset.demo_rerank resume=$(FROZEN) $(TRIPLETS) objective=$(OBJECTIVE) lr=0.0001 \
		$(call tau,$(word 3,$(EPOCHS))))
	$(call step,eval_finetune,eval_rerank.py dataset.demo_rerank resume=$(FINETUNED) $(CACHE))
