"""A connection of prepared statements: results, errors, notifications, and what ends it, on both event loops."""

import asyncio
import inspect
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
import uvloop
from eventlog.arrays import bigints, byteas, texts, times, uuids
from eventlog.binary import from_int, from_time, to_int, to_time, to_uuid
from eventlog.patience import SILENCE
from eventlog.prepared import PreparedConnection, rows
from lossy_proxy import lossy_proxy

MANY_BYTES = 24 * 1024 * 1024
"""More than any socket takes at once, in either direction."""

ECHO = b"select $1::bigint, $2::text, $3::bytea, $4::timestamptz, $5::uuid"
KEEP = b"insert into kept values ($1::bigint)"
COUNT = b"select count(*) from kept"
SIZE = b"select length($1::bytea), $1::bytea"
SLEEP = b"select pg_sleep($1::bigint)"
PID = b"select pg_backend_pid()"
BEGIN, COMMIT = b"begin", b"commit"


@pytest.fixture
def told() -> list[str]:
    """The notifications that were heard."""
    return []


@pytest.fixture
async def connection(postgres_dsn: str, told: list[str]) -> AsyncIterator[PreparedConnection]:
    with await opened(postgres_dsn, told) as connection:
        yield connection


async def opened(dsn: str, told: list[str]) -> PreparedConnection:
    setup = b"create table kept (number bigint primary key); listen news"
    statements = (ECHO, KEEP, COUNT, SIZE, SLEEP, PID, BEGIN, COMMIT)
    return await PreparedConnection.open(dsn, setup, statements, told.append)


@asynccontextmanager
async def administrator(dsn: str) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def number(connection: PreparedConnection, statement: bytes) -> int:
    ((value,),) = rows(await connection.run(statement))
    return to_int(value)


async def end_backend(dsn: str, pid: int) -> None:
    """As an administrator does; returns when the server has no such process any more."""

    async def gone() -> bool:
        asked = await other.execute("select from pg_stat_activity where pid = %s", [pid])
        return await asked.fetchone() is None

    async with administrator(dsn) as other:
        await other.execute("select pg_terminate_backend(%s)", [pid])
        await until(gone)


async def sleeping(dsn: str, connection: PreparedConnection) -> "asyncio.Task[object]":
    """A statement that runs for a minute, once the server is at it."""

    async def begun() -> bool:
        asked = await other.execute("select from pg_stat_activity where wait_event = 'PgSleep'")
        return await asked.fetchone() is not None

    task: asyncio.Task[object] = asyncio.create_task(connection.run(SLEEP, [from_int(60)]))
    async with administrator(dsn) as other:
        await until(begun)
    return task


async def test_values_come_back_as_they_were_sent(connection: PreparedConnection) -> None:
    moment = datetime(1969, 7, 20, 20, 17, 40, 123457, tzinfo=UTC)
    id = UUID("0192e4a0-0000-7000-8000-00000000000f")
    sent = [from_int(-(2**63)), "größer\n".encode(), b"\0\xff", from_time(moment), id.bytes]
    ((whole, text, data, time, uuid),) = rows(await connection.run(ECHO, sent))
    assert (to_int(whole), text.decode(), data) == (-(2**63), "größer\n", b"\0\xff")
    assert (to_time(time), to_uuid(uuid)) == (moment, id)


async def test_null_and_empty_are_two_things(connection: PreparedConnection) -> None:
    assert list(rows(await connection.run(ECHO, [None, b"", b"", None, None]))) == [(None, b"", b"", None, None)]


async def test_a_value_larger_than_the_socket_takes_at_once_goes_and_comes(connection: PreparedConnection) -> None:
    value = bytes(range(256)) * (MANY_BYTES // 256)
    ((size, back),) = rows(await connection.run(SIZE, [value]))
    assert to_int(size) == MANY_BYTES
    assert back == value


async def test_it_tells_how_many_rows_a_statement_touched(connection: PreparedConnection) -> None:
    assert (await connection.run(KEEP, [from_int(1)])).command_tuples == 1


async def test_an_error_is_the_one_that_psycopg_raises_and_the_connection_goes_on(
    connection: PreparedConnection,
) -> None:
    await connection.run(KEEP, [from_int(1)])
    with pytest.raises(psycopg.errors.UniqueViolation, match="kept_pkey") as refused:
        await connection.run(KEEP, [from_int(1)])
    assert (refused.value.sqlstate, refused.value.diag.constraint_name) == ("23505", "kept_pkey")
    assert await number(connection, COUNT) == 1


async def test_several_statements_are_one_transaction(connection: PreparedConnection) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        await connection.run_all((KEEP, [from_int(1)]), (KEEP, [from_int(2)]), (KEEP, [from_int(1)]))
    assert await number(connection, COUNT) == 0
    *_, counted = await connection.run_all((KEEP, [from_int(1)]), (KEEP, [from_int(2)]), (COUNT, ()))
    assert [to_int(value) for (value,) in rows(counted)] == [2]


async def test_a_transaction_lasts_until_it_is_committed(postgres_dsn: str, connection: PreparedConnection) -> None:
    async with administrator(postgres_dsn) as other:
        seen = []
        for steps in ((BEGIN, ()), (KEEP, [from_int(1)])), ((COMMIT, ()),):
            await connection.run_all(*steps)
            seen.append(await (await other.execute("select count(*) from kept")).fetchone())
    assert seen == [(0,), (1,)]


async def test_a_statement_that_cannot_be_prepared_is_told_at_the_open(postgres_dsn: str) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
        await PreparedConnection.open(postgres_dsn, b"", [b"select * from nowhere"])


async def test_an_exchange_that_could_not_be_sent_whole_ends_the_connection(connection: PreparedConnection) -> None:
    with pytest.raises(KeyError):
        await connection.run_all((KEEP, [from_int(1)]), (b"never prepared", ()))
    assert connection.ended


async def test_one_exchange_at_a_time(postgres_dsn: str, connection: PreparedConnection) -> None:
    first = await sleeping(postgres_dsn, connection)
    with pytest.raises(psycopg.InterfaceError, match="another statement"):
        await connection.run(COUNT)
    first.cancel()
    assert await asyncio.gather(first, return_exceptions=True) != [None]


async def test_who_is_cancelled_leaves_no_result_to_the_next(postgres_dsn: str, connection: PreparedConnection) -> None:
    given_up = await sleeping(postgres_dsn, connection)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert connection.ended
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await connection.run(COUNT)


async def test_a_close_tells_who_waits(postgres_dsn: str, connection: PreparedConnection) -> None:
    waiting = await sleeping(postgres_dsn, connection)
    connection.close()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await waiting


async def test_a_server_that_ends_a_statement_says_why(postgres_dsn: str, connection: PreparedConnection) -> None:
    pid = await number(connection, PID)
    running = await sleeping(postgres_dsn, connection)
    await end_backend(postgres_dsn, pid)
    with pytest.raises(psycopg.errors.AdminShutdown):
        await running
    with pytest.raises(psycopg.OperationalError):
        await connection.run(COUNT)


async def test_a_server_that_ended_an_idle_connection_said_why(
    postgres_dsn: str, connection: PreparedConnection
) -> None:
    async def known() -> bool:
        return connection.ended

    await end_backend(postgres_dsn, await number(connection, PID))
    await until(known)
    with pytest.raises(psycopg.errors.AdminShutdown, match="administrator"):
        await connection.run(COUNT)


async def test_what_is_sent_to_a_server_that_has_just_hung_up_is_not_waited_for(
    postgres_dsn: str, connection: PreparedConnection
) -> None:
    """It is answered by a reset, of which uvloop tells nothing; the server's last words were there before."""
    pid = await number(connection, PID)
    # Nothing here lets the loop hear of it before the statement is sent, as when the whole process was stopped.
    with psycopg.connect(postgres_dsn, autocommit=True) as administrator:
        administrator.execute("select pg_terminate_backend(%s, 10_000)", (pid,))
    hung_up, _, _ = select.select([connection._socket], [], [], 30)
    assert hung_up

    with pytest.raises(psycopg.errors.AdminShutdown, match="administrator"):
        async with asyncio.timeout(10):
            await connection.run(COUNT)
    assert connection.ended


async def test_a_connection_that_breaks_without_a_word_is_lost(postgres_dsn: str) -> None:
    async with lossy_proxy(postgres_dsn) as proxy:
        with await PreparedConnection.open(proxy.dsn, b"", [PID, SLEEP]) as connection:
            running = await sleeping(postgres_dsn, connection)
            await proxy.stop()
            with pytest.raises(psycopg.OperationalError, match="server closed the connection"):
                await running
            with pytest.raises(psycopg.OperationalError):
                await connection.run(PID)


@pytest.mark.timeout(20)  # libpq can be asked for ever what more there is on a connection that it gave up
@pytest.mark.parametrize("garbled", [b"no protocol at all", b"D\xff\xff\xff\xff", b"T\x7f\xff\xff\xff"])
async def test_a_server_that_is_not_understood_is_lost(postgres_dsn: str, garbled: bytes) -> None:
    async with lossy_proxy(postgres_dsn) as proxy:
        with await PreparedConnection.open(proxy.dsn, b"", [PID]) as connection:
            proxy.garble = garbled
            with pytest.raises(psycopg.OperationalError):  # what became of the statement is not known
                await connection.run(PID)
            assert connection.ended


@pytest.mark.timeout(20)
async def test_a_server_that_is_not_understood_is_lost_at_once_while_nothing_runs(postgres_dsn: str) -> None:
    async def known() -> bool:
        return connection.ended

    async with lossy_proxy(postgres_dsn) as proxy, administrator(postgres_dsn) as other:
        with await PreparedConnection.open(proxy.dsn, b"listen news", [PID]) as connection:
            proxy.garble = b"D\xff\xff\xff\xff"
            await other.execute("notify news")
            await until(known)


@pytest.mark.timeout(20)
async def test_a_statement_that_copies_is_refused(postgres_dsn: str) -> None:
    copy = b"copy (select 1) to stdout"
    with await PreparedConnection.open(postgres_dsn, b"", [copy]) as connection:
        with pytest.raises(psycopg.NotSupportedError, match="copy"):
            await connection.run(copy)
        assert connection.ended


async def test_what_is_found_wrong_only_at_the_commit_is_told(postgres_dsn: str) -> None:
    setup = b"create table kept (number bigint unique deferrable initially deferred)"
    with await PreparedConnection.open(postgres_dsn, setup, [KEEP, COUNT]) as connection:
        with pytest.raises(psycopg.errors.UniqueViolation):
            await connection.run_all((KEEP, [from_int(1)]), (KEEP, [from_int(1)]))
        assert await number(connection, COUNT) == 0


async def test_its_socket_is_told_so(connection: PreparedConnection) -> None:
    with socket.socket(fileno=os.dup(connection._socket)) as wire:
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE["tcp_user_timeout"]


async def test_notifications_are_heard_while_nothing_runs(
    postgres_dsn: str, connection: PreparedConnection, told: list[str]
) -> None:
    async def heard() -> bool:
        return told == ["one", "two"]

    async with administrator(postgres_dsn) as other:
        await other.execute("notify news, 'one'")
        await other.execute("set client_min_messages = debug; notify news, 'two'")
    await until(heard)
    assert await number(connection, COUNT) == 0


async def test_its_own_notification_is_heard_with_the_result(postgres_dsn: str, told: list[str]) -> None:
    notify = b"select pg_notify('news', 'mine')"
    with await PreparedConnection.open(postgres_dsn, b"listen news", [notify], told.append) as connection:
        await connection.run(notify)
        assert told == ["mine"]


async def test_arrays_arrive_as_they_were_packed(postgres_dsn: str) -> None:
    moments = [datetime(2026, 11, 22, tzinfo=UTC), datetime(1, 1, 1, tzinfo=UTC)]
    ids = [UUID(int=7), None]
    statement = (
        b"select $1::bigint[] = '{-1,9223372036854775807}', $2::text[] = array['a', null, ''],"
        b" $3::bytea[] = array['\\x00'::bytea, null], $4::uuid[] = array['00000000-0000-0000-0000-000000000007', null]::uuid[],"
        b" $5::timestamptz[] = array['2026-11-22Z', '0001-01-01Z']::timestamptz[], $6::text[] = '{}'"
    )
    packed = [bigints([-1, 2**63 - 1]), texts(["a", None, ""]), byteas([b"\0", None]), uuids(ids), times(moments)]
    with await PreparedConnection.open(postgres_dsn, b"", [statement]) as connection:
        assert list(rows(await connection.run(statement, [*packed, texts([])]))) == [(b"\1",) * 6]


@pytest.mark.parametrize(
    "behaviour",
    [
        test_values_come_back_as_they_were_sent,
        test_a_value_larger_than_the_socket_takes_at_once_goes_and_comes,
        test_an_error_is_the_one_that_psycopg_raises_and_the_connection_goes_on,
        test_who_is_cancelled_leaves_no_result_to_the_next,
        test_a_server_that_ended_an_idle_connection_said_why,
        test_what_is_sent_to_a_server_that_has_just_hung_up_is_not_waited_for,
        test_notifications_are_heard_while_nothing_runs,
    ],
)
def test_it_is_the_same_on_the_loop_that_services_run_on(
    postgres_dsn: str, behaviour: Callable[..., Awaitable[None]]
) -> None:
    async def on_this_loop() -> None:
        told: list[str] = []
        with await opened(postgres_dsn, told) as connection:
            given = {"postgres_dsn": postgres_dsn, "connection": connection, "told": told}
            await behaviour(**{name: given[name] for name in inspect.signature(behaviour).parameters})

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(on_this_loop())
