# The tasks of development; `make` lists them. CI runs .ci/run, which does the same from nothing.
BIN ?= .venv/bin

.PHONY: postgresql help install format lint types test slow peers page browser operations ray site figures docs constraints demo

help:           ## list the tasks
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 14

install:        ## make .venv and install for development
	python3 -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[dev]"

format:         ## format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint:           ## lint, and check the formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:          ## check the types
	$(BIN)/mypy -p interlatent_live
	$(BIN)/mypy tests .ci

test:           ## run the default tests
	$(BIN)/pytest -n auto --dist loadfile

slow:           ## run the slow tests and those that inject faults
	$(BIN)/pytest -m "slow or chaos"

peers:          ## test files against other tools' own packages, in an environment made for them
	$(BIN)/python tests/peers/environment.py
	$(BIN)/pytest -m peers tests/peers

page:           ## build the console's page (needs node); commit dist with the sources
	cd interlatent_live/console/page && npm ci && npm run check && npm run build

browser:        ## look at the page with a real Chromium
	$(BIN)/pytest -m browser

operations:     ## check what operators deploy, with Prometheus, linters and schemas
	$(BIN)/pip install -c constraints.txt -e ".[operations,rerun,site]"
	$(BIN)/pytest -m operations

postgresql:     ## test the store on a PostgreSQL server of its own (needs Debian's postgresql)
	$(BIN)/pip install -c constraints.txt -e ".[dev,postgres]"
	.ci/with_postgres $(BIN)/pytest tests/store

ray:            ## test shards on a Ray cluster of several nodes, one of which dies
	$(BIN)/pip install -c constraints.txt -e ".[ray]"
	$(BIN)/pytest -m ray

figures:        ## refresh the figures in the documents from committed reports
	$(BIN)/python .ci/figures.py

docs:           ## refresh docs/cli.md, docs/faults.md and the dashboard
	$(BIN)/python .ci/cli_docs.py
	$(BIN)/python .ci/faults_docs.py
	$(BIN)/python .ci/dashboard.py

site:           ## build the documentation as a site
	$(BIN)/pip install -c constraints.txt -e ".[site]"
	$(BIN)/mkdocs build

constraints:    ## pin what is installed, after the tests have passed
	$(BIN)/python .ci/constraints.py

demo:           ## watch a trained agent being explained
	$(BIN)/interlatent-live demo
