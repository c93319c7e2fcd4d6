# Forwards every recipe to make, which owns them. `just --list` shows them, `just test` runs one.

# Write the JSON Schemas, golden files and the AsyncAPI document of the events
asyncapi *args:
    @make asyncapi {{args}}

# Run the benchmarks (ONLY=name, SIZE=small|full); tables here, JSON in build/bench
bench *args:
    @make bench {{args}}

# Install LiteLLM and LangGraph into build/bench/peers, for the benchmarks to measure beside us
bench-peers *args:
    @make bench-peers {{args}}

# Kill and break the event log (KILLS=1000 SEED= SECONDS=1800 TARGET=eventlog|all) and check it
chaos *args:
    @make chaos {{args}}

# Remove what the recipes made
clean *args:
    @make clean {{args}}

# Report where NATS in the containers has other accounts, users, permissions, streams or consumers than planned
compose-check *args:
    @make compose-check {{args}}

# Run the example team on the containers and prove what it did
compose-demo *args:
    @make compose-demo {{args}}

# Stop the containers and keep their data (VOLUMES=1 deletes it)
compose-down *args:
    @make compose-down {{args}}

# Replace the containers of ONLY="service ..." by those of new images, one after the other, with no failed call
compose-roll *args:
    @make compose-roll {{args}}

# Make the keys and passwords of the containers in deploy/compose/secrets
compose-secrets *args:
    @make compose-secrets {{args}}

# Print the size of each running container's image, how soon it served, and its memory
compose-figures *args:
    @make compose-figures {{args}}

# Make the certificates of the containers, and renew those that are due, while they run
compose-tls *args:
    @make compose-tls {{args}}

# Start everything in containers, OBSERVE=1 with dashboards, DEV=1 with ports; the edge is at http://127.0.0.1:8080
compose-up *args:
    @make compose-up {{args}}

# Run the example team on real input and prove what it did
demo *args:
    @make demo {{args}}

# Build the containers, start them and try to break them (needs a container engine; minutes)
e2e *args:
    @make e2e {{args}}

# Format the code and apply safe fixes
format *args:
    @make format {{args}}

# List the recipes
help *args:
    @make help {{args}}

# Build the image of every service (REVISION=... labels them)
images *args:
    @make images {{args}}

# Compare what the tests check of deploy/kubernetes with what kubectl makes of it
kubernetes-lint *args:
    @make kubernetes-lint {{args}}

# Check style and formatting
lint *args:
    @make lint {{args}}

# Resolve requirements.lock anew, for development and for each service
lock *args:
    @make lock {{args}}

# Write deploy/nats/nats.conf from the permissions in libs/launcher
nats-conf *args:
    @make nats-conf {{args}}

# Fetch the wheel that has the second source of prices (41 MB, by hash)
second-source *args:
    @make second-source {{args}}

# Hold the price book against the prices that LiteLLM ships
compare-prices *args:
    @make compare-prices {{args}}

# Export every model and price of genai-prices to build/model-scout/prices.csv
prices *args:
    @make prices {{args}}

# Get promtool into build/promtool, for the tests of the alerts (Debian or Ubuntu; elsewhere put it on PATH)
promtool *args:
    @make promtool {{args}}

# Generate the gRPC code from proto/
proto *args:
    @make proto {{args}}

# Lint proto/ and refuse what breaks clients of the released contracts, with buf
proto-lint *args:
    @make proto-lint {{args}}

# Make the contracts as they are what clients may rely on, for proto-lint to hold them to
proto-release *args:
    @make proto-release {{args}}

# Install everything into .venv (done by the other recipes when needed)
setup *args:
    @make setup {{args}}

# Load the whole system steadily and tell whether memory grows (SECONDS=600 RATE=20)
soak *args:
    @make soak {{args}}

# Run all tests but those in containers
test *args:
    @make test {{args}}

# Check types strictly
types *args:
    @make types {{args}}

# Start the whole system on this machine (Ctrl-C stops it)
up *args:
    @make up {{args}}
