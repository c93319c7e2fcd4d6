"""The records of a log: what goes in, what comes out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple, Self
from uuid import UUID

from eventlog.errors import ChainBroken, NameInvalid
from eventlog.side_table import SideRow

TYPE_VERSION_MAX: Final = 32_767
TEXT_CHARACTERS_MAX: Final = 512
EARLIEST: Final = datetime.min.replace(tzinfo=UTC)
LATEST: Final = datetime.max.replace(tzinfo=UTC)

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


class AnyVersion(Enum):
    """The type of `ANY`."""

    ANY = "any version"

    def __str__(self) -> str:
        return self.value


ANY: Final = AnyVersion.ANY
"""Expected version of an append that does not care what came before."""

NO_STREAM: Final = 0
"""Expected version of an append that must create its stream."""

ExpectedVersion = int | AnyVersion


class _StreamName(NamedTuple):
    aggregate: str
    id: str


class StreamId(_StreamName):
    """The identity of a stream: the kind of aggregate and its id, both usable as NATS subject tokens.

    A named tuple because streams are keys all over the hot path: a tuple is hashed and compared without a line of Python.
    """

    __slots__ = ()

    def __new__(cls, aggregate: str, id: str) -> Self:
        require_name("aggregate", aggregate)
        require_token("id", id)
        return tuple.__new__(cls, (aggregate, id))

    def __str__(self) -> str:
        return f"{self.aggregate}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> StreamId:
        """The stream written as `aggregate/id`; ValueError if it is anything else."""
        aggregate, _, stream_id = text.partition("/")
        return cls(aggregate, stream_id)


parse_stream = lru_cache(maxsize=8_192)(StreamId.parse)
"""StreamId.parse for the hot path: a log names the same streams again and again."""


@lru_cache(maxsize=1_024)
def stream_bytes(stream: StreamId) -> bytes:
    """The stream as UTF-8, for the hot path: of a group, each is hashed and stored."""
    return str(stream).encode()


name_bytes = lru_cache(maxsize=4_096)(str.encode)
"""The UTF-8 of what a log repeats in every event (types, tenants, actors), for the hot path."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A fact not stored yet. `id` is its idempotency key; `occurred_at` is aware; `data` is stored as it is."""

    type: str
    type_version: int
    data: bytes
    id: UUID
    occurred_at: datetime
    data_subject: str | None = None

    def __post_init__(self) -> None:
        require_name("type", self.type)
        if not 1 <= self.type_version <= TYPE_VERSION_MAX:
            raise ValueError(f"type_version {self.type_version} of {self.type} must be 1 to {TYPE_VERSION_MAX}")
        if self.occurred_at.tzinfo is None:
            raise ValueError(f"occurred_at of event {self.id} is naive, give it a time zone")
        if not EARLIEST <= self.occurred_at <= LATEST:  # stored it would be, and then never read again
            raise ValueError(f"occurred_at of event {self.id} is {self.occurred_at}, which UTC has no date for")
        if self.data_subject is not None:
            require_text("data_subject", self.data_subject)


@dataclass(frozen=True, slots=True)
class Context:
    """Who acts, for whom, and why; the same for all events of an append."""

    tenant: str
    actor: str
    correlation: str = ""
    causation: UUID | None = None
    traceparent: str = ""

    def __post_init__(self) -> None:
        require_name("tenant", self.tenant)
        require_text("actor", self.actor)
        require_text("correlation", self.correlation)
        require_text("traceparent", self.traceparent)


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to append for `name` that whoever took it keeps until somebody takes the next epoch (see fences.py)."""

    name: str
    epoch: int

    def __post_init__(self) -> None:
        require_token("fence", self.name)

    @property
    def stream(self) -> StreamId:
        """The stream of those who took it: its version is the epoch that holds."""
        return StreamId("fence", self.name)


@dataclass(frozen=True, slots=True)
class Append:
    """Events for one stream. Without events it only guards: the stream must be at `expected`.

    With a `fence`, the whole request is stored only if the fence still holds when it is committed. `rows` are stored in the
    log's side table together with the events; as they are, neither sealed nor encrypted nor under the chain.
    """

    stream: StreamId
    expected: ExpectedVersion
    events: tuple[NewEvent, ...]
    context: Context
    fence: Fence | None = None
    rows: tuple[SideRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Appended:
    """Position of the request's last event; the version of each append's stream; whether all was stored before."""

    position: int
    versions: tuple[int, ...]
    duplicate: bool


class StoredEvent(NamedTuple):
    """A fact in the log. A named tuple because millions are made when views are rebuilt.

    `position` counts from 1 over the log, `version` from 1 over the stream, both without gaps.
    `hash` is SHA-256 over `previous_hash`, the hash of the event before it in the log, and all other columns (chain.py).
    `stream_previous_hash` is the hash of the event before it in its stream; None if it was stored before there was one.
    """

    position: int
    stream: StreamId
    version: int
    id: UUID
    type: str
    type_version: int
    tenant: str
    data_subject: str | None
    occurred_at: datetime
    recorded_at: datetime
    causation: UUID | None
    correlation: str
    actor: str
    traceparent: str
    data: bytes
    stream_previous_hash: bytes | None
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events a reader wants; None means no restriction, several restrictions must all hold.

    `since` (inclusive) and `until` (exclusive) are about `recorded_at`, and must be aware.
    """

    types: frozenset[str] | None = None
    tenant: str | None = None
    aggregate: str | None = None
    correlation: str | None = None
    stream: StreamId | None = None
    since: datetime | None = None
    until: datetime | None = None

    def __post_init__(self) -> None:
        for name, moment in (("since", self.since), ("until", self.until)):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} {moment} is naive, give it a time zone")

    def matches(self, event: StoredEvent) -> bool:
        return (
            (self.types is None or event.type in self.types)
            and self.tenant in (None, event.tenant)
            and self.aggregate in (None, event.stream.aggregate)
            and self.correlation in (None, event.correlation)
            and self.stream in (None, event.stream)
            and (self.since is None or self.since <= event.recorded_at)
            and (self.until is None or event.recorded_at < self.until)
        )


class Page(NamedTuple):
    """Events in order, the position up to which nothing that was asked for is missing, and whether there is more."""

    events: Sequence[StoredEvent]
    position: int
    more: bool = False

    def upto(self, position: int) -> Page:
        """The part of it that does not go beyond a position."""
        if self.position <= position:
            return self
        return Page([event for event in self.events if event.position <= position], position)


EVERYTHING: Final = Filter()
"""The filter that restricts nothing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of `stream` folded by `fold` up to and including `version`, as the fold's owner encoded it."""

    stream: StreamId
    version: int
    fold: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Verified:
    """The finding over positions `first` to `last`: how many events hold, and where the history first breaks, if any.

    `head_hash` is the hash of the last event that holds: publish it, and nobody can rewrite what came before.
    `checkpoints` counts the signed checkpoints that hold, the last of them at position `attested_to`.
    """

    first: int
    last: int
    events: int
    ok: bool
    broken_at: int | None = None
    reason: str = ""
    head_hash: bytes = b""
    checkpoints: int = 0
    attested_to: int = 0

    def or_raise(self) -> Verified:
        """This finding if it is good; ChainBroken if not."""
        if self.broken_at is not None:
            raise ChainBroken(self.broken_at, self.reason)
        return self


class StreamEnd(NamedTuple):
    """An event by its version in its stream, its position in the log, and its hash."""

    version: int
    position: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class VerifiedStream:
    """The finding over the events of `stream`: how many hold, and the first version that does not, if any.

    `ends` are, of the events that hold, those that none after them names: the last one, and such as are followed by an
    event of before there was a chain for each stream. Whoever believes them believes all; `attested` says that a signed
    checkpoint covers each.
    """

    stream: StreamId
    events: int
    ends: tuple[StreamEnd, ...] = ()
    broken_at: int | None = None
    reason: str = ""
    attested: bool = False

    @property
    def ok(self) -> bool:
        return self.broken_at is None


def require_token(name: str, value: str) -> None:
    """NameInvalid unless `value` can stand as one token of a NATS subject."""
    if _TOKEN.fullmatch(value) is None:
        raise NameInvalid(name, value)


require_name = lru_cache(maxsize=4_096)(require_token)
"""require_token for what a log repeats in every event (types, tenants, aggregates): looked at once."""


def require_text(name: str, value: str) -> None:
    """ValueError unless `value` is short and free of control characters, so that it can travel in a header."""
    if len(value) > TEXT_CHARACTERS_MAX or not value.isprintable():
        raise ValueError(f"{name} must be at most {TEXT_CHARACTERS_MAX} printable characters, got {value[:80]!r}")
