"""A view of what llm-gateway tells of its attempts: how long they took, how they ended, what came from a cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Final

from eventlog.codec import Codec
from eventlog.records import StoredEvent
from psycopg import AsyncConnection
from synod.common.event import Event
from synod.common.values import UsageLine
from synod.llm_gateway import events as llm

from cost_ledger.books import known_event

Connection = AsyncConnection[Any]

_CODEC: Final[Codec[Event]] = Codec(llm.EVENTS)


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
        async with connection.cursor() as cursor:
            for stored in events:
                event = known_event(_CODEC.decode(stored))
                await cursor.execute(*_statement(stored, event))


_STARTED: Final = """
    insert into attempt (tenant, request_id, attempt, at, model) values (%s, %s, %s, %s, %s) on conflict do nothing
"""
_ENDED: Final = """
    insert into attempt (tenant, request_id, attempt, at, model, outcome) values (%s, %s, %s, %s, %s, %s)
    on conflict (tenant, request_id, attempt) do update
    set outcome = excluded.outcome, model = coalesce(nullif(excluded.model, ''), attempt.model)
"""
_COMPLETED: Final = """
    insert into attempt (
        tenant, request_id, attempt, at, model, outcome,
        duration_ms, first_content_ms, input_tokens, output_tokens, cached_tokens
    ) values (%s, %s, %s, %s, %s, 'completed', %s, %s, %s, %s, %s)
    on conflict (tenant, request_id, attempt) do update set
        outcome = excluded.outcome, model = excluded.model, duration_ms = excluded.duration_ms,
        first_content_ms = excluded.first_content_ms, input_tokens = excluded.input_tokens,
        output_tokens = excluded.output_tokens, cached_tokens = excluded.cached_tokens
"""


_SERVED: Final = """
    insert into served (tenant, request_id, model, at, source_reservation_id) values (%s, %s, %s, %s, %s)
    on conflict do nothing
"""


def _statement(stored: StoredEvent, event: Event) -> tuple[str, tuple[object, ...]]:
    match event:
        case llm.ModelCallAttemptStarted():
            return _STARTED, (*_key(stored, event), model_of(event))
        case llm.ModelCallCompleted():
            return _COMPLETED, (*_key(stored, event), model_of(event), *_measured(event))
        case llm.ModelCallAttemptFailed():
            return _ENDED, (*_key(stored, event), event.model if "/" in event.model else "", "failed")
        case llm.ModelCallCancelled():
            return _ENDED, (*_key(stored, event), "", "cancelled")
        case llm.ModelCallServedFromCache():
            owner = (stored.tenant, event.request_id, event.model)
            return _SERVED, (*owner, stored.occurred_at, event.source_reservation_id)
        case _:
            raise TypeError(f"{event.type_name()} is no outcome of an attempt")


Attempt = llm.ModelCallAttemptStarted | llm.ModelCallCompleted | llm.ModelCallAttemptFailed | llm.ModelCallCancelled


def _key(stored: StoredEvent, event: Attempt) -> tuple[object, ...]:
    return (stored.tenant, event.request_id, event.attempt, stored.occurred_at)


def model_of(event: llm.ModelCallAttemptStarted | llm.ModelCallCompleted) -> str:
    """ "provider/model", however the gateway wrote it."""
    return event.model if "/" in event.model else f"{event.provider}/{event.model}"


def _measured(event: llm.ModelCallCompleted) -> tuple[int, ...]:
    times = (event.duration_ms, event.first_content_ms)
    return (*times, event.input_tokens, event.output_tokens, _cached(event.usage))


def _cached(usage: Iterable[UsageLine]) -> int:
    return sum(line.quantity for line in usage if line.cache == "read" and line.unit == "tokens")
