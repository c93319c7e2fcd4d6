"""What can go wrong where the library `eventsourcing` stands on a log, and what its callers see of it.

EventLogError
├── UnsafeRecorder     the environment selects a recorder that loses events: correct it before starting
└── ImportMismatch     the log holds another history than the one to import: import into an empty log

Callers of the library know its errors, not ours (see `as_library_error`):

VersionConflict, DuplicateEventId   -> IntegrityError     load the aggregate again and decide anew
LogUnavailable                      -> OperationalError   the outcome is unknown: record the same events again
QueueFull                           -> OperationalError   nothing was stored: retry later
EventTooLarge, ValueError           -> DataError          do not retry
LogClosed                           -> InterfaceError     the application was closed
any other                           -> DatabaseError      do not retry
"""

from __future__ import annotations

from typing import TypeVar

from eventsourcing.persistence import (
    DatabaseError,
    DataError,
    InfrastructureFactoryError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PersistenceError,
)

from eventlog.errors import (
    DuplicateEventId,
    EventLogError,
    EventTooLarge,
    LogClosed,
    LogUnavailable,
    QueueFull,
    VersionConflict,
)

E = TypeVar("E", bound=Exception)

_LIBRARY_ERRORS: tuple[tuple[tuple[type[Exception], ...], type[PersistenceError]], ...] = (
    ((VersionConflict, DuplicateEventId), IntegrityError),
    ((LogUnavailable, QueueFull), OperationalError),
    ((EventTooLarge, ValueError), DataError),
    ((LogClosed,), InterfaceError),
)


class UnsafeRecorder(EventLogError, InfrastructureFactoryError):
    """The setting `key` selects what was measured to lose events for whoever follows them."""

    def __init__(self, key: str, value: str, reason: str) -> None:
        super().__init__(f"{key}={value} is refused: {reason}")
        self.key = key
        self.value = value


class ImportMismatch(EventLogError):
    """The log differs at `position` from the history to import."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(f"the log differs from its source at position {position}: {problem}")
        self.position = position


def as_library_error(error: EventLogError | ValueError) -> PersistenceError:
    """The library's error that tells its caller the same.

    Raise it `from without_traceback(error)`.
    """
    kind = next((library for own, library in _LIBRARY_ERRORS if isinstance(error, own)), DatabaseError)
    return kind(str(error))


def without_traceback(error: E) -> E:
    """The log's error as a cause.

    The log may hold the error until its next commit; with a traceback that would hold the caller's frames too, and keep
    an application open that nobody needs any more.
    """
    return error.with_traceback(None)
