"""The service as its clients see it: real gRPC, PostgreSQL and NATS, the provider simulator, a ledger that can refuse."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from grpc.aio import AioRpcError
from llm_gateway.main import compose
from llm_gateway.settings import Settings
from provider_simulator.testing import RunningSimulator
from servicekit.errors import (
    ServiceError,
    from_rpc_error,
    trailers,
)
from servicekit.testing import Served, serve_in_process, settings_for
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerServicer, add_CostLedgerServicer_to_server
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

WAIT_S = 10


@dataclass
class Ledger(CostLedgerServicer):
    """A ledger in this process that reserves everything but what `refusals` says."""

    reserved: list[ledger_pb.ReserveRequest] = field(default_factory=list)
    refusals: list[ServiceError] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    address: str = ""

    async def Reserve(
        self, request: ledger_pb.ReserveRequest, context: grpc.aio.ServicerContext
    ) -> ledger_pb.Reservation:  # type: ignore[override, type-arg]
        if self.refusals:
            refusal = self.refusals.pop(0)
            await context.abort(refusal.code, refusal.message, trailers(refusal, "cost-ledger"))
        metadata = dict(context.invocation_metadata() or ())
        self.tenants.append(str(metadata.get("synod-tenant")))
        self.reserved.append(request)
        return ledger_pb.Reservation(reservation_id=request.reservation_id, state=ledger_pb.RESERVATION_STATE_HELD)


@asynccontextmanager
async def serving(ledger: Ledger) -> AsyncIterator[Ledger]:
    server = grpc.aio.server()
    add_CostLedgerServicer_to_server(ledger, server)
    ledger.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield ledger
    finally:
        await server.stop(0)


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with serving(Ledger()) as running:
        yield running


@pytest.fixture
def settings(postgres_dsn: str, nats_url: str, ledger: Ledger, simulator: RunningSimulator) -> Settings:
    return settings_for(
        Settings,
        postgres_dsn,
        nats_url,
        peers={"cost-ledger": ledger.address},
        simulator_url=simulator.origin,
        openai_api_key=None,
        anthropic_api_key="key-of-a-test",
        anthropic_base_url=simulator.anthropic_base_url,
        ollama_host="",
        model_aliases={"scout": "simulator/sim-1"},
    )


@pytest.fixture
async def service(settings: Settings) -> AsyncIterator[Served[Settings]]:
    async with serve_in_process(compose, settings) as served:
        yield served


@pytest.fixture
def stub(service: Served[Settings]) -> LlmGatewayStub:
    return LlmGatewayStub(service.channel)


def request(request_id: str = "req", script: str = "answer: {{input}}!", **more: object) -> pb.GenerateRequest:
    values: dict[str, object] = {
        "request_id": request_id,
        "model": "simulator/sim-1",
        "messages": [
            pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text=script)]),
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hello")]),
        ],
        "attribution": ledger_pb.Attribution(agent="scout", run_id="run_1"),
    }
    return pb.GenerateRequest(**(values | more))  # type: ignore[arg-type]


def streamed(asked: pb.GenerateRequest) -> pb.StreamRequest:
    return pb.StreamRequest(request=asked)


async def refused(call: object) -> ServiceError:
    with pytest.raises(AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def event_types(service: Served[Settings]) -> list[str]:
    answer = await EventLogStub(service.channel).Read(log_pb.ReadRequest(page_size=100))
    return [event.type for event in answer.events]


async def test_an_answer_is_reserved_before_and_recorded_after(
    service: Served[Settings], stub: LlmGatewayStub, ledger: Ledger
) -> None:
    answer = await stub.Generate(request())

    assert answer.message.parts[0].text == "Hello!"
    assert (answer.finish_reason, answer.model, answer.simulated) == ("stop", "simulator/sim-1", True)
    assert answer.usage.source == "provider_final"
    assert sum(line.quantity for line in answer.usage.lines if line.direction == "input") == answer.usage.input_tokens
    (reserved,) = ledger.reserved
    assert reserved.reservation_id == answer.reservation_id
    assert (reserved.model, reserved.attribution.agent, ledger.tenants) == ("simulator/sim-1", "scout", ["local"])
    assert reserved.input_tokens_max >= answer.usage.input_tokens
    assert reserved.output_tokens_max == 4096
    assert await event_types(service) == ["ModelCallAccepted", "ModelCallAttemptStarted", "ModelCallCompleted"]


async def test_a_stream_begins_delivers_and_completes_once(stub: LlmGatewayStub) -> None:
    events = [event async for event in stub.Stream(streamed(request(script="answer: one two three")))]

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].started.model == "simulator/sim-1"
    assert "".join(event.text_delta for event in events) == "one two three"
    assert [event.WhichOneof("event") for event in events].count("completed") == 1
    assert events[-1].completed.message.parts[0].text == "one two three"
