#!/bin/sh
# Whether NATS runs what its configuration says, which somebody may have changed, or changed back, without telling it.
# Runs where NATS does:
#
#   docker compose -p synod exec -T nats sh < deploy/nats/check.sh
#
# Exit code 1 if it runs something else.
set -eu
configuration=$(tr '\0' '\n' < /proc/1/cmdline | sed -n '/^--config$/{n;p;}')
digest() { grep -o 'sha256:[0-9a-f]*'; }
says=$(nats-server -t --config "$configuration" 2>&1 | digest)
runs=$(wget -q -O - http://127.0.0.1:8222/varz | digest)
if test "$says" != "$runs"; then
  echo "NATS does not run what $configuration says: have it read that (kill -s HUP), or start it again"
  exit 1
fi
