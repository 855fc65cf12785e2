# The README shows every step as a plain command; make only runs them in order.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# --quiet twice: show only errors, no warnings of the package index.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

.PHONY: help demo report test tiny clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than Python 3.10; name another, as in make PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV): a minute on a CPU; with the CUDA packages some GB, once."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -r requirements.txt ruff pexpect pytest-xdist nbclient nbformat ipykernel -c constraints.txt
	@touch $@

# A tenth of an epoch on the standard library is enough for dev perplexity to fall.
demo: export HF_HUB_OFFLINE = 1
demo: $(INSTALLED) ## fine-tune the embedded model on Python's own library and complete code with it
	@echo "1. Cut Python's own library into windows of tokens, a tenth of its files for dev."
	$(BIN)/python dataset/convert.py --source stdlib --tokenizer tiny --dataset_name stdlib --stride 254
	@echo; echo "2. Measure the embedded model on dev files, before any fine-tuning."
	$(BIN)/python evaluate.py --model_path tiny --dataset_name stdlib --dev_windows 200
	@echo; echo "3. Fine-tune it."
	$(BIN)/python train.py --model_select tiny --dataset_name stdlib --run_name demo --overwrite \
		--max_steps 100 --per_gpu_train_batch_size 8 --lr 5e-4 --fim_rate 0.5 --evaluation_steps 50 --dev_windows 128
	@echo; echo "4. Measure it again, on the same windows: perplexity and bits per byte should be lower."
	$(BIN)/python evaluate.py --model_path model/demo --dataset_name stdlib --dev_windows 200
	@echo; echo "5. Complete a function with it; then fill in the code between a prefix and a suffix."
	$(BIN)/python interact.py --model_path model/demo --temperature 0 --prompt 'def __init__(self, name):'
	$(BIN)/python interact.py --model_path model/demo --temperature 0 --prompt "if isinstance(value, " --suffix "):"
	@echo; echo "6. Draw its curves."
	$(BIN)/python analysis.py runs model/demo
	@echo
	@echo "Complete code of your own:     $(BIN)/python interact.py --model_path model/demo"
	@echo "Adapt a model to your project: $(BIN)/python adapt.py ~/my_project"
	@echo "Choose a larger model:         README.md, \"Which base model?\""

# The lab report's comparison, for instance: make report RECIPES="report-1 report-3" MODEL=tiny SCALE=small
RECIPES ?= report-1 report-2 report-3 report-4 reference
MODEL ?= distilgpt2
SCALE ?= full
# For each scale: which files of TheAlgorithms it uses, the stride, and the flags for evaluation.
SOURCE_full := dataset/Python
SOURCE_tenth := $(addprefix dataset/Python/,graphs sorts)
SOURCE_small := $(addprefix dataset/Python/,sorts)
STRIDE_small := --stride 40
EVALUATION_tenth := --dev_windows 512
EVALUATION_small := --evaluation_steps 50
REPORT_DATA := report_$(notdir $(MODEL))_$(SCALE)
REPORT_RUNS = $(foreach recipe,$(RECIPES),$(recipe)-$(notdir $(MODEL))-$(SCALE))

report: dataset/$(REPORT_DATA)/json/meta.json ## the lab report's runs, table and charts (RECIPES= MODEL= SCALE=full|tenth|small)
	@for recipe in $(RECIPES); do \
		echo "--- $$recipe"; \
		$(BIN)/python train.py --recipe $$recipe --model_select $(MODEL) --dataset_name $(REPORT_DATA) $(EVALUATION_$(SCALE)) \
			--run_name $$recipe-$(notdir $(MODEL))-$(SCALE) --restore_training $(FLAGS) || exit; \
	done
	$(BIN)/python analysis.py runs $(addprefix model/,$(REPORT_RUNS)) --report --output model/$(REPORT_DATA)

dataset/Python:
	git clone --depth 1 https://github.com/TheAlgorithms/Python $@

dataset/$(REPORT_DATA)/json/meta.json: $(INSTALLED) | dataset/Python
	$(if $(SOURCE_$(SCALE)),,$(error SCALE=$(SCALE): choose small, tenth or full))
	$(BIN)/python dataset/convert.py --source $(SOURCE_$(SCALE)) --tokenizer $(MODEL) --split_by segment \
		--dataset_name $(REPORT_DATA) $(STRIDE_$(SCALE))

test: export HF_HUB_OFFLINE = 1
test: export CUDA_VISIBLE_DEVICES =
test: $(INSTALLED) ## check format and style, run all tests (no GPU, no network)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

corpus/installed: pretrained/corpus.txt $(INSTALLED)
	rm -rf corpus
	$(PIP) --no-deps --no-compile --target corpus -r pretrained/corpus.txt
	find corpus -type d '(' -name tests -o -name test ')' -prune -exec rm -r {} +
	touch $@

save_tiny = $(BIN)/python -c "import torch; from model import GPTSingleHead; \
	GPTSingleHead.load('model/$(1)').to(torch.bfloat16).save('pretrained/tiny')"

tiny: corpus/installed ## train pretrained/tiny again from nothing (0.7 GB of packages; hours without a GPU)
	$(BIN)/python dataset/vocabulary.py --source corpus --vocab_size 8189 --output pretrained/tiny
	$(BIN)/python dataset/convert.py --source corpus --tokenizer tiny --dataset_name base_corpus \
		--segment_len 510 --stride 510 --split_by folder --dev_size 0.003
	$(BIN)/python train.py --model_select tiny --from_scratch --dataset_name base_corpus --run_name tiny_base \
		--max_seq_length 512 --per_gpu_train_batch_size 8 --max_steps 4600 --lr 2e-3 --scheduler warmupcosine \
		--warmup_ratio 0.03 --weight_decay 0.1 --evaluation_steps 400 --precision bf16 --compile on
	$(call save_tiny,tiny_base)
	$(BIN)/python train.py --model_select tiny --dataset_name base_corpus --run_name tiny_more \
		--max_seq_length 512 --per_gpu_train_batch_size 8 --max_steps 1400 --lr 1e-3 --warmup_ratio 0.03 --weight_decay 0.1 \
		--evaluation_steps 200 --dev_windows 100
	$(call save_tiny,tiny_more)
	$(BIN)/python train.py --model_select tiny --dataset_name base_corpus --run_name tiny_fim --fim_rate 0.5 --seed 2 \
		--max_seq_length 512 --per_gpu_train_batch_size 8 --max_steps 2000 --lr 1e-3 --warmup_ratio 0.03 --weight_decay 0.1 \
		--evaluation_steps 200 --dev_windows 100
	$(call save_tiny,tiny_fim)

clean: ## delete the environment and caches; data sets and trained models stay
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
