"""The ports over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from eventlog.records import Context
from servicekit.auth import Principal
from servicekit.context import acting_as
from servicekit.errors import (
    Aborted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ServiceError,
    Unavailable,
    from_rpc_error,
)
from servicekit.retry import Backoff
from synod.cost_ledger.v1 import cost_ledger_pb2

from tool_executor import translate
from tool_executor.errors import LedgerRefused, LedgerUnavailable
from tool_executor.spending import Reservation

if TYPE_CHECKING:
    from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerAsyncStub

ATTEMPTS_MAX: Final = 3
BACKOFF: Final = Backoff(initial_s=0.05, max_s=1)
Ask = Callable[[], Awaitable[cost_ledger_pb2.Reservation]]
_REPEATABLE: Final = (Unavailable, Aborted, DeadlineExceeded, Internal)


@dataclass(frozen=True, slots=True)
class GrpcLedger:
    """cost-ledger. A reservation is known by its id, so asking again does no harm."""

    stub: CostLedgerAsyncStub
    timeout_s: float
    backoff: Backoff = BACKOFF

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        request = translate.from_reservation(reservation)
        held = await self._repeated(lambda: self.stub.Reserve(request, timeout=self.timeout_s), context)
        if held.state == cost_ledger_pb2.RESERVATION_STATE_RELEASED:
            raise LedgerRefused(
                FailedPrecondition(
                    f"call {reservation.call_id} did not begin in time, and what it held was given back; "
                    "call again with a new call id",
                    reason="CALL_GIVEN_UP",
                )
            )

    async def release(self, call_id: str, reason: str, context: Context) -> None:
        request = cost_ledger_pb2.ReleaseRequest(reservation_id=call_id, reason=reason)
        with suppress(LedgerRefused):  # never reserved, or settled
            await self._repeated(lambda: self.stub.Release(request, timeout=self.timeout_s), context)

    async def _repeated(self, ask: Ask, context: Context) -> cost_ledger_pb2.Reservation:
        # A call may outlive its caller, whose deadline must then not end it: only its name is taken along.
        with acting_as(Principal(context.actor, context.tenant, "user"), correlation=context.correlation):
            for attempt in range(ATTEMPTS_MAX):
                try:
                    return await _refusable(ask())
                except LedgerUnavailable:
                    if attempt + 1 == ATTEMPTS_MAX:
                        raise
                await asyncio.sleep(self.backoff.delay_s(attempt))
        raise AssertionError("the last attempt returns or raises")


async def _refusable(call: Awaitable[cost_ledger_pb2.Reservation]) -> cost_ledger_pb2.Reservation:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _refusal(from_rpc_error(error)) from error
    except ServiceError as error:
        raise _refusal(error) from error


def _refusal(answer: ServiceError) -> LedgerRefused | LedgerUnavailable:
    if isinstance(answer, _REPEATABLE) or (answer.retryable and answer.reason != "BUDGET_EXHAUSTED"):
        return LedgerUnavailable(answer.message)
    return LedgerRefused(answer)
