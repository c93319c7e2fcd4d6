"""A server that is frozen but whose kernel answers: what is asked of it ends in time, and what was frozen is not used again."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import psycopg
import pytest
from eventlog.errors import LogUnavailable
from eventlog.limits import Limits
from eventlog.patience import (
    CONNECT_TIMEOUT_S,
    ImpatientConnection,
    NoAnswer,
    impatient,
    postgres_address,
    unhurried,
)
from eventlog.postgres import PostgresEventLog
from eventlog.prepared import PreparedConnection
from eventlog.records import NO_STREAM, Append, Context, NewEvent, StreamId
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

LIMIT_S = 0.2
NOTHING, NAP = b"select", b"select pg_sleep(0.3)"
SAID = "PostgreSQL at 127.0.0.1:.* has not answered for 0.2 s"


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """The processes stand still; what is sent to them is acknowledged, and waits."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def backends(dsn: str, application: str) -> list[int]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as onlooker:
        asked = await onlooker.execute("select pid from pg_stat_activity where application_name = %s", [application])
        return [pid for (pid,) in await asked.fetchall()]


@asynccontextmanager
async def opened_pool(dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    options = {"answer_timeout_s": LIMIT_S}
    async with AsyncConnectionPool(
        dsn, connection_class=ImpatientConnection, kwargs=options, min_size=1, open=False
    ) as pool:
        yield pool


def appended(number: int) -> Append:
    event = NewEvent("Noted", 1, b"{}", uuid4(), datetime(2026, 1, 1, tzinfo=UTC))
    return Append(StreamId("note", f"n{number}"), NO_STREAM, (event,), Context(tenant="local", actor="test"))


async def test_a_statement_that_is_not_answered_ends_with_its_connection(postgres_dsn: str) -> None:
    connection = await ImpatientConnection.connect(postgres_dsn, answer_timeout_s=LIMIT_S)
    with frozen(connection.info.backend_pid), pytest.raises(NoAnswer, match=SAID) as told:
        await connection.execute("select 1")
    assert connection.closed
    assert told.value.sqlstate is None


async def test_a_pool_replaces_a_connection_that_did_not_answer_while_it_still_does_not(postgres_dsn: str) -> None:
    async with opened_pool(postgres_dsn) as pool:
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
        with frozen(pid):
            with pytest.raises(NoAnswer):
                async with pool.connection() as connection, connection.transaction():
                    await connection.execute("select 1")
            async with pool.connection() as connection:
                assert await (await connection.execute("select pg_backend_pid()")).fetchone() != (pid,)


async def test_what_may_take_long_is_waited_for_and_what_comes_after_it_is_not(postgres_dsn: str) -> None:
    async with await ImpatientConnection.connect(postgres_dsn, answer_timeout_s=LIMIT_S) as connection:
        with unhurried(connection):
            await connection.execute(NAP)
        with pytest.raises(NoAnswer):
            await connection.execute(NAP)


async def test_a_connection_of_others_is_as_patient_as_they_made_it(postgres_dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(postgres_dsn) as connection:
        with unhurried(connection):
            assert await (await connection.execute("select 1")).fetchone() == (1,)


async def test_nobody_waits_minutes_for_a_connection(postgres_dsn: str) -> None:
    async with await ImpatientConnection.connect(postgres_dsn, connect_timeout=300) as connection:
        assert connection.info.get_parameters()["connect_timeout"] == str(CONNECT_TIMEOUT_S)


async def test_an_exchange_that_is_not_answered_ends_its_prepared_connection(postgres_dsn: str) -> None:
    with await PreparedConnection.open(postgres_dsn, b"", [NOTHING], answer_timeout_s=LIMIT_S) as connection:
        with frozen(connection._pgconn.backend_pid), pytest.raises(NoAnswer, match=SAID):
            await connection.run(NOTHING)
        assert connection.ended


async def test_the_limit_is_of_each_exchange_not_of_many_that_follow_each_other(postgres_dsn: str) -> None:
    clock = asyncio.get_running_loop().time
    with await PreparedConnection.open(postgres_dsn, b"", [NOTHING], answer_timeout_s=LIMIT_S) as connection:
        until = clock() + 2.5 * LIMIT_S
        while clock() < until:
            await connection.run(NOTHING)
        assert not connection.ended


async def test_a_log_whose_backends_freeze_commits_by_another_and_tells_readers(postgres_dsn: str) -> None:
    dsn = make_conninfo(postgres_dsn, application_name="freezing")
    async with await PostgresEventLog.open(dsn, limits=Limits(answer_timeout_s=LIMIT_S)) as log:
        await log.append(appended(1))
        with frozen(*await backends(postgres_dsn, "freezing")):
            second = await log.append(appended(2))
            with pytest.raises(LogUnavailable, match=SAID):
                await log.read()
            read = await log.read()
    assert (second.position, second.duplicate) == (2, False)
    assert [event.position for event in read] == [1, 2]


async def test_a_server_stops_a_statement_that_nobody_waits_for_any_more(postgres_dsn: str) -> None:
    async with await PostgresEventLog.open(postgres_dsn) as log, log._readers.connection() as connection:
        asked = await connection.execute("show client_connection_check_interval")
        assert await asked.fetchone() == ("5s",)


def test_a_server_that_is_gone_without_a_word_is_given_up_unless_the_dsn_is_more_patient() -> None:
    assert conninfo_to_dict(impatient("host=db tcp_user_timeout=90000")) == {
        "host": "db",
        "tcp_user_timeout": "90000",
        "keepalives_idle": "10",
        "keepalives_interval": "5",
        "keepalives_count": "4",
    }


def test_an_address_for_people_has_no_password() -> None:
    assert postgres_address("postgresql://u:secret@db:5433/ledger") == "db:5433/ledger"
