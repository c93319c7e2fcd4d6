"""pytest plugin: real PostgreSQL and NATS for tests.

| fixture | scope | gives |
|---|---|---|
| `postgres_server` | session | RunningPostgres: `dsn()`, `fresh_database()`, `stop()`, `start()`, `kill()` |
| `postgres_dsn` | test | the address of an empty database of its own, whose owner is no superuser; dropped afterwards |
| `nats_server` | session | RunningNats: `url`, `stop()`, `start()` (on the same port and streams), `kill()` |
| `nats_url` | session | the address of `nats_server`; tests share it, so each names its own streams and subjects |
| `fresh_nats` | test | a RunningNats of its own, for tests that stop it or count what is in it |

A server starts when the first test asks for it. Every worker of pytest-xdist has its own. When pytest ends, by whatever
death, the kernel ends the servers and the warden removes their directories.

A test that ran out of time shows what each of its asyncio tasks waits for: the stack of the thread shows the loop only.
"""

import asyncio
import gc
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from secrets import token_hex

import psycopg
import pytest
from psycopg import sql
from servicekit.tls import TlsFiles

from launcher import nats, processes
from launcher.errors import PortInUse, StartFailed
from launcher.layout import MODELS_OFFSET, Layout
from launcher.nats import EmbeddedNats
from launcher.ports import check_ports
from launcher.postgres import VOLATILE, EmbeddedPostgres, new_password
from launcher.processes import PORT_MIN, Warden, ephemeral_port_min, free_port

OWNER = "tester"
PORT_ATTEMPTS_MAX = 5
WARDEN_GRACE_S = 5.0


@dataclass(slots=True)
class RunningPostgres:
    """A server that is running unless a test stopped it."""

    cluster: EmbeddedPostgres
    warden: Warden
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    owner_password: str = field(default_factory=new_password, init=False, repr=False)

    def start(self) -> None:
        """Starts it; on the next free port if another program took the port meanwhile."""
        for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
            try:
                self.process = self.cluster.start()
                break
            except StartFailed as error:
                if "ddress already in use" not in error.problem or attempt == PORT_ATTEMPTS_MAX:
                    raise
                self.cluster = replace(self.cluster, port=free_port())
        assert self.process is not None
        self.warden.watch_group(self.process.pid)

    def stop(self) -> None:
        """Stops it at once; committed data stays."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kills it as a crash would."""
        self._end(signal.SIGKILL)

    def dsn(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """The address of a database, as superuser unless another user is named."""
        return self.cluster.dsn(database, user, password)

    def add_owner(self) -> None:
        """Creates the role that owns the tests' databases: no superuser, as in production."""
        self._administer(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(OWNER), sql.Literal(self.owner_password))
        )

    @contextmanager
    def fresh_database(self) -> Iterator[str]:
        """The address of a new empty database, dropped at the end even if someone is still connected."""
        name = f"test_{token_hex(16)}"
        database = sql.Identifier(name)
        self._administer(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, sql.Identifier(OWNER)))
        try:
            yield self.dsn(name, OWNER, self.owner_password)
        finally:
            if self.process is None:
                self.start()
            self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(database))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            processes.stop(self.process, how, WARDEN_GRACE_S)
            self.warden.release_group(self.process.pid)
            self.process = None


@dataclass(slots=True)
class RunningNats:
    """A server that is running unless a test stopped it."""

    server: EmbeddedNats
    warden: Warden
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """The address for clients, the same after a restart."""
        return nats.url(self.server.port)

    def start(self) -> None:
        """Starts it; a second start keeps the port and the streams."""
        self.process = self.server.start()
        self.warden.watch_group(self.process.pid)
        port = self.server.bound_port(self.process.pid)
        assert port is not None
        self.server = replace(self.server, port=port)

    def stop(self) -> None:
        """Stops it cleanly."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kills it as a crash would."""
        self._end(signal.SIGKILL)

    def reload(self) -> None:
        """Has it read its configuration and certificates again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            processes.stop(self.process, how, WARDEN_GRACE_S)
            self.warden.release_group(self.process.pid)
            self.process = None


def free_port_base(step: int = 20) -> int:
    """A base for a whole system, a multiple of `step`, whose ports are free now and never given to who asks for any."""
    while True:
        base = SystemRandom().randrange(PORT_MIN, ephemeral_port_min() - MODELS_OFFSET, step)
        try:
            check_ports(base, Layout(Path(), base, simulator=True).ports())
        except PortInUse:
            continue
        return base


@contextmanager
def running_postgres(directory: Path, warden: Warden) -> Iterator[RunningPostgres]:
    """A server with an empty cluster in `directory`, stopped at the end."""
    cluster = EmbeddedPostgres(directory, free_port(), new_password(), VOLATILE, durable=False)
    server = RunningPostgres(cluster, warden)
    server.start()
    try:
        server.add_owner()
        yield server
    finally:
        server._end(signal.SIGQUIT)


@contextmanager
def running_nats(directory: Path, warden: Warden, tls: TlsFiles | None = None) -> Iterator[RunningNats]:
    """A server without streams in `directory`, stopped at the end."""
    server = RunningNats(EmbeddedNats(directory, name="synod-test", tls=tls), warden)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def pytest_exception_interact(call: pytest.CallInfo[object], report: pytest.TestReport | pytest.CollectReport) -> None:
    if call.excinfo is not None and "from pytest-timeout" in str(call.excinfo.value):
        tasks = [found for found in gc.get_objects() if isinstance(found, asyncio.Task) and not found.done()]
        report.sections.append(("asyncio tasks", "\n".join(map(_what_it_awaits, tasks))))


def _what_it_awaits(task: asyncio.Task[object]) -> str:
    """Where a task stands, from its coroutine down to what it waits for."""
    lines: list[str] = [f"{task.get_name()}:"]
    awaited: object = task.get_coro()
    while frame := getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None):
        lines.append(f"  {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    return "\n".join(lines)


@pytest.fixture(scope="session")
def launcher_warden() -> Iterator[Warden]:
    """The warden of this pytest process."""
    warden = Warden(WARDEN_GRACE_S)
    yield warden
    warden.close()


@pytest.fixture(scope="session")
def launcher_directory(launcher_warden: Warden) -> Iterator[Path]:
    """A temporary directory that goes with the session."""
    directory = Path(tempfile.mkdtemp(prefix="synod-test-"))
    launcher_warden.watch_directory(directory)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server(launcher_directory: Path, launcher_warden: Warden) -> Iterator[RunningPostgres]:
    """PostgreSQL of this session, started by the first test that asks."""
    with running_postgres(launcher_directory / "postgres", launcher_warden) as server:
        yield server


@pytest.fixture
def postgres_dsn(postgres_server: RunningPostgres) -> Iterator[str]:
    """The address of an empty database that only this test uses."""
    with postgres_server.fresh_database() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def nats_server(launcher_directory: Path, launcher_warden: Warden) -> Iterator[RunningNats]:
    """NATS with JetStream of this session, started by the first test that asks."""
    with running_nats(launcher_directory / "nats", launcher_warden) as server:
        yield server


@pytest.fixture(scope="session")
def nats_url(nats_server: RunningNats) -> str:
    """The address of the session's NATS."""
    return nats_server.url


@pytest.fixture
def fresh_nats(launcher_directory: Path, launcher_warden: Warden) -> Iterator[RunningNats]:
    """NATS with JetStream that only this test uses."""
    directory = launcher_directory / f"nats-{token_hex(16)}"
    with running_nats(directory, launcher_warden) as server:
        yield server
    shutil.rmtree(directory, ignore_errors=True)
