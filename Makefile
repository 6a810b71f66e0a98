# `make book` and `make test` are all that a fresh machine with Python >= 3.10 and make needs. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PROFILE ?= default
JOBS ?= 2
ARGS ?=
NB ?=
TRAINED ?= book/_build/trained
GPUS ?= 1
PORT ?= 8000
BASE_PYTHON ?= python3

# PYTHON= names a ready environment (say, one made from environment.yml); without it .venv is made from the lock.
ifdef PYTHON
PY := "$(PYTHON)"
ENVIRONMENT :=
else
PY := .venv/bin/python
ENVIRONMENT := .venv/installed
endif

# One thread a process: the notebooks and the tests run side by side.
export OMP_NUM_THREADS ?= 1
export PYTHONPATH := $(CURDIR):$(CURDIR)/notebooks$(if $(PYTHONPATH),:$(PYTHONPATH))

RUN := $(PY) notebooks/run.py

.PHONY: help book pdf archive test run record verify expected status serve lab picture bench lint clean executed \
  train-fashion-mnist train-classifier train-cifar10 cifar10 cifar10-edm ffhq imagenet64 imagenet512 rehearse leaderboard bench-gpu

help:  ## list the targets
	@echo "Targets (variables: NB, PROFILE=smoke|default|recorded|paper, ARGS, PYTHON, JOBS, GPUS, PORT):"
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	  while IFS='|' read -r name text; do printf '%-26s %s\n' "$$name" "$$text"; done

book: executed  ## run the notebooks that are out of date and build the book (book/_build/html)
	@$(RUN) html
	@echo "The book is at book/_build/html/index.html; make serve shows it."

pdf: $(ENVIRONMENT)  ## print the built book as one pdf: book/_build/entropic.pdf (wants chromium; two minutes)
	@$(PY) notebooks/pdf.py

archive: $(ENVIRONMENT)  ## pack sources at HEAD, built book, pdf, results and sums into a zip for a DOI, after make book pdf
	@$(PY) notebooks/archive.py

# notebooks/run.py alone decides what is out of date, by content: a touch or a git checkout runs nothing.
executed: $(ENVIRONMENT)
	@$(RUN) run changed --profile "$(PROFILE)" --jobs $(JOBS)

test: $(ENVIRONMENT)  ## every test: mathematics, notebooks in the smoke profile, the book in a browser
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

run: $(ENVIRONMENT)  ## run one notebook into the book: make run NB=one_dimension ARGS="-p seed 1" (ARGS=--help lists its parameters)
	@test -n "$(NB)" || { echo 'NB= is missing: make run NB=name, make status lists them'; exit 2; }
	@$(RUN) run "$(NB)" --profile "$(PROFILE)" $(ARGS)

record: $(ENVIRONMENT)  ## run one notebook in the profile "recorded", keep its data in book/results
	@test -n "$(NB)" || { echo 'NB= is missing: make record NB=name, make status lists them'; exit 2; }
	@$(RUN) record "$(NB)" $(ARGS)

# Training goes on where it was stopped; all cores, or torchrun by hand for several GPUs (see README).
train-fashion-mnist: $(ENVIRONMENT)  ## train the Fashion-MNIST network (half an hour on two free cores)
	$(PY) -m entropic.images.train fashion-mnist --out "$(TRAINED)/fashion-mnist" $(ARGS)

train-classifier: $(ENVIRONMENT)  ## train the classifier whose features measure Fashion-MNIST images (two minutes)
	$(PY) -m entropic.images.networks.classifier --out "$(TRAINED)/fashion-classifier.safetensors" $(ARGS)

train-cifar10: $(ENVIRONMENT)  ## train the CIFAR-10 network (sized for half an hour on one H100-class GPU; not run here)
	$(PY) -m entropic.images.train cifar10 --out "$(TRAINED)/cifar10" $(ARGS)

cifar10: $(ENVIRONMENT)  ## the schedules' table for the CIFAR-10 network, with FID (needs a GPU and train-cifar10; not run here)
	@$(RUN) record image_schedules --as cifar10 -p dataset cifar10 -p weights "$(TRAINED)/cifar10/weights.safetensors" \
	  -p images 10000 -p chunk 256 -p extractors '[efficientnet-lite0, inception-v3-compat]' -p store cifar10

# Published networks: torchrun fills the store, on as many GPUs as GPUS says; the page is then made of it alone and recorded.
define published
$(PY) -m torch.distributed.run --standalone --nproc-per-node=$(GPUS) -m studies.published $(subst -,_,$@) $(ARGS)
@$(RUN) record paper_tables --as $(subst -,_,$@) -p experiment $(subst -,_,$@) $(ARGS)
endef

cifar10-edm: $(ENVIRONMENT)  ## table 3 with EDM's network: weights, a GPU, hours (see the page of the paper's tables; not run here)
	$(published)

ffhq: $(ENVIRONMENT)  ## table 1 with EDM's network, likewise (not run here)
	$(published)

imagenet64: $(ENVIRONMENT)  ## table 4 with EDM2's networks, likewise (not run here)
	$(published)

imagenet512: $(ENVIRONMENT)  ## tables 2, 5 and 6 with EDM2's networks, likewise (not run here)
	$(published)

rehearse: $(ENVIRONMENT)  ## the whole path of a published network on tiny random ones: tries this machine, in two minutes
	@$(PY) -m studies.published.rehearsal $(ARGS)

leaderboard: $(ENVIRONMENT)  ## every schedule on every work that book/results lacks; all takes more than a day of one core; goes on where it stopped
	$(PY) -m studies.leaderboard $(ARGS)
	@$(RUN) record leaderboard

bench-gpu: $(ENVIRONMENT)  ## images a second, memory and share of a GPU's peak, kept for the page of the paper's tables (not run here)
	$(PY) -m tests.bench_gpu $(ARGS)

verify: $(ENVIRONMENT)  ## recompute the default profile elsewhere and compare all figures' data with book/expected; the costly checks
	@rm -rf book/_build/verify
	@$(RUN) run all --profile default --jobs $(JOBS) --book book/_build/verify
	@$(RUN) compare book/_build/verify/_build/results
	$(PY) -m pytest -m verify $(ARGS)

expected: $(ENVIRONMENT)  ## make the book's present results the expected ones (book/expected, codecheck.yml)
	@$(RUN) expected

picture: $(ENVIRONMENT)  ## make the picture of README anew, by the lines that stand there (book/samples.png)
	cd book && $(if $(PYTHON),$(PY),"$(CURDIR)/.venv/bin/python") -m studies.examples ../README.md --only 1

status: $(ENVIRONMENT)  ## which notebooks are ok, stale or failed, and when each ran
	@$(RUN) status

serve: $(ENVIRONMENT)  ## serve the built book on 127.0.0.1:PORT
	@$(RUN) serve --port "$(PORT)"

lab: $(ENVIRONMENT)  ## open JupyterLab on the notebooks, with this environment (installs JupyterLab into .venv at first)
	@$(PY) -c 'import jupyterlab' 2>/dev/null || \
	  { test -z "$(PYTHON)" || { echo 'JupyterLab is not in that environment: $(PY) -m pip install jupyterlab'; exit 2; }; \
	    echo "Installing JupyterLab into .venv"; $(PIP) -c requirements.lock -e '.[lab]'; }
	@JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab --notebook-dir=notebooks $(ARGS)

bench: $(ENVIRONMENT)  ## print ratios of times: this code against commit 56449b1, and exact laws against Monte Carlo (NB=name: a whole notebook, too)
	$(PY) tests/bench.py $(NB)

lint: $(ENVIRONMENT)  ## ruff: style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:  ## remove what was built (the environment stays)
	rm -rf book/_build book/notebooks notebooks/results build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# --- the environment ---------------------------------------------------------------------------------------
# Without a GPU, torch is first looked for where its wheel has no CUDA: 4 GB less. Where that fails, the lock decides.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Python compiles what it imports when it does; to compile all of torch here takes a minute more.
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
.venv/installed: requirements.lock requirements-no-deps.lock pyproject.toml
	@$(BASE_PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || \
	  { echo 'Python 3.10 to 3.13 is needed; name one: make BASE_PYTHON=python3.12 ...'; exit 2; }
	@echo "Making .venv from requirements.lock (a few minutes, once)"
	@$(BASE_PYTHON) -m venv .venv
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
	  grep -E '^(torch|torchvision)==' requirements.lock > .venv/torch.txt; \
	  $(PIP) --no-deps --retries 0 --timeout 15 --index-url $(TORCH_INDEX) -r .venv/torch.txt 2>/dev/null || true; fi
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps -r requirements-no-deps.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@# A notebook that is run by hand, in any folder, finds what the notebooks share.
	@.venv/bin/python -c 'import pathlib, sys, sysconfig; \
	  pathlib.Path(sysconfig.get_path("purelib"), "entropic-notebooks.pth").write_text(sys.argv[1] + "\n")' "$(CURDIR)/notebooks"
	@touch $@
