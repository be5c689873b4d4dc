# make report   the main job on the embedded default: two sources, twelve runs, one page
# make test     the tests                make lint     ruff and mypy
# make shapes   the tests of influence/ once more, with the shapes in its annotations enforced
# make bench    times and errors beside captum, pyDVL, dattri, kronfluence and TRAK; SIZES=full: an hour or two, 16 GiB;
#               ARGS="--missing --threads 1": go on where it stopped, on a busy machine
# make bench-quality   the scores of the same tools held against retraining, on networks that ship in benchmarks/truth: an hour;
#               ARGS=--rebuild-truth: train them and their ground truth anew first, another hour
# Each makes .venv first when it is not there, with the tested versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
INPUTS := pyproject.toml setup.py constraints.txt
JOBS ?= 2
SIZES ?= quick

.PHONY: report test shapes lint bench bench-quality clean

report: .venv/installed
	$(BIN)/upweight compare --out upweight-out

test: .venv/installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q

shapes: .venv/installed-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -q tests/influence \
		--jaxtyping-packages=upweight.influence,shapes.enforced

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# through a link called upweight: mypy takes a package's name from its folder, and a clone's folder can be called anything;
	@# not in .venv, where nothing is checked that no other module imports
	mkdir -p .mypy_cache/types && ln -sfn ../.. .mypy_cache/types/upweight
	MYPYPATH=.mypy_cache/types $(BIN)/mypy -m upweight.cli -m upweight.__main__ $(foreach p,influence models cache reports,-p upweight.$(p))

.venv/installed: $(INPUTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: $(INPUTS) .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,captum]'
	touch $@

bench: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.run --sizes $(SIZES) $(ARGS)

bench-quality: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.quality.run $(ARGS)

# the other tools see the packages of .venv, so that torch is installed once; their pins exclude each other, hence --no-deps
.venv-bench/installed: benchmarks/requirements.txt benchmarks/needs.txt .venv/installed
	$(PYTHON) -m venv .venv-bench
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> "$$(.venv-bench/bin/python -c 'import site; print(site.getsitepackages()[0])')/parent.pth"
	.venv-bench/bin/pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	.venv-bench/bin/pip install --quiet --constraint constraints.txt --requirement benchmarks/needs.txt
	touch $@

clean:
	rm -rf .venv .venv-bench build dist upweight.egg-info upweight-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
