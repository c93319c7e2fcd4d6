"""A view of what llm-gateway tells of its attempts: how long they took, how they ended, what came from a cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from eventlog.codec import Codec
from eventlog.records import StoredEvent
from psycopg import AsyncConnection
from synod.common.event import Event
from synod.common.values import UsageLine
from synod.llm_gateway import events as llm

from cost_ledger.decoding import Decoder
from cost_ledger.rows import Row, insert_or, write

Connection = AsyncConnection[Any]

decoded: Final = Decoder(Codec(llm.EVENTS))
"""An event of llm-gateway, which two views fold."""


class ModelCalls:
    """One row for each attempt. It follows llm-gateway's log and changes nothing in the ledger's."""

    name: ClassVar[str] = "model_calls"
    version: ClassVar[int] = 2
    types: ClassVar[frozenset[str] | None] = frozenset(
        {
            "ModelCallAttemptStarted",
            "ModelCallCompleted",
            "ModelCallAttemptFailed",
            "ModelCallCancelled",
            "ModelCallServedFromCache",
        }
    )
    tables: ClassVar[str] = """
        create table attempt (
            tenant text not null, request_id text not null, attempt integer not null, model text not null default '',
            at timestamptz not null, outcome text not null default 'started',
            duration_ms bigint not null default 0, first_content_ms bigint not null default 0,
            input_tokens bigint not null default 0, output_tokens bigint not null default 0,
            cached_tokens bigint not null default 0,
            primary key (tenant, request_id, attempt)
        );
        create index on attempt (tenant, at);
        -- Calls answered with what another was charged for; what that one cost is what each saved.
        create table served (
            tenant text not null, request_id text not null, model text not null, at timestamptz not null,
            source_reservation_id text not null, primary key (tenant, request_id)
        );
        create index on served (tenant, at);
    """

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        for statement, rows in _in_runs(_change(stored, decoded(stored)) for stored in _begun_first(events)):
            await write(connection, statement, rows)


_KEY: Final = ("tenant", "request_id", "attempt")
_BEGUN: Final = (*_KEY, "at", "model")
_MEASURES: Final = ("duration_ms", "first_content_ms", "input_tokens", "output_tokens", "cached_tokens")

_STARTED: Final = insert_or("attempt", _KEY, _BEGUN, "nothing")
_ENDED: Final = insert_or(
    "attempt",
    _KEY,
    (*_BEGUN, "outcome"),
    "update set outcome = excluded.outcome, model = coalesce(nullif(excluded.model, ''), attempt.model)",
)
_COMPLETED: Final = insert_or(
    "attempt",
    _KEY,
    (*_BEGUN, "outcome", *_MEASURES),
    """update set
        outcome = excluded.outcome, model = excluded.model, duration_ms = excluded.duration_ms,
        first_content_ms = excluded.first_content_ms, input_tokens = excluded.input_tokens,
        output_tokens = excluded.output_tokens, cached_tokens = excluded.cached_tokens""",
)
_SERVED_KEY: Final = ("tenant", "request_id")
_SERVED: Final = insert_or("served", _SERVED_KEY, (*_SERVED_KEY, "model", "at", "source_reservation_id"), "nothing")


class Change(NamedTuple):
    """A row, and the statement that it goes by."""

    statement: bytes
    row: Row

    @property
    def key(self) -> tuple[object, ...]:
        return tuple(self.row[name] for name in (_SERVED_KEY if self.statement is _SERVED else _KEY))


def _begun_first(events: Iterable[StoredEvent]) -> list[StoredEvent]:
    """The same events, so that there are few runs: nothing of an attempt comes before its start, so that may go ahead."""
    return sorted(events, key=lambda stored: stored.type != llm.ModelCallAttemptStarted.type_name())


def _in_runs(changes: Iterable[Change]) -> Iterator[tuple[bytes, list[Row]]]:
    """The changes in their order, in runs of one statement; a statement takes a key once."""
    run: dict[tuple[object, ...], Row] = {}
    statement = _STARTED
    for change in changes:
        if change.statement is not statement or change.key in run:
            yield statement, list(run.values())
            run, statement = {}, change.statement
        run[change.key] = change.row
    yield statement, list(run.values())


def _change(stored: StoredEvent, event: Event) -> Change:
    match event:
        case llm.ModelCallAttemptStarted():
            return Change(_STARTED, _begun(stored, event, model_of(event)))
        case llm.ModelCallCompleted():
            begun = _begun(stored, event, model_of(event))
            return Change(_COMPLETED, begun | {"outcome": "completed"} | _measured(event))
        case llm.ModelCallAttemptFailed():
            model = event.model if "/" in event.model else ""
            return Change(_ENDED, _begun(stored, event, model) | {"outcome": "failed"})
        case llm.ModelCallCancelled():
            return Change(_ENDED, _begun(stored, event, "") | {"outcome": "cancelled"})
        case llm.ModelCallServedFromCache():
            return Change(_SERVED, _served(stored, event))
        case _:
            raise TypeError(f"{event.type_name()} is no outcome of an attempt")


Attempt = llm.ModelCallAttemptStarted | llm.ModelCallCompleted | llm.ModelCallAttemptFailed | llm.ModelCallCancelled


def _begun(stored: StoredEvent, event: Attempt, model: str) -> dict[str, object]:
    return {
        "tenant": stored.tenant,
        "request_id": event.request_id,
        "attempt": event.attempt,
        "at": stored.occurred_at,
        "model": model,
    }


def _served(stored: StoredEvent, event: llm.ModelCallServedFromCache) -> dict[str, object]:
    return {
        "tenant": stored.tenant,
        "request_id": event.request_id,
        "model": event.model,
        "at": stored.occurred_at,
        "source_reservation_id": event.source_reservation_id,
    }


def model_of(event: llm.ModelCallAttemptStarted | llm.ModelCallCompleted) -> str:
    """ "provider/model", however the gateway wrote it."""
    return event.model if "/" in event.model else f"{event.provider}/{event.model}"


def _measured(event: llm.ModelCallCompleted) -> dict[str, object]:
    measured = {name: getattr(event, name) for name in _MEASURES if name != "cached_tokens"}
    return measured | {"cached_tokens": _cached(event.usage)}


def _cached(usage: Iterable[UsageLine]) -> int:
    return sum(line.quantity for line in usage if line.cache == "read" and line.unit == "tokens")
