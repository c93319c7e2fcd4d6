#!/bin/sh
# Replaces the running containers of services by such as compose.yaml and the images now say, with no failed call:
# each time a new one is started and waited for until it is healthy, then an old one is told to stop.
#
#   COMPOSE="docker compose --project-name synod" deploy/compose/roll.sh llm-gateway agent-runtime
#
# A new one that does not become healthy is removed and ends this, while the old ones go on. The edges of ws-gateway
# and llm-gateway need a second port each for the time of it: SYNOD_EDGE_PORT=8080-8081 SYNOD_MODELS_PORT=8082-8083.
set -eu
: "${COMPOSE:?set it to the command of Compose with the project, as the one above}"
READY_S=180
STOP_S=30

containers() { $COMPOSE ps -q "$1" | sort; }

# What is in the second list of words and not in the first.
added() { for each in $2; do case " $(echo $1) " in *" $each "*) ;; *) echo "$each" ;; esac; done; }

health() { docker inspect --format '{{.State.Health.Status}}' "$1"; }

await_health() {
  for _ in $(seq "$READY_S"); do
    case $(health "$1") in healthy) return 0 ;; unhealthy) return 1 ;; esac
    sleep 1
  done
  return 1
}

start_one_more() {
  before=$(containers "$1")
  count=$(echo "$before" | wc -w)
  $COMPOSE up --detach --no-deps --no-recreate --scale "$1=$((count + 1))" "$1"
  new=$(added "$before" "$(containers "$1")")
}

for service in "$@"; do
  old=$(containers "$service")
  test -n "$old" || { echo "roll: $service has no container" >&2; exit 1; }
  for container in $old; do
    start_one_more "$service"
    if ! await_health "$new"; then
      docker logs --tail 20 "$new" >&2
      docker rm --force "$new" >/dev/null
      echo "roll: the new $service did not become healthy and is removed; $container goes on" >&2
      exit 1
    fi
    docker stop -t "$STOP_S" "$container" >/dev/null
    docker rm "$container" >/dev/null
    echo "roll: $service: $(echo "$new" | cut -c1-12) for $(echo "$container" | cut -c1-12)"
  done
done
