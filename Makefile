# make lab    open the curriculum          make test       what must pass before each commit
# make check  ruff and unit tests          make notebooks  re-execute all notebooks, write clean outputs
# make bench  benchmarks                   make constraints  write the pins of what is installed
# make real   the notebooks with real models, whole; resumable, writes data/results/real.json
# make release  everything, with all combinations; takes hours and writes data/results/release.json
BIN := .venv/bin
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.venv/ready: pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit("Python 3.11 or later is needed; python3 is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,more]'
	@touch $@

.PHONY: lab test check notebooks bench real release constraints
lab: .venv/ready
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb --ip=127.0.0.1 $(ROOT_FLAG) $(LAB_OPTIONS)

test: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python tests/notebooks.py with-solutions .build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests helpers .build --nbval-lax --nbval-current-env --nbval-cell-timeout=180 -n 2 --dist loadfile --no-loadscope-reorder --durations=8

check: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests helpers -m "not slow"

notebooks: .venv/ready
	$(BIN)/python tests/notebooks.py execute notebooks/*.ipynb $(wildcard notebooks/more/*.ipynb)

bench: .venv/ready
	for file in tests/bench*.py; do $(BIN)/python $$file || exit 1; done

real: .venv/ready
	$(BIN)/python tests/real.py

release: .venv/ready
	$(BIN)/python tests/release.py

constraints: .venv/ready
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
