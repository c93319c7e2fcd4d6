"""What can go wrong with a log, and what the caller does about it.

EventLogError
├── VersionConflict    decide again on the newer state
├── FenceLost          somebody else took over: stop, do not retry
├── DuplicateEventId   the id stands for another fact: a bug in the caller, do not retry
├── EventTooLarge      store the payload elsewhere and append a reference
├── NameInvalid        a name or id cannot be a token of a subject: correct it
├── UnknownEventType   this release cannot write or read the type: deploy one that can
├── AppendRefused      the database refused this one request: do not retry
├── QueueFull          too much waits already: retry later, with the same event ids
├── LogUnavailable     the outcome is unknown: retry with the same event ids
├── LogClosed          the log was closed by its owner
├── ChainBroken        the history was tampered with or damaged: stop and alarm
├── HistoryRewritten   the log is not what was signed before: stop and alarm
├── CheckpointMissing  no checkpoint covers the position yet: wait for the next one
├── EventMissing       the log has no event at the position
├── StreamMissing      the log has no such stream
├── ArchiveMissing     the oldest events are files: open the log with the directory that holds them
├── ArchiveDamaged     an archived file is not what was written: restore it from a copy
├── KeyUnusable        a key file or variable does not hold a key: correct the configuration
├── SubjectLocked      personal data needs the key of its subject: open a vault, name the subject
├── SealBroken         a sealed field is not what its key sealed: verify the log
├── PayloadUnreadable   a payload is encrypted with a key that is not here, or was changed: verify the log
├── NotConfigured      the process was started without the key that is needed: set it
├── RelayDiverged      stream and log tell different histories: stop and alarm
├── SourceTruncated    the stream no longer holds what a view needs, and its owner does not answer for it
├── UnknownView        no view of this name is served here
├── RebuildRunning     the view is being rebuilt already: wait for that
├── NoOldView          no copy of this version was kept: rebuild the view
├── ViewSuperseded     a release with another version of the view has taken it over: stop
├── RowMissing         the event is about a row that the view does not have: its stream begins otherwise
├── FoldFailed         the parked event still cannot be folded: correct the view first
└── NotParked          no event of this position is parked
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from uuid import UUID

    from eventlog.records import ExpectedVersion, StreamId


class EventLogError(Exception):
    """The base of every error of this package."""


class VersionConflict(EventLogError):
    """Another append came first: the stream is at `actual`, not at `expected`."""

    def __init__(self, stream: StreamId, expected: ExpectedVersion, actual: int) -> None:
        super().__init__(f"stream {stream} is at version {actual}, expected {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class NameInvalid(EventLogError, ValueError):
    """`value`, given as `name`, cannot stand as one token of a NATS subject."""

    problem: Final = "must be 1 to 128 characters out of A-Z a-z 0-9 _ -"

    def __init__(self, name: str, value: str) -> None:
        super().__init__(f"{name} {value!r} {self.problem}")
        self.name = name
        self.value = value


class FenceLost(EventLogError):
    """The fence was taken by somebody else: it is at epoch `current`, the append carried `epoch`."""

    def __init__(self, name: str, epoch: int, current: int) -> None:
        super().__init__(f"fence {name} is at epoch {current}, the append carries epoch {epoch}")
        self.name = name
        self.epoch = epoch
        self.current = current


class DuplicateEventId(EventLogError):
    """The id is stored already, with other content or beside events that are new."""

    def __init__(self, event_id: UUID, problem: str) -> None:
        super().__init__(f"event id {event_id}: {problem}")
        self.event_id = event_id


class EventTooLarge(EventLogError):
    """An event's data exceeds the limit; both sizes are in bytes."""

    def __init__(self, type_name: str, size: int, limit: int) -> None:
        super().__init__(f"event {type_name} has {size} bytes of data, the limit is {limit}")
        self.size = size
        self.limit = limit


class UnknownEventType(EventLogError):
    """The codec has no class for this type, or none for a version as new as this."""

    def __init__(self, type_name: str, version: int, problem: str) -> None:
        super().__init__(f"event type {type_name} version {version}: {problem}")
        self.type_name = type_name
        self.version = version


class AppendRefused(EventLogError):
    """The database refused this request on its own, with nothing else in its transaction."""


class QueueFull(EventLogError):
    """The queue in front of the writer stayed full until the deadline; `limit` is in events."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the append queue holds its limit of {limit} events, retry later")
        self.limit = limit


class LogUnavailable(EventLogError):
    """The database could not be reached in time."""


class LogClosed(EventLogError):
    """The log is closed."""

    def __init__(self) -> None:
        super().__init__("the log is closed")


class ChainBroken(EventLogError):
    """Verification failed first at `position`."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"the history is broken at position {position}: {reason}")
        self.position = position
        self.reason = reason


class HistoryRewritten(EventLogError):
    """The log does not continue the history that the checkpoint at `position` attests to. Nothing more is signed."""

    def __init__(self, position: int, problem: str) -> None:
        super().__init__(f"the log is not the one signed at position {position}: {problem}; verify it, and keep a copy")
        self.position = position


class CheckpointMissing(EventLogError):
    """No checkpoint stands at `position`, or at any later one."""

    def __init__(self, position: int) -> None:
        super().__init__(f"no signed checkpoint covers position {position} yet, repeat after the next one")
        self.position = position


class EventMissing(EventLogError):
    """The log ends before `position`, or its event is gone."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the log has no event at position {position}")
        self.position = position


class StreamMissing(EventLogError):
    """The log has no event of `stream`."""

    def __init__(self, stream: StreamId) -> None:
        super().__init__(f"the log has no stream {stream}")
        self.stream = stream


class ArchiveMissing(EventLogError):
    """The log has archived events, or is to get some, and was opened without its archive."""

    def __init__(self) -> None:
        super().__init__("events of the log are archived: open it with archive=<the directory of their files>")


class ArchiveDamaged(EventLogError):
    """The file at `path` cannot be read, or does not hold what was archived: first so at `position`, as far as known."""

    def __init__(self, path: str, position: int, problem: str) -> None:
        super().__init__(f"archive {path}: {problem}")
        self.path = path
        self.position = position


class KeyUnusable(EventLogError):
    """What `source` names does not hold the key that is needed."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source


class SubjectLocked(EventLogError):
    """An event of `type_name` holds personal data, and the key of its subject was not given."""

    def __init__(self, type_name: str, problem: str) -> None:
        super().__init__(f"event type {type_name} holds personal data: {problem}")
        self.type_name = type_name


class SealBroken(EventLogError):
    """The sealed field `pointer` of the event at `position` does not open with its subject's key."""

    def __init__(self, position: int, pointer: str) -> None:
        super().__init__(f"the sealed field {pointer} of the event at position {position} was changed or moved")
        self.position = position
        self.pointer = pointer


class PayloadUnreadable(EventLogError):
    """What is stored cannot be decrypted: its data key is not here, or it is not what that key encrypted."""


class NotConfigured(EventLogError):
    """`feature` (checkpoints, vault) is off in this process."""

    def __init__(self, feature: str, remedy: str) -> None:
        super().__init__(f"{feature} are off here: {remedy}")
        self.feature = feature


class RelayDiverged(EventLogError):
    """The JetStream stream holds at `position` what the log does not."""

    def __init__(self, stream: str, position: int, problem: str) -> None:
        super().__init__(
            f"stream {stream} differs from its log at position {position}: {problem}; "
            f"find out who else publishes, then delete the stream: the relay fills it anew"
        )
        self.stream = stream
        self.position = position


class SourceTruncated(EventLogError):
    """The stream holds the messages from `first` to `last`, the view has seen everything up to `after`."""

    def __init__(self, stream: str, after: int, first: int, last: int) -> None:
        super().__init__(
            f"stream {stream} starts at {first}, the view stands at {after}: what is between is in the log only, and the"
            " service whose log it is does not answer; start it, and NATS with the permissions of this release"
        )
        self.stream = stream
        self.after = after
        self.first = first
        self.last = last


class UnknownView(EventLogError):
    """No projector for a view of this name is registered."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no view is named {name!r} here")
        self.name = name


class RebuildRunning(EventLogError):
    """One rebuild or verification of a view at a time."""

    def __init__(self, name: str) -> None:
        super().__init__(f"view {name} is being rebuilt or verified already")
        self.name = name


class ViewSuperseded(EventLogError):
    """The tables in the database are of version `actual`, this process would fold version `own`."""

    def __init__(self, name: str, own: int, actual: int) -> None:
        super().__init__(
            f"view {name} is at version {actual} in the database, this process has version {own}: another release has "
            "taken it over; stop this process, or start it anew to go back to its version"
        )
        self.name = name
        self.own = own
        self.actual = actual


class FoldFailed(EventLogError):
    """The view raised (see `__cause__`) when the parked event at `position` was folded again."""

    def __init__(self, name: str, position: int, error: Exception) -> None:
        super().__init__(f"view {name} still cannot fold position {position}: {type(error).__name__}: {error}")
        self.name = name
        self.position = position


class RowMissing(EventLogError):
    """View `name` has no row with this key, which an event of the type changes."""

    def __init__(self, name: str, type_name: str, key: tuple[object, ...]) -> None:
        super().__init__(f"view {name} has no row {key} for a {type_name} to change")
        self.name = name
        self.type_name = type_name
        self.key = key


class NoOldView(EventLogError):
    """No copy of view `name` is kept that this release, which has `version`, could go back to."""

    def __init__(self, name: str, version: int) -> None:
        super().__init__(f"no old copy of view {name} at version {version} is kept; rebuild it")
        self.name = name
        self.version = version


class NotParked(EventLogError):
    """The view has no parked event at `position`."""

    def __init__(self, name: str, position: int) -> None:
        super().__init__(f"view {name} has no parked event at position {position}")
        self.name = name
        self.position = position
