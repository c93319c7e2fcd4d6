"""The library's infrastructure factory: constructs the recorders of one application on its log."""

from __future__ import annotations

from threading import Lock
from typing import TypeVar

import psycopg
from eventsourcing.cryptography import AESCipher
from eventsourcing.persistence import AggregateRecorder, ApplicationRecorder, Cipher, DatabaseError, ProcessRecorder
from eventsourcing.postgres import PostgresFactory
from eventsourcing.utils import Environment, EnvType, resolve_topic

from eventlog.clock import SystemClock
from eventlog.errors import EventLogError
from eventlog.eventsourcing.errors import as_library_error, without_traceback
from eventlog.eventsourcing.names import TYPE_NAMES
from eventlog.eventsourcing.recorders import (
    Application,
    EventLogAggregateRecorder,
    EventLogApplicationRecorder,
    EventLogProcessRecorder,
    SnapshotRecorder,
)
from eventlog.eventsourcing.safety import refuse_unsafe
from eventlog.eventsourcing.settings import AdapterSettings
from eventlog.eventsourcing.thread import LogThread
from eventlog.eventsourcing.translate import Translation
from eventlog.postgres import PostgresEventLog

R = TypeVar("R", bound=EventLogAggregateRecorder)


class EventLogFactory(PostgresFactory):
    """Selected by PERSISTENCE_MODULE=eventlog.eventsourcing; takes the library's POSTGRES_ settings.

    Events go to the log. Tracking of views and snapshots stay in the library's own tables, which are sound: views that
    extend PostgresTrackingRecorder run unchanged. The log is opened by the first recorder that needs it, and shared.
    """

    aggregate_recorder_class = SnapshotRecorder

    def __init__(self, env: Environment | EnvType | None) -> None:
        """UnsafeRecorder or OSError for an environment that cannot be used."""
        refuse_unsafe(env or {})
        super().__init__(env)
        self._settings = AdapterSettings.read(self.env)
        self._opening = Lock()
        self._application: Application | None = None

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        """A recorder on the log for events, on a table for any other purpose, which is snapshots."""
        if purpose == "events":
            return EventLogAggregateRecorder(self._open())
        return super().aggregate_recorder(purpose)

    def application_recorder(self) -> ApplicationRecorder:
        return self._recorder_class(self.APPLICATION_RECORDER_TOPIC, EventLogApplicationRecorder)(self._open())

    def process_recorder(self) -> ProcessRecorder:
        return self._recorder_class(self.PROCESS_RECORDER_TOPIC, EventLogProcessRecorder)(self._open())

    def cipher(self) -> Cipher | None:
        """The library's AES-GCM; where only a key is set, the one that is 25 times faster and reads the other's texts."""
        if self.env.get("CIPHER_KEY") and not self.env.get(self.CIPHER_TOPIC):
            return AESCipher(self.env)
        return super().cipher()

    def close(self) -> None:
        """Commit all that waits, then release every connection. Further calls have no effect."""
        application = getattr(self, "_application", None)  # the library also closes what failed to construct
        if application is not None:
            application.thread.close()
        super().close()

    def _recorder_class(self, key: str, default: type[R]) -> type[R]:
        topic = self.env.get(key)
        chosen: type[R] = resolve_topic(topic) if topic else default
        if not issubclass(chosen, default):
            raise OSError(f"{key}={topic} is no subclass of {default.__name__}")
        return chosen

    def _open(self) -> Application:
        with self._opening:
            if self._application is None:
                self._application = _open_application(self._settings)
            return self._application


def _open_application(settings: AdapterSettings) -> Application:
    translation = Translation(settings.aggregate, settings.first_version, settings.originator_ids, TYPE_NAMES)
    return Application(_open_thread(settings), translation, settings.context, SystemClock())


def _open_thread(settings: AdapterSettings) -> LogThread:
    try:
        return LogThread(lambda: PostgresEventLog.open(settings.dsn, schema=settings.schema))
    except EventLogError as error:
        raise as_library_error(error) from without_traceback(error)
    except psycopg.Error as error:
        raise DatabaseError(f"the log in schema {settings.schema!r} cannot be opened: {error}") from error
