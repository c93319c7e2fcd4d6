"""NATS in: what other services say was used becomes settlements, releases and charges.

Each subscription is a view, so that it has what a view has: a position in this service's database, a lag that can be
watched, a list of parked events that can be driven again. Unlike other views it acts: it has the ledger record each use
before its position moves. A crash between the two delivers the event again; the ledger knows it by the id of the
reservation or charge, so neither that nor a rebuild or verification of the view counts anything twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, ClassVar, Final

from eventlog.codec import Codec
from eventlog.errors import LogUnavailable
from eventlog.records import Context, StoredEvent
from psycopg import AsyncConnection
from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.events import Quantity
from synod.llm_gateway import events as llm
from synod.tool_executor import events as tools

from cost_ledger.application import Closed, CostLedger, Outcome, Returned, Unbilled, Unknown, Use
from cost_ledger.commands import Charge
from cost_ledger.decoding import known_event
from cost_ledger.errors import BookBusy, BookContended
from cost_ledger.model_calls import decoded, model_of
from cost_ledger.rows import insert, write
from cost_ledger.terms import terms_of

Connection = AsyncConnection[Any]

LLM_GATEWAY: Final = "llm-gateway"
TOOL_EXECUTOR: Final = "tool-executor"

_TOOL_CODEC: Final[Codec[Event]] = Codec(tools.EVENTS)

_TABLES: Final = """
    create table recorded (
        position bigint primary key, tenant text not null, type text not null, subject text not null,
        occurred_at timestamptz not null
    );
"""
_INSERT: Final = insert("recorded", ("position", "tenant", "type", "subject", "occurred_at"))


class ModelUsage:
    """Settles and releases by the outcomes of model calls, and by what the gateway says of those it has reserved ahead."""

    name: ClassVar[str] = "model_usage"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset(
        {
            "ModelCallCompleted",
            "ModelCallAttemptFailed",
            "ModelCallCancelled",
            "ReservationsReturned",
            "ReservationStockClosed",
        }
    )
    tables: ClassVar[str] = _TABLES

    def __init__(self, ledger: CostLedger) -> None:
        self._ledger = ledger

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        told = [(stored, decoded(stored)) for stored in events]
        outcomes = [(_outcome(stored, event), _context(stored)) for stored, event in told]
        await _all([self._ledger.record(outcomes)])
        await _keep(connection, [(stored, _subject(event)) for stored, event in told])


class ToolUsage:
    """Charges what tools cost, in money and in what quotas limit, or settles what was reserved for the call."""

    name: ClassVar[str] = "tool_usage"
    version: ClassVar[int] = 1
    types: ClassVar[frozenset[str] | None] = frozenset(
        {"ToolCallCompleted", "ToolCallFailed", "ToolCallOutcomeUnknown", "ToolCallReconciled"}
    )
    tables: ClassVar[str] = _TABLES

    def __init__(self, ledger: CostLedger) -> None:
        self._ledger = ledger

    async def apply(self, connection: Connection, events: Sequence[StoredEvent]) -> None:
        outcomes = [(stored, known_event(_TOOL_CODEC.decode(stored))) for stored in events]
        await _all(self._record(stored, event) for stored, event in outcomes)
        await _keep(connection, [(stored, getattr(event, "call_id", "")) for stored, event in outcomes])

    async def _record(self, stored: StoredEvent, event: Event) -> None:
        match event:
            case tools.ToolCallCompleted():
                await self._ledger.charge(_charge(stored, event), _context(stored))
            case tools.ToolCallFailed():
                await self._ledger.settle_tool(_failed(stored, event), _context(stored))
            case tools.ToolCallOutcomeUnknown():
                await self._ledger.record([(Unknown(event.call_id), _context(stored))])
            case tools.ToolCallReconciled(happened=True):
                await self._ledger.settle_tool(_reconciled(stored, event), _context(stored))
            case tools.ToolCallReconciled():
                unbilled = Unbilled(event.call_id, "its effect did not happen")
                await self._ledger.record([(unbilled, _context(stored))])


def _outcome(stored: StoredEvent, event: Event) -> Outcome:
    match event:
        case llm.ModelCallCompleted():
            return _completed(stored, event)
        case llm.ModelCallCancelled():
            return _cancelled(stored, event)
        case llm.ModelCallAttemptFailed(billed="no"):
            return Unbilled(event.reservation_id, f"{event.failure.reason}: {event.failure.message}")
        case llm.ModelCallAttemptFailed():
            return Unknown(event.reservation_id)
        case llm.ReservationsReturned():
            return Returned(event.holder, event.reservation_ids)
        case llm.ReservationStockClosed():
            return Closed(event.holder)
        case _:
            raise TypeError(f"{event.type_name()} is no outcome of an attempt, nor about reservations made ahead")


def _subject(event: Event) -> str:
    """What a row is about: a reservation, or whose reservations."""
    match event:
        case llm.ReservationsReturned() | llm.ReservationStockClosed():
            return event.holder
        case _:
            return getattr(event, "reservation_id", "")


def _completed(stored: StoredEvent, event: llm.ModelCallCompleted) -> Use:
    return Use(
        reservation_id=event.reservation_id,
        usage=event.usage,
        usage_source=event.usage_source,
        attribution=event.attribution,
        model=model_of(event),
        used_at=stored.occurred_at,
        source_position=stored.position,
        terms=terms_of({"service_tier": event.service_tier}) if event.service_tier else None,
    )


def _cancelled(stored: StoredEvent, event: llm.ModelCallCancelled) -> Use:
    """A cancelled call does not say whose it was; only its reservation knows."""
    return Use(
        reservation_id=event.reservation_id,
        usage=event.usage,
        usage_source=event.usage_source,
        attribution=Attribution(),
        model="",
        used_at=stored.occurred_at,
        source_position=stored.position,
    )


def _charge(stored: StoredEvent, event: tools.ToolCallCompleted) -> Charge:
    attribution = event.attribution
    if not attribution.tool:
        attribution = attribution.model_copy(update={"tool": event.tool})
    time = (Quantity(unit="tool_ms", quantity=event.duration_ms), Quantity(unit="cpu_ms", quantity=event.cpu_ms))
    return Charge(event.call_id, attribution, event.cost_nano_usd, stored.occurred_at, stored.position, time)


def _failed(stored: StoredEvent, event: tools.ToolCallFailed) -> Charge:
    """A failed call does not say whose it was, nor that it cost money; its time it has used."""
    time: tuple[Quantity, ...] = (Quantity(unit="tool_ms", quantity=event.duration_ms),)
    if event.cpu_ms is not None:
        time = (*time, Quantity(unit="cpu_ms", quantity=event.cpu_ms))
    return Charge(event.call_id, Attribution(tool=event.tool), 0, stored.occurred_at, stored.position, time)


def _reconciled(stored: StoredEvent, event: tools.ToolCallReconciled) -> Charge:
    """It happened after all. How long it took nobody knows, so its time is taken as reserved."""
    return Charge(event.call_id, Attribution(), event.cost_nano_usd, stored.occurred_at, stored.position, ())


def _context(stored: StoredEvent) -> Context:
    return Context(stored.tenant, stored.actor, stored.correlation, stored.id, stored.traceparent)


async def _all(commands: Iterable[Awaitable[None]]) -> None:
    """Carry out a batch at once, so that the book commits it in groups; raises the first error after all are done."""
    for outcome in await asyncio.gather(*commands, return_exceptions=True):
        if isinstance(outcome, BookBusy | BookContended):
            # Not the event's fault: the projector waits and delivers it again instead of parking it.
            raise LogUnavailable(str(outcome)) from outcome
        if isinstance(outcome, BaseException):
            raise outcome


async def _keep(connection: Connection, recorded: Sequence[tuple[StoredEvent, str]]) -> None:
    rows = (
        {
            "position": stored.position,
            "tenant": stored.tenant,
            "type": stored.type,
            "subject": subject,
            "occurred_at": stored.occurred_at,
        }
        for stored, subject in recorded
    )
    await write(connection, _INSERT, rows)
