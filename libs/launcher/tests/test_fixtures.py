"""The servers that the pytest plugin gives to every test."""

import nats
import psycopg
import pytest
from launcher.testing import RunningNats, RunningPostgres


def test_a_test_gets_an_empty_database_of_postgresql_18(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.info.server_version // 10000 == 18
        tables = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert tables == (0,)


def test_the_owner_of_a_test_database_creates_schemas_but_is_no_superuser(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("CREATE SCHEMA eventlog CREATE TABLE head (position bigint)")
        role = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone()
    assert role == (False,)


def test_a_database_is_dropped_though_someone_is_still_connected(postgres_server: RunningPostgres) -> None:
    with postgres_server.fresh_database() as dsn:
        lingering = psycopg.connect(dsn)
    name = lingering.info.dbname
    lingering.close()

    with psycopg.connect(postgres_server.dsn()) as connection:
        assert connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None


def test_a_wrong_password_is_refused(postgres_server: RunningPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres_server.dsn(password="wrong"))


async def test_nats_keeps_a_stream_over_a_crash_on_the_same_port(fresh_nats: RunningNats) -> None:
    url = fresh_nats.url
    client = await nats.connect(url)
    await client.jetstream().add_stream(name="KEPT", subjects=["kept.>"])
    await client.jetstream().publish("kept.one", b"1")
    await client.close()

    fresh_nats.kill()
    fresh_nats.start()

    assert fresh_nats.url == url
    client = await nats.connect(url)
    stream = await client.jetstream().stream_info("KEPT")
    await client.close()
    assert stream.state.messages == 1


def test_committed_data_survives_a_crash_of_the_server(postgres_server: RunningPostgres) -> None:
    with postgres_server.fresh_database() as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept (value int)")

        postgres_server.kill()
        postgres_server.start()

        with psycopg.connect(dsn) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


async def test_nats_of_the_session_has_jetstream(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    account = await client.jetstream().account_info()
    await client.close()
    assert account.limits.max_storage != 0
