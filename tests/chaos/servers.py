"""PostgreSQL and NATS of the harness: killed and started again on the same data and port."""

import asyncio
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar

import nats
import psycopg
from launcher.errors import StartFailed
from launcher.nats import EmbeddedNats, url
from launcher.postgres import EmbeddedPostgres
from launcher.processes import Warden, stop
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier, Literal
from synod.common.subjects import event_stream

from .disk import SmallDisk

TABLESPACE = "small"
START_DEADLINE_S = 60.0
STOP_GRACE_S = 10.0
RETRY_S = 0.02
CONNECT_TIMEOUT_S = 5

Result = TypeVar("Result")


@dataclass
class Servers:
    """Both servers, with the defaults that users get: what is acknowledged was flushed to disk.

    A server dies with the thread that started it, so all of that is done on one thread that stays.
    """

    postgres: EmbeddedPostgres
    nats: EmbeddedNats
    warden: Warden
    disk: SmallDisk | None
    files: Path
    """Where logs may keep files."""

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="servers")
        self._postgres_process: subprocess.Popen[bytes] | None = None
        self._nats_process: subprocess.Popen[bytes] | None = None

    @property
    def nats_url(self) -> str:
        return url(self.nats.port)

    async def start(self) -> None:
        await self.start_postgres()
        await self.start_nats()
        if self.disk is not None:
            place = self.disk.path / "tablespace"
            place.mkdir(mode=0o700)
            await self.administer(
                SQL("create tablespace {} location {}").format(Identifier(TABLESPACE), Literal(str(place)))
            )

    async def stop(self) -> None:
        await self._on_thread(lambda: self._end(self._postgres_process, signal.SIGINT))
        await self._on_thread(lambda: self._end(self._nats_process, signal.SIGTERM))
        self._thread.shutdown()

    async def start_postgres(self) -> None:
        self._postgres_process = await self._on_thread(self._start_postgres)

    async def kill_postmaster(self) -> None:
        """The parent of all backends alone: they notice by themselves."""
        await self._on_thread(lambda: self._end(self._postgres_process, signal.SIGKILL))

    async def start_nats(self) -> None:
        process = await self._on_thread(self.nats.start)
        self._nats_process = process
        self.warden.watch_group(process.pid)
        port = self.nats.bound_port(process.pid)
        assert port is not None
        self.nats = replace(self.nats, port=port)

    async def kill_nats(self) -> None:
        await self._on_thread(lambda: self._end(self._nats_process, signal.SIGKILL))

    def cut_stream(self, service: str) -> None:
        """Lose the end of the stream's file, as a crash of the machine does between two flushes. The server is down."""
        messages = self.nats.directory / "jetstream" / "$G" / "streams" / event_stream(service) / "msgs"
        newest = max(messages.glob("*.blk"), key=lambda block: int(block.stem))
        with newest.open("r+b") as block:
            block.truncate(newest.stat().st_size * 2 // 3)
        (messages / "index.db").unlink(missing_ok=True)

    async def delete_stream(self, service: str) -> None:
        client = await nats.connect(self.nats_url)
        await client.jetstream().delete_stream(event_stream(service))
        await client.close()

    async def create_database(self, name: str) -> str:
        """The address of a new database, on the small disk if there is one."""
        statement = SQL("create database {}").format(Identifier(name))
        if self.disk is not None:
            statement += SQL(" tablespace {}").format(Identifier(TABLESPACE))
        await self.administer(statement)
        return make_conninfo(self.postgres.dsn(), dbname=name)

    async def drop_database(self, name: str) -> None:
        await self.administer(SQL("drop database {} with (force)").format(Identifier(name)))

    async def administer(self, statement: Any, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of one statement, by the superuser."""
        async with await psycopg.AsyncConnection.connect(
            self.postgres.dsn(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
        ) as connection:
            cursor = await connection.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description else []

    async def backends(self, application: str, condition: str = "true") -> list[int]:
        """Process ids of the backends that serve a process of the crew."""
        rows = await self.administer(
            f"select pid from pg_stat_activity where application_name = %s and {condition} order by pid", [application]
        )
        return [pid for (pid,) in rows]

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        """Start it, as soon as the last backend of a killed postmaster is gone."""
        deadline = monotonic() + START_DEADLINE_S
        while True:
            try:
                process = self.postgres.start()
            except StartFailed:
                if monotonic() > deadline:
                    raise
                sleep(RETRY_S)
            else:
                self.warden.watch_group(process.pid)
                return process

    def _end(self, process: subprocess.Popen[bytes] | None, how: signal.Signals) -> None:
        if process is not None:
            stop(process, how, STOP_GRACE_S)
            self.warden.release_group(process.pid)

    async def _on_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
