-- The role of postgres-exporter, made or brought up to date: it sees statistics, connects to no service's database and
-- changes nothing. The password is in a file, so that it stands in no list of processes.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
\set password `cat /run/secrets/monitor.password`
SELECT 'CREATE ROLE monitor' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'monitor') \gexec
ALTER ROLE monitor LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 5 PASSWORD :'password';
ALTER ROLE monitor SET default_transaction_read_only = on;
GRANT pg_monitor TO monitor;
GRANT CONNECT ON DATABASE postgres TO monitor;
