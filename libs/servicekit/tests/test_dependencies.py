"""A dependency that goes away degrades the service, and it recovers by itself."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from eventlog.patience import postgres_address
from google.protobuf.wrappers_pb2 import StringValue
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pydantic import BaseModel
from servicekit.dependencies import POSTGRES_ERRORS, nats_address, open_pool, watch_postgres
from servicekit.errors import Unavailable, from_rpc_error
from servicekit.health import Health
from servicekit.host import Host
from servicekit.settings import Limits, ServiceSettings
from servicekit.telemetry import Metrics
from servicekit.testing import serve_in_process, settings_for

KINDS = ("Unary", "Download", "Upload", "Chat", "WatchWords")


class Settings(ServiceSettings):
    service: str = "ledger"


class Note(BaseModel):
    text: str


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - health is asked, as a probe would
            await asyncio.sleep(0.01)


async def test_a_service_outlives_a_restart_of_nats_and_loses_no_command(postgres_dsn: str, fresh_nats: Any) -> None:
    noted: list[str] = []

    async def note(command: Note) -> None:
        noted.append(command.text)

    async def compose(host: Host[Settings]) -> None:
        host.add_command("note", note, Note)

    async with serve_in_process(compose, settings_for(Settings, postgres_dsn, fresh_nats.url)) as service:
        health, queue = service.host.health, service.host.queue
        await queue.send("ledger", "note", Note(text="before"), tenant="local")
        fresh_nats.stop()
        await until(lambda: "nats" in health.problems)
        problem = health.problems["nats"]
        fresh_nats.start()
        await until(lambda: "nats" not in health.problems)
        await queue.send("ledger", "note", Note(text="after"), tenant="local")
        await until(lambda: {"before", "after"} <= set(noted))
    assert problem == f"the connection to NATS at {nats_address(fresh_nats.url)} is lost; reconnecting"
    assert set(noted) == {"before", "after"}


async def test_a_database_that_does_not_answer_degrades_health_until_it_does(postgres_dsn: str) -> None:
    metrics = Metrics()
    health = Health(metrics.ready, metrics.problem, phase="ready", ready=True)
    pool = AsyncConnectionPool(postgres_dsn, min_size=1, open=False)
    check = watch_postgres(pool, health, "127.0.0.1:7132/ledger")
    await check()
    closed = health.problems
    async with pool:
        await check()
        opened = health.problems
    assert "PostgreSQL at 127.0.0.1:7132/ledger does not answer" in closed["postgres"]
    assert opened == {}


async def test_a_connection_that_the_server_closed_is_replaced_before_it_is_used(postgres_dsn: str) -> None:
    async with open_pool(settings_for(Settings, postgres_dsn, "nats://127.0.0.1:1")) as pool:
        async with pool.connection() as connection:
            closed = connection.info.backend_pid
        async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as administrator:
            await administrator.execute("select pg_terminate_backend(%s, 30000)", [closed])
        async with pool.connection() as connection:
            (answer,) = await (await connection.execute("select 1")).fetchone() or (0,)
            assert connection.info.backend_pid != closed
    assert answer == 1


async def test_a_living_connection_is_used_without_asking_it_first(postgres_dsn: str) -> None:
    last = "select query from pg_stat_activity where pid = %s"
    one = Limits(postgres_connections_max=1)
    async with open_pool(settings_for(Settings, postgres_dsn, "nats://127.0.0.1:1", limits=one)) as pool:
        async with pool.connection() as connection:
            used = connection.info.backend_pid
            await connection.execute("select 'mine'")
        async with (
            pool.connection() as connection,
            await psycopg.AsyncConnection.connect(postgres_dsn) as onlooker,
        ):
            assert connection.info.backend_pid == used
            assert await (await onlooker.execute(last, [used])).fetchone() == ("COMMIT",)


class Asker:
    """Asks the database whatever it is told to."""

    def __init__(self, host: Host[Settings]) -> None:
        self._host = host

    async def Unary(self, request: StringValue, context: Any) -> StringValue:
        async with self._host.pool.connection() as connection:
            (answer,) = await (await connection.execute(request.value)).fetchone() or ("",)
        return StringValue(value=str(answer))

    Download = Upload = WatchWords = Chat = Unary


async def test_a_call_that_meets_a_frozen_database_is_told_so_and_the_service_recovers(
    postgres_dsn: str, nats_url: str, echo_stub: Any, add_echo: Any
) -> None:
    async def compose(host: Host[Settings]) -> None:
        host.add_rpc(add_echo, Asker(host), dict.fromkeys(KINDS, "ask"))

    limits = Limits(postgres_answer_s=0.3, postgres_connections_max=1)
    async with serve_in_process(compose, settings_for(Settings, postgres_dsn, nats_url, limits=limits)) as service:
        ask = echo_stub(service.channel).Unary
        pid = int((await ask(StringValue(value="select pg_backend_pid()"))).value)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(StringValue(value="select 1"))
            replaced = await ask(StringValue(value="select 2"))
        finally:
            os.kill(pid, signal.SIGCONT)
        with pytest.raises(grpc.aio.AioRpcError) as at_fault:
            await ask(StringValue(value="select lower(no_such_column)"))
    unavailable = from_rpc_error(refused.value)
    assert (type(unavailable), unavailable.reason) == (Unavailable, "POSTGRES_UNAVAILABLE")
    assert f"PostgreSQL at {postgres_address(postgres_dsn)} has not answered for 0.3 s" in unavailable.message
    assert replaced.value == "2"
    assert at_fault.value.code() is grpc.StatusCode.INTERNAL


def test_what_postgresql_refuses_about_a_statement_is_a_defect_and_no_reason_to_repeat() -> None:
    assert POSTGRES_ERRORS.translate(psycopg.errors.ProgramLimitExceeded("index row too large")) is None
    away = POSTGRES_ERRORS.translate(PoolTimeout("couldn't get a connection after 30.00 sec"))
    assert away is not None
    assert away.retryable
    assert "PostgreSQL cannot be reached: couldn't get a connection" in away.message


def test_an_address_for_people_has_no_password() -> None:
    assert nats_address("nats://u:secret@broker") == "broker:4222"


async def test_a_view_takes_text_with_nul_by_its_symbol_alone_and_in_arrays(postgres_dsn: str) -> None:
    async with (
        open_pool(settings_for(Settings, postgres_dsn, "nats://127.0.0.1:1")) as pool,
        pool.connection() as connection,
    ):
        await connection.execute("create temporary table said (words text, list text[])")
        await connection.execute("insert into said values (%s, %s)", ["a\0b", ["c\0", "d"]])
        found = await (await connection.execute("select words, list from said where words = %s", ["a\0b"])).fetchone()
    assert found == ("a\u2400b", ["c\u2400", "d"])
