#!/bin/sh
# Prints a copy of all databases as of one instant, as a tar file, while they are in use. Runs where PostgreSQL's own programs
# are, so give it to a shell there:
#
#   docker compose -p synod exec -T postgres sh < deploy/postgres/backup.sh > synod.tar
#
# PGHOST, PGUSER and PGPASSWORD say where and as whom; without them it is the superuser by the socket.
#
# What is written meanwhile comes at the end of the copy, out of files that a busy server would have removed by then. A slot
# keeps them; being temporary it goes with the session that made it, however that ends, and fills no disk afterwards.
set -eu

export PGHOST="${PGHOST:-/var/run/postgresql}" PGUSER="${PGUSER:-postgres}"
export PGPASSWORD="${PGPASSWORD:-$(cat /run/secrets/postgres.password)}"
psql --quiet --no-psqlrc --output=/dev/null --set=ON_ERROR_STOP=1 --dbname=postgres <<'SQL'
SELECT pg_create_physical_replication_slot('backup_' || pg_backend_pid(), immediately_reserve => true, temporary => true);
\! pg_basebackup --checkpoint=fast --wal-method=fetch --format=tar --pgdata=-
\if :SHELL_ERROR
DO $$ BEGIN RAISE 'pg_basebackup failed: what it printed is no backup'; END $$;
\endif
SQL
