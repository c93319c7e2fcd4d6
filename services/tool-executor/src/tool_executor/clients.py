"""The ports over gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
from eventlog.records import Context
from servicekit.auth import Principal
from servicekit.context import acting_as
from servicekit.errors import Aborted, DeadlineExceeded, Internal, ServiceError, Unavailable, from_rpc_error
from servicekit.retry import Backoff

from tool_executor import translate
from tool_executor.errors import LedgerRefused, LedgerUnavailable
from tool_executor.spending import Reservation

if TYPE_CHECKING:
    from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerAsyncStub

ATTEMPTS_MAX: Final = 3
BACKOFF: Final = Backoff(initial_s=0.05, max_s=1)
_REPEATABLE: Final = (Unavailable, Aborted, DeadlineExceeded, Internal)


@dataclass(frozen=True, slots=True)
class GrpcLedger:
    """cost-ledger. A reservation is known by its id, so asking again does no harm."""

    stub: CostLedgerAsyncStub
    timeout_s: float
    backoff: Backoff = BACKOFF

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        # A call may outlive its caller, whose deadline must then not end it: only its name is taken along.
        with acting_as(Principal(context.actor, context.tenant, "user"), correlation=context.correlation):
            for attempt in range(ATTEMPTS_MAX):
                try:
                    await self._reserve(reservation)
                    return
                except LedgerUnavailable:
                    if attempt + 1 == ATTEMPTS_MAX:
                        raise
                await asyncio.sleep(self.backoff.delay_s(attempt))

    async def _reserve(self, reservation: Reservation) -> None:
        try:
            await self.stub.Reserve(translate.from_reservation(reservation), timeout=self.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _refusal(from_rpc_error(error)) from error
        except ServiceError as error:
            raise _refusal(error) from error


def _refusal(answer: ServiceError) -> LedgerRefused | LedgerUnavailable:
    if isinstance(answer, _REPEATABLE) or (answer.retryable and answer.reason != "BUDGET_EXHAUSTED"):
        return LedgerUnavailable(answer.message)
    return LedgerRefused(answer)
