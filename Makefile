# Every command of the project. `make` alone lists them.

PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
STACK_ROOT ?= build/stack
KAFKA_PORT ?= 9092
CASSANDRA_PORT ?= 9042
FLINK_PORT ?= 8081
FLASK_PORT ?= 8080
KAFKA_CONTROLLER_PORT ?= 0
CASSANDRA_STORAGE_PORT ?= 0
FLINK_RPC_PORT ?= 0
TASK_MANAGERS ?= 0
TASK_MANAGER_MEMORY ?= 1600m
CASSANDRA_HEAP ?= 1536m
KEYSPACE ?= recommender
FROM ?=
SPACE ?=
RATE ?= 50
N ?= 1
YES ?=
ARGS ?=
AT ?=
UNANSWERED ?=
PYTEST_ARGS ?=
EVENTS ?=
CATALOGUE ?=
SPLIT ?=
K ?= 20
UNIT ?= session
SEED ?= 0
PLOT ?= build/evaluation.png

LOCAL = $(PY) -m local --root $(STACK_ROOT) --kafka-port $(KAFKA_PORT) \
	--cassandra-port $(CASSANDRA_PORT) --flink-port $(FLINK_PORT) --flask-port $(FLASK_PORT) \
	--kafka-controller-port $(KAFKA_CONTROLLER_PORT) \
	--cassandra-storage-port $(CASSANDRA_STORAGE_PORT) --flink-rpc-port $(FLINK_RPC_PORT) \
	--task-managers $(TASK_MANAGERS) --task-manager-memory $(TASK_MANAGER_MEMORY) \
	--cassandra-heap $(CASSANDRA_HEAP) --keyspace $(KEYSPACE)

KAFKA_JARS := build/jars/kafka/.done
CASSANDRA_JARS := build/jars/cassandra/.done
FLINK_JARS := build/jars/flink/.done

.DEFAULT_GOAL := help
.PHONY: help env jars java run up down status reset resume scale dead-letters dead-letter replay \
	variants vectors test unit lint format check-alerts audit lock upgrade evaluate bench-pipeline \
	bench-scale bench-catalogue bench-soak bench-lookup bench-search bench-vectors bench-api bench chaos clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) \
		| awk -F ':.*## ' '{printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2}'
	@echo
	@echo "  Variables, with their defaults: KAFKA_PORT=$(KAFKA_PORT) CASSANDRA_PORT=$(CASSANDRA_PORT)" \
		"FLINK_PORT=$(FLINK_PORT) FLASK_PORT=$(FLASK_PORT)"
	@echo "  TASK_MANAGERS=$(TASK_MANAGERS) (0: one a core) TASK_MANAGER_MEMORY=$(TASK_MANAGER_MEMORY)" \
		"CASSANDRA_HEAP=$(CASSANDRA_HEAP) RATE=$(RATE) (demo events/s)"

# --- what everything needs -----------------------------------------------------------------------

env: $(VENV)/.done ## Make the Python environment from requirements.lock

$(VENV)/.done: requirements.lock
	@command -v $(PYTHON) >/dev/null || { \
		echo "python: $(PYTHON) is not found"; \
		echo "  remedy: install Python 3.11, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making the Python environment (a few minutes, once) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
		-r requirements.lock
	@touch $@

java:
	@command -v java >/dev/null || test -n "$$JAVA_HOME" || { \
		echo "java: not found"; \
		echo "  remedy: install a JDK 17 (Debian, Ubuntu: apt-get install openjdk-17-jdk-headless)"; \
		exit 1; }
	@command -v mvn >/dev/null || { \
		echo "mvn: not found"; \
		echo "  remedy: install Maven (Debian, Ubuntu: apt-get install maven)"; exit 1; }

jars: java $(KAFKA_JARS) $(CASSANDRA_JARS) $(FLINK_JARS) ## Fetch the jars of Kafka, Cassandra and the connectors

$(KAFKA_JARS): local/kafka/pom.xml
$(CASSANDRA_JARS): local/cassandra/pom.xml
$(FLINK_JARS): connectors/pom.xml
build/jars/%/.done:
	@echo "fetching the jars of $* ..."
	@rm -rf build/jars/$*
	@mvn -q -B -f $< dependency:copy-dependencies -DincludeScope=runtime \
		-DoutputDirectory=$(CURDIR)/build/jars/$*
	@touch $@

# --- the stack -----------------------------------------------------------------------------------

run: env jars ## Start everything and a demo shop, show live status; Ctrl-C stops it all
	@$(LOCAL) run --rate $(RATE)

up: env jars ## Start everything in the background
	@$(LOCAL) up

down: env ## Stop the job with a savepoint, then everything; data stays
	@$(LOCAL) down

status: env ## Show the status once
	@$(LOCAL) status

reset: env ## Stop everything and delete its data (asks; YES=1 does not)
	@$(LOCAL) reset $(if $(YES),--yes)

resume: env jars ## After a crash: restart what is dead, resume the job from its newest checkpoint
	@$(LOCAL) resume

scale: env jars ## Run the job with N TaskManagers: make scale N=2
	@$(LOCAL) scale $(N)

DEAD_LETTERS = $(PY) -m connectors.dead_letter_tool --bootstrap 127.0.0.1:$(KAFKA_PORT)

dead-letters: env ## List what was refused: make dead-letters ARGS="--since 2h --reason not_json"
	@$(DEAD_LETTERS) list $(ARGS)

dead-letter: env ## Show one dead letter whole: make dead-letter AT=0/17
	@$(DEAD_LETTERS) show $(AT)

replay: env ## Send dead letters back after a fix: make replay ARGS="--reason not_json --dry-run"
	@$(DEAD_LETTERS) replay $(ARGS)

variants: env ## Compare the settings of --variant by what their users did: make variants ARGS="--since 7d"
	@RECOMMENDER_CASSANDRA_PORT=$(CASSANDRA_PORT) RECOMMENDER_CASSANDRA_KEYSPACE=$(KEYSPACE) \
		$(PY) -m connectors.variant_tool $(ARGS)

vectors: env ## Learn related products of a log: make vectors CATALOGUE=file EVENTS=file
	@test -n "$(CATALOGUE)" || { \
		echo "vectors: CATALOGUE (products, .jsonl or .jsonl.gz) and EVENTS (a log) are needed"; \
		echo "  ARGS=--publish-catalogue sends the products too; further ARGS: see" \
			"$(PY) -m job.vectors --help"; exit 2; }
	@$(PY) -m job.vectors --bootstrap 127.0.0.1:$(KAFKA_PORT) --catalogue "$(CATALOGUE)" \
		$(if $(EVENTS),--events "$(EVENTS)") $(ARGS)

announce: env ## Say that all vectors of a space are published: make announce SPACE=name [ARGS=--force]
	@test -n "$(SPACE)" || { echo "announce: SPACE is needed"; exit 2; }
	@RECOMMENDER_KAFKA_BOOTSTRAP=127.0.0.1:$(KAFKA_PORT) \
		$(PY) -m connectors.space_tool announce "$(SPACE)" $(ARGS)

# --- checks --------------------------------------------------------------------------------------

test: env jars ## All tests; the integration tests start their own servers
	@$(PY) -m pytest $(PYTEST_ARGS)

unit: env ## The fast tests, without servers
	@$(PY) -m pytest -m "not integration" $(PYTEST_ARGS)

lint: env ## Check style and types; changes nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy .

# Findings are written to the file; without it the service did not answer, or not for all.
audit: env ## Look for known vulnerabilities in what requirements.lock names (UNANSWERED=ok: or skip it)
	@mkdir -p build && rm -f build/audit.txt
	@$(PY) -m pip_audit --strict --require-hashes --disable-pip -r requirements.lock \
		--output build/audit.txt || { \
		if [ -s build/audit.txt ]; then cat build/audit.txt; exit 1; fi; \
		echo "audit: SKIPPED, nothing is known: no answer of the advisory service (above)"; \
		test "$(UNANSWERED)" = ok; }

format: env ## Format the code and apply safe fixes
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

check-alerts: ## Check the Prometheus configuration and play series against the alert rules
	@command -v promtool >/dev/null || { \
		echo "promtool: not found"; \
		echo "  remedy: apt-get install prometheus, or any Prometheus release"; exit 1; }
	@promtool check config --syntax-only flink-conf/prometheus/prometheus.yml
	@promtool test rules flink-conf/prometheus/alerts_test.yml

UV_COMPILE = $(PY) -m uv pip compile pyproject.toml --quiet --generate-hashes \
	--python-version 3.11 --no-header --no-annotate
# What the image installs: the same versions, without the tools of development.
UV_COMPILE_RUNTIME = $(UV_COMPILE) --constraint requirements.lock \
	--output-file requirements-runtime.lock

lock: env ## Write both locks anew from pyproject.toml, keeping versions where possible
	@$(UV_COMPILE) --all-extras --output-file requirements.lock
	@$(UV_COMPILE_RUNTIME)

upgrade: env ## The same with the newest versions
	@$(UV_COMPILE) --all-extras --output-file requirements.lock --upgrade
	@$(UV_COMPILE_RUNTIME) --upgrade

evaluate: env ## Lists against the log that follows: make evaluate EVENTS=log.jsonl.gz SPLIT=2022-03-01
	@test -n "$(EVENTS)" -a -n "$(SPLIT)" || { \
		echo "evaluate: EVENTS (a log, .jsonl or .jsonl.gz) and SPLIT (an ISO time) are needed"; \
		echo "  also: CATALOGUE=file K=$(K) UNIT=session|user SEED=$(SEED) PLOT=$(PLOT)"; exit 2; }
	@$(PY) -m evaluation --events "$(EVENTS)" --split "$(SPLIT)" --k $(K) --unit $(UNIT) \
		--seed $(SEED) --plot "$(PLOT)" $(if $(CATALOGUE),--catalogue "$(CATALOGUE)")

bench-pipeline: env jars ## Events/s of the whole pipeline, and of the two usual alternatives
	@$(PY) -m benchmarks.pipeline

bench-scale: env jars ## Throughput over users, products and parallelism; memory
	@$(PY) -m benchmarks.scale

bench-catalogue: env jars ## What an event, a checkpoint and a start cost at 10,000 to 1,000,000 products
	@$(PY) -m benchmarks.catalogue $(ARGS)

bench-soak: env jars ## Memory of a TaskManager over an hour of steady load: make bench-soak ARGS="--minutes 60"
	@$(PY) -m benchmarks.soak $(ARGS)

bench-lookup: env ## Nearest-neighbour lookups against faiss, hnswlib and usearch
	@$(PY) -m benchmarks.lookup

bench-search: env ## What one search finds, against TF-IDF and against the vectors alone
	@$(PY) -m benchmarks.search

bench-api: env jars ## Requests/s and times of the HTTP service, beside the bare driver (needs wrk)
	@$(PY) -m benchmarks.api

bench-vectors: env ## What related products find: make bench-vectors CATALOGUE=file EVENTS=log SPLIT=time
	@$(PY) -m benchmarks.vectors $(if $(CATALOGUE),--catalogue "$(CATALOGUE)") \
		$(if $(EVENTS),--events "$(EVENTS)") $(if $(SPLIT),--split $(SPLIT)) $(ARGS)

bench: bench-lookup bench-search bench-pipeline bench-scale bench-catalogue bench-api ## All benchmarks

chaos: env jars ## Kill every server while events flow and products change, then account for all
	@$(PY) -m tests.chaos

clean: ## Delete build results, the jars and the stack's data (run `make down` first)
	@if ls $(STACK_ROOT)/run/*.pid >/dev/null 2>&1; then \
		echo "the stack runs: make down"; exit 1; fi
	@rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis
