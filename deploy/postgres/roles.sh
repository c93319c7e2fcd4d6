#!/bin/sh
# A role and a database for each line "role password" of the secret postgres.roles; no role can connect to another's
# database. Run again it makes what is missing and sets the passwords. PGHOST, PGUSER and PGPASSWORD say where and as whom;
# without them it is the superuser by the socket, as the image of PostgreSQL runs this on an empty cluster.
set -eu

secret=${ROLES_FILE:-/run/secrets/postgres.roles}
host=${PGHOST:-/var/run/postgresql} superuser=${PGUSER:-${POSTGRES_USER:-postgres}}
run() { psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --host "$host" --username "$superuser" --dbname postgres "$@"; }

run <<'SQL'
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
SQL
while read -r role password; do
  # The password goes by the environment: an argument would stand in the list of processes.
  ROLE_PASSWORD=$password run --set role="$role" <<'SQL'
\getenv password ROLE_PASSWORD
SELECT format('CREATE ROLE %I', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'role', :'role')
  WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'role') \gexec
REVOKE ALL ON DATABASE :"role" FROM PUBLIC;
SQL
done < "$secret"
