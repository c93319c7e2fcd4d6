"""The ports over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from contextvars import Context as Variables
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from eventlog.records import Context
from servicekit.auth import Principal
from servicekit.context import acting_as
from servicekit.errors import (
    Aborted,
    DeadlineExceeded,
    Internal,
    ServiceError,
    Unavailable,
    Unimplemented,
    from_rpc_error,
    from_status,
)
from servicekit.retry import Backoff
from servicekit.telemetry import traceparent
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb

from llm_gateway import translate
from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from llm_gateway.ports import Reservation

if TYPE_CHECKING:
    from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerAsyncStub

ATTEMPTS_MAX: Final = 3
BATCH_MAX: Final = 128
"""Reservations asked for in one call; the ledger takes 256."""
BACKOFF: Final = Backoff(initial_s=0.05, max_s=1)
Refusal = LedgerRefused | LedgerUnavailable
T = TypeVar("T")
_REPEATABLE: Final = (Unavailable, Aborted, DeadlineExceeded, Internal)


@dataclass(frozen=True, slots=True)
class Asked:
    """A reservation that waits for its answer, and in whose name and trace it is asked for."""

    reservation: Reservation
    context: Context
    traceparent: str = field(default_factory=traceparent)
    answer: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class GrpcLedger:
    """cost-ledger. A reservation is known by its id, so asking again does no harm.

    While one call of a tenant is under way, what else is asked for gathers, and goes out together when it has ended: the
    more there is to do, the less a reservation costs, and who asks alone waits for nobody.
    """

    def __init__(self, stub: CostLedgerAsyncStub, timeout_s: float, backoff: Backoff = BACKOFF) -> None:
        self._stub = stub
        self._timeout_s = timeout_s
        self._backoff = backoff
        self._gathering: dict[str, list[Asked]] = {}
        """For each tenant with a call under way, what is to go out next."""
        self._batches: set[asyncio.Task[None]] = set()

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        for attempt in range(ATTEMPTS_MAX):
            try:
                await self._reserve(reservation, context)
                return
            except LedgerUnavailable:
                if attempt + 1 == ATTEMPTS_MAX:
                    raise
            await asyncio.sleep(self._backoff.delay_s(attempt))

    async def reserve_ahead(self, reservations: Sequence[Reservation], context: Context) -> Collection[str]:
        # In the caller's name, but not within his trace: it is for whichever of his calls comes next.
        wanted = [translate.from_asked(each, context, "") for each in reservations]
        outcomes = await self._many(context.tenant, wanted)
        pairs = [(each, outcome) for each, outcome in zip(reservations, outcomes, strict=True) if not outcome.refusal]
        # A ledger of an older release does not know what made ahead means, nor that it has to be given back.
        await asyncio.gather(
            *(self.release(each.id, context) for each, outcome in pairs if outcome.holder != each.holder)
        )
        return {each.id for each, outcome in pairs if outcome.holder == each.holder}

    async def release(self, reservation_id: str, context: Context) -> None:
        request = ledger_pb.ReleaseRequest(reservation_id=reservation_id, reason="reserved and never used")
        with acting_as(Principal(context.actor, context.tenant, "user"), correlation=context.correlation):
            await _refusable(self._stub.Release(request, timeout=self._timeout_s))

    async def renew(self, reservation_id: str, ttl_s: float, context: Context) -> None:
        request = translate.from_renewal(reservation_id, ttl_s)
        with acting_as(Principal(context.actor, context.tenant, "user"), correlation=context.correlation):
            await _refusable(self._stub.RenewReservation(request, timeout=self._timeout_s))

    async def _reserve(self, reservation: Reservation, context: Context) -> None:
        tenant = context.tenant
        if (gathering := self._gathering.get(tenant)) is not None:
            asked = Asked(reservation, context)
            gathering.append(asked)
            await self._answered(asked)
            return
        self._gathering[tenant] = []
        try:
            await self._call(reservation, context)
        finally:
            self._go_on(tenant)

    async def _answered(self, asked: Asked) -> None:
        """Each waits for as long as a call of its own would last, whatever the one before it does."""
        timer = asyncio.get_running_loop().call_later(self._timeout_s, self._too_late, asked.answer)
        try:
            await asked.answer
        finally:
            timer.cancel()

    def _too_late(self, answer: asyncio.Future[None]) -> None:
        _answer(answer, _refusal(DeadlineExceeded(f"no answer within {self._timeout_s:g} s")))

    def _go_on(self, tenant: str) -> None:
        """The call of the tenant has ended: send what has gathered meanwhile, if anything has."""
        if not self._gathering[tenant]:
            del self._gathering[tenant]
            return
        # It is nobody's work, so it takes over neither the deadline nor the trace of who happened to be first.
        task = asyncio.create_task(self._send_gathered(tenant), name=f"reserve {tenant}", context=Variables())
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)

    async def _send_gathered(self, tenant: str) -> None:
        try:
            while gathered := self._gathering[tenant]:
                self._gathering[tenant] = gathered[BATCH_MAX:]
                # Who gave up while waiting is not asked for.
                await self._send(tenant, [asked for asked in gathered[:BATCH_MAX] if not asked.answer.done()])
        finally:
            del self._gathering[tenant]

    async def _send(self, tenant: str, batch: Sequence[Asked]) -> None:
        try:
            refusals = await self._call_many(tenant, batch)
        except LedgerRefused as error:
            if not isinstance(error.answer, Unimplemented):
                refusals = [error] * len(batch)
            else:  # a ledger of an older release, in the middle of an update
                refusals = [await self._outcome(asked) for asked in batch]
        except LedgerUnavailable as error:
            refusals = [error] * len(batch)
        for asked, refusal in zip(batch, refusals, strict=True):
            _answer(asked.answer, refusal)

    async def _outcome(self, asked: Asked) -> Refusal | None:
        try:
            await self._call(asked.reservation, asked.context)
        except (LedgerRefused, LedgerUnavailable) as refusal:
            return refusal
        return None

    async def _call(self, reservation: Reservation, context: Context) -> None:
        # A call may outlive its caller, whose deadline must then not end it: only its name is taken along.
        with acting_as(Principal(context.actor, context.tenant, "user"), correlation=context.correlation):
            request = translate.from_reservation(reservation)
            await _refusable(self._stub.Reserve(request, timeout=self._timeout_s))

    async def _call_many(self, tenant: str, batch: Sequence[Asked]) -> list[Refusal | None]:
        items = [translate.from_asked(asked.reservation, asked.context, asked.traceparent) for asked in batch]
        outcomes = await self._many(tenant, items)
        return [_refusal(from_status(each.refusal)) if each.refusal else None for each in outcomes]

    async def _many(
        self, tenant: str, items: Sequence[ledger_pb.ReserveManyRequest.Item]
    ) -> Sequence[ledger_pb.ReserveManyResponse.Outcome]:
        # In nobody's name: each item says in whose.
        with acting_as(Principal("", tenant, "service")):
            request = ledger_pb.ReserveManyRequest(items=items)
            return (await _refusable(self._stub.ReserveMany(request, timeout=self._timeout_s))).outcomes


def _answer(answer: asyncio.Future[None], refusal: Refusal | None) -> None:
    if answer.done():
        return  # its caller gave up
    if refusal is None:
        answer.set_result(None)
    else:
        answer.set_exception(refusal)


async def _refusable(call: Awaitable[T]) -> T:
    """The answer to a call to the ledger; what it fails with as what that means to the model call."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _refusal(from_rpc_error(error)) from error
    except ServiceError as error:
        raise _refusal(error) from error


def _refusal(answer: ServiceError) -> Refusal:
    if isinstance(answer, _REPEATABLE) or (answer.retryable and answer.reason != "BUDGET_EXHAUSTED"):
        return LedgerUnavailable(f"nothing may be spent while cost-ledger cannot be asked: {answer.message}")
    return LedgerRefused(answer.reason, answer)
