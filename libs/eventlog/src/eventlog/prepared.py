"""A connection for the few statements that are run for every group, call or poll: prepared once, at the price of the wire.

psycopg connects, speaks TLS and knows the errors; from then on this drives its libpq connection (psycopg.pq) itself. A
cursor of psycopg is made for any statement and any value: it looks at each parameter's type, keeps count of what is worth
preparing, and enters and leaves the event loop's selector for each wait. That is three times the work of the exchange
itself. Here the statements are known when the connection is opened, parameters come in PostgreSQL's binary format
(binary.py, arrays.py), results leave in it, and one reader stays on the loop for as long as the connection lives, which
also hears at once of notifications and of a server that goes away.

The connection is always in libpq's pipeline mode: several statements are one round trip.
https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.errors import Diagnostic, error_from_result, lookup
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGresult

from eventlog.patience import ANSWER_TIMEOUT_S, ImpatientConnection, NoAnswer, postgres_address

Parameters = Sequence[bytes | None]
"""Values in binary format, in the order of $1, $2, ...; None is null."""

_SYNCED: Final = ExecStatus.PIPELINE_SYNC
_FAILED: Final = ExecStatus.FATAL_ERROR
_COPYING: Final = (ExecStatus.COPY_IN, ExecStatus.COPY_OUT, ExecStatus.COPY_BOTH)
_BAD: Final = ConnStatus.BAD
_ENDS_THE_CONNECTION: Final = ("FATAL", "PANIC")
_CRASHED: Final = "57P02"


def _unheard(_payload: str) -> None:
    """Notifications that nobody asked for."""


class PreparedConnection:
    """Runs prepared statements, one exchange at a time. Belongs to one event loop.

    Each exchange is a transaction of its own unless its statements say otherwise. Errors are psycopg's. An exchange whose
    outcome is not known, because its caller was cancelled, the server went away or did not answer in time, ends the
    connection.
    """

    def __init__(
        self,
        connection: AsyncConnection[Any],
        heard: Callable[[str], None],
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """Takes over a connection that is idle and outside a transaction; `open` is the way to get one."""
        self._connection = connection  # holds the handlers of notices
        self._pgconn = connection.pgconn
        self._socket = connection.pgconn.socket
        self._heard = heard
        self._answer_timeout_s = answer_timeout_s
        self._asked_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._names: dict[bytes, bytes] = {}
        self._results: list[PGresult] = []
        self._answer: asyncio.Future[list[PGresult]] | None = None
        self._flushing = False
        self._farewell: psycopg.Error | None = None
        self._lost: psycopg.Error | None = None
        connection.add_notice_handler(self._noticed)
        self._pgconn.enter_pipeline_mode()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._readable)

    @classmethod
    async def open(
        cls,
        dsn: str,
        setup: bytes,
        statements: Iterable[bytes],
        heard: Callable[[str], None] = _unheard,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> PreparedConnection:
        """Connect, run `setup` (any number of statements without parameters), and prepare what is to be run.

        `heard` is told the payload of each notification that the setup listened for. It may come at any time, before the
        result of a statement that is running too. An exchange that is not answered within `answer_timeout_s` raises
        NoAnswer. Raises psycopg.Error.
        """
        connection = await ImpatientConnection.connect(dsn, autocommit=True)
        try:
            await connection.execute(setup)
        except BaseException:
            await connection.close()
            raise
        opened = cls(connection, heard, answer_timeout_s)
        await opened.prepare(*statements)
        return opened

    def __enter__(self) -> PreparedConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def ended(self) -> bool:
        """Whether it was closed, or is known to be lost: it hears so at once, also while nothing runs."""
        return self._lost is not None

    def close(self) -> None:
        """Leave at once. Who waits for a result is told so by psycopg.OperationalError."""
        self._lose(psycopg.OperationalError("the connection is closed"))

    async def run(self, statement: bytes, parameters: Parameters = ()) -> PGresult:
        """The result, in binary format, of a statement that was prepared. Raises psycopg.Error."""
        return (await self.run_all((statement, parameters)))[0]

    async def run_all(self, *steps: tuple[bytes, Parameters]) -> list[PGresult]:
        """The results of several statements: one round trip. They are one transaction, unless they begin or commit one.

        The first that fails is raised as psycopg.Error; those after it were not run.
        """
        answer = self._begin()
        try:
            for statement, parameters in steps:
                formats = [Format.BINARY] * len(parameters)
                self._pgconn.send_query_prepared(self._names[statement], parameters, formats, Format.BINARY)
            self._send()
            return _succeeded(await answer)
        finally:
            self._end(answer)

    async def prepare(self, *statements: bytes) -> None:
        """Prepare those of the statements that are not: one round trip. Raises psycopg.Error, and is closed then."""
        new = [statement for statement in statements if statement not in self._names]
        if not new:
            return
        answer = self._begin()
        try:
            for statement in new:
                self._names[statement] = b"s%d" % len(self._names)
                self._pgconn.send_prepare(self._names[statement], statement)
            self._send()
            _succeeded(await answer)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> asyncio.Future[list[PGresult]]:
        if self._lost is not None:
            raise self._lost
        if self._answer is not None:
            raise psycopg.InterfaceError("another statement is running on this connection")
        self._answer = self._loop.create_future()
        self._results = []
        self._asked_at = self._loop.time()
        if self._watch is None:
            self._watch = self._loop.call_later(self._answer_timeout_s, self._look)
        return self._answer

    def _look(self) -> None:
        """One timer for many exchanges: it looks when the one could be late that ran when it was set."""
        self._watch = None
        if self._answer is None:
            return
        late_in_s = self._asked_at + self._answer_timeout_s - self._loop.time()
        if late_in_s > 0:
            self._watch = self._loop.call_later(late_in_s, self._look)
        else:
            self._lose(NoAnswer(postgres_address(self._connection.info.dsn), self._answer_timeout_s))

    def _end(self, answer: asyncio.Future[list[PGresult]]) -> None:
        """What the server still does for an exchange that was given up, and still answers, is nobody's next result."""
        if answer.cancel() or answer.cancelled():
            self.close()

    def _send(self) -> None:
        self._pgconn.pipeline_sync()
        if self._pgconn.flush() and not self._flushing:
            self._flushing = True  # what the socket does not take at once goes when it can
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        try:
            if self._pgconn.flush():
                return
        except psycopg.Error as error:
            self._lose(error)
        else:
            self._flushing = False
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            self._collect()
            while (notification := self._pgconn.notifies()) is not None:
                self._heard(notification.extra.decode())
            if self._farewell is not None:
                raise self._farewell
        except psycopg.Error as error:
            self._lose(error)

    def _collect(self) -> None:
        """Take the results that are here. Each has None behind it; the mark of the end has all that came before it."""
        pgconn = self._pgconn
        while not pgconn.is_busy():
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == _BAD:  # libpq hung up on what it did not understand: nothing comes any more
                    raise psycopg.OperationalError(pgconn.get_error_message())
                if self._answer is None:
                    return  # asked once more than there are results, so that libpq knows itself idle
            elif result.status == _SYNCED:
                self._settle()
            elif result.status in _COPYING:  # and would be again, however often libpq is asked
                raise psycopg.NotSupportedError("a prepared statement cannot copy")
            else:
                self._results.append(result)
                if _is_farewell(result):
                    raise error_from_result(result)

    def _settle(self) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result(self._results)

    def _noticed(self, notice: Diagnostic) -> None:
        """A server that ends an idle connection says why before it hangs up; one that crashes warns of it."""
        if notice.severity_nonlocalized in _ENDS_THE_CONNECTION or notice.sqlstate == _CRASHED:
            self._farewell = _error(notice)

    def _lose(self, error: psycopg.Error) -> None:
        if self._lost is not None:
            return
        self._lost = self._farewell or error
        if self._watch is not None:
            self._watch.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._pgconn.finish()
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            return
        if any(result.error_field(DiagnosticField.SQLSTATE) for result in self._results):
            answer.set_result(self._results)  # the server's last words tell more than the silence after them
        else:
            answer.set_exception(self._lost)


def _is_farewell(result: PGresult) -> bool:
    """Whether the server hangs up after it. That may be all that is heard of it: what is sent to it by then is answered by a
    reset, of which uvloop tells its readers nothing.
    """
    if result.status != _FAILED:
        return False
    severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
    return severity is not None and severity.decode() in _ENDS_THE_CONNECTION


def rows(result: PGresult) -> Iterator[tuple[Any, ...]]:
    """The rows of a result: bytes for each value, None for null."""
    fields = range(result.nfields)
    for row in range(result.ntuples):
        yield tuple(result.get_value(row, field) for field in fields)


def _succeeded(results: list[PGresult]) -> list[PGresult]:
    for result in results:
        if result.status == _FAILED:
            raise error_from_result(result)
    return results


def _error(notice: Diagnostic) -> psycopg.Error:
    try:
        kind = lookup(notice.sqlstate or "")
    except KeyError:
        kind = psycopg.OperationalError
    return kind(notice.message_primary or "the server ended the connection")
