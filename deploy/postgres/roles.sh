#!/bin/sh
# Runs once, on an empty cluster: a role and a database for each line "role password" of the secret postgres.roles.
# No role can connect to another's database.
set -eu

run() { psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --host /var/run/postgresql --username "${POSTGRES_USER:-postgres}" --dbname postgres "$@"; }

run <<'SQL'
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
SQL
while read -r role password; do
  # The password goes by the environment: an argument would stand in the list of processes.
  ROLE_PASSWORD=$password run --set role="$role" <<'SQL'
\getenv password ROLE_PASSWORD
CREATE ROLE :"role" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
REVOKE ALL ON DATABASE :"role" FROM PUBLIC;
SQL
done < /run/secrets/postgres.roles
