# make demo    imagine a walk and leave a video in runs/demo
# make test    the whole suite, after make lint
# make docs    the documentation site, in build/site
# Each installs what it needs into .venv first: the demo the core alone, the others every extra too (make setup).
# To begin afresh: rm -rf .venv

# The first Python of 3.11 or newer that can make virtual environments.
SUITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(firstword $(foreach candidate,python3 python3.11 python3.12 python3.13 python3.14 python,\
	$(shell $(candidate) -c '$(SUITS)' 2>/dev/null && echo $(candidate))))
BIN := .venv/bin
CORE := .venv/core
INSTALLED := .venv/installed
# Modules as they are installed, for the type checker (see [tool.ty] in pyproject.toml).
TYPES := build/types
# Modules are compiled when they are first imported: torch has thousands that nothing here imports.
INSTALL := $(BIN)/python -m pip install --no-compile --constraint constraints.txt

.PHONY: setup browser demo test lint wheel docs clean

setup: $(INSTALLED)

$(CORE): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(SUITS)' || { echo "sanawm-env needs Python 3.11 or newer with its venv" \
		"module: install one, or name it, as in: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) --quiet setuptools
	$(INSTALL) --no-build-isolation --editable .
	touch $@

$(INSTALLED): $(CORE)
	$(INSTALL) --no-build-isolation --editable ".[dev]"
	touch $@

demo: $(CORE)
	$(BIN)/sanawm rollout --image sanawm_env/assets/nano/starts/gallery_10.png --actions "w-48,dw-24,none-24" \
		--world nano --seed 0 --out runs/demo

# The viewer's tests drive Debian's Chromium. Where it cannot be installed they are skipped, and say so.
browser:
	@command -v chromium >/dev/null || { timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 \
		apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || true

test: setup browser lint
	$(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TYPES) && mkdir -p $(TYPES)/sanawm_env
	tar -cf - --exclude assets --exclude __pycache__ sanawm_env | tar -xf - -C $(TYPES)
	cp -R kernels agents $(TYPES)/sanawm_env
	cp -R benchmarks examples $(TYPES)
	@$(BIN)/python -m ty check --python .venv || { echo "These files are copies: mend those outside $(TYPES)." >&2; exit 1; }

# The wheel, installed into an empty environment of every Python of 3.11 to 3.13 that is here.
wheel: setup
	$(BIN)/python -m tests.empty_environment

# The site in build/site: open build/site/index.html. Warnings are errors; nothing is fetched.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf build dist runs/demo sanawm_env.egg-info .pytest_cache .hypothesis .ruff_cache .benchmarks
	find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
