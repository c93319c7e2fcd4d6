"""The ledger over gRPC: what is asked of it, and what its answers mean."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from eventlog.records import Context
from llm_gateway.clients import GrpcLedger
from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from servicekit.errors import FailedPrecondition, ServiceError, Unavailable, trailers
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import (
    CostLedgerServicer,
    CostLedgerStub,
    add_CostLedgerServicer_to_server,
)

CONTEXT = Context(tenant="local", actor="usr_ada")


@dataclass
class Books(CostLedgerServicer):
    """Renews everything, or answers with `refusal`."""

    refusal: ServiceError | None = None
    renewed: list[pb.RenewReservationRequest] = field(default_factory=list)

    async def RenewReservation(
        self, request: pb.RenewReservationRequest, context: grpc.aio.ServicerContext
    ) -> pb.Reservation:  # type: ignore[override, type-arg]
        if self.refusal is not None:
            await context.abort(self.refusal.code, self.refusal.message, trailers(self.refusal, "cost-ledger"))
        self.renewed.append(request)
        return pb.Reservation(reservation_id=request.reservation_id, state=pb.RESERVATION_STATE_HELD)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
async def ledger(books: Books) -> AsyncIterator[GrpcLedger]:
    server = grpc.aio.server()
    add_CostLedgerServicer_to_server(books, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield GrpcLedger(CostLedgerStub(channel), timeout_s=5)
    await server.stop(None)


async def test_a_hold_is_renewed_by_its_id_for_as_long_as_is_asked(ledger: GrpcLedger, books: Books) -> None:
    await ledger.renew("mc_1:1", 12.5, CONTEXT)

    (request,) = books.renewed
    assert request.reservation_id == "mc_1:1"
    assert request.ttl.ToMilliseconds() == 12_500


async def test_a_closed_reservation_is_a_refusal_with_the_ledgers_reason(ledger: GrpcLedger, books: Books) -> None:
    books.refusal = FailedPrecondition("it is settled", reason="RESERVATION_CLOSED")

    with pytest.raises(LedgerRefused) as caught:
        await ledger.renew("mc_1:1", 10, CONTEXT)

    assert caught.value.reason == "RESERVATION_CLOSED"


async def test_a_ledger_that_cannot_answer_now_may_be_asked_again(ledger: GrpcLedger, books: Books) -> None:
    books.refusal = Unavailable("starting", 1.0)

    with pytest.raises(LedgerUnavailable):
        await ledger.renew("mc_1:1", 10, CONTEXT)
