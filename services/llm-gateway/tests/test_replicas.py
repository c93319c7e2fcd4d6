"""Two processes of the service on one database, one of them killed in the middle of a call."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from launcher.processes import free_port
from llm_gateway.main import compose
from llm_gateway.settings import Settings
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator, running_simulator
from servicekit.auth import StaticToken
from servicekit.clock import SystemClock
from servicekit.limits import Limits
from servicekit.peers import CallTerms, PeerChannel
from servicekit.retry import Backoff
from servicekit.testing import Served, serve_in_process, settings_for, write_public_key
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerServicer, add_CostLedgerServicer_to_server
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

WAIT_S = 20
ANSWER = "word " * 30 + "end"


class Ledger(CostLedgerServicer):
    """Grants all."""

    async def Reserve(self, request, context):  # type: ignore[no-untyped-def]
        return ledger_pb.Reservation(reservation_id=request.reservation_id, state=ledger_pb.RESERVATION_STATE_HELD)


@asynccontextmanager
async def ledger() -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_CostLedgerServicer_to_server(Ledger(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def process(environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A gateway of its own process; killed at the end, if it was not before."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llm_gateway", env=os.environ | environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGKILL)
        await started.wait()


def environment_of(settings: Settings, key: Path, port: int) -> dict[str, str]:
    return {
        "SYNOD_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "SYNOD_NATS_URL": settings.nats_url,
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(key),
        "SYNOD_PEERS": json.dumps(settings.peers),
        "SYNOD_SIMULATOR_URL": settings.simulator_url,
        "SYNOD_GRPC_PORT": str(port),
        "SYNOD_HTTP_PORT": str(free_port()),
        "SYNOD_EDGE_PORT": str(free_port()),
    }


async def ready(channel: PeerChannel) -> LlmGatewayStub:
    """The gateway behind the channel once it takes calls."""
    stub = LlmGatewayStub(channel)
    async with asyncio.timeout(WAIT_S):
        await channel.channel_ready()
        while True:
            try:
                await stub.ListModels(pb.ListModelsRequest())
                return stub
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)


def request() -> pb.GenerateRequest:
    messages = [
        pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text=f"answer: {ANSWER}")]),
        pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="go")]),
    ]
    return pb.GenerateRequest(request_id="req_1", model="simulator/sim-1", messages=messages)


async def events(served: Served[Settings]) -> list[log_pb.Event]:
    return list((await EventLogStub(served.channel).Read(log_pb.ReadRequest(page_size=100))).events)


@pytest.fixture
async def simulator() -> AsyncIterator[RunningSimulator]:
    async with running_simulator() as running:
        yield running


async def test_group_02_a_call_whose_process_is_killed_is_taken_over_and_unknown_to_the_ledger(
    postgres_dsn: str, nats_url: str, simulator: RunningSimulator, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    async with ledger() as address:
        settings = settings_for(
            Settings,
            postgres_dsn,
            nats_url,
            peers={"cost-ledger": address, "agent-registry": address},
            simulator_url=simulator.origin,
        )
        port = free_port()
        first_environment = environment_of(settings, write_public_key(key, tmp_path), port)
        async with serve_in_process(compose, settings, key=key) as served, process(first_environment) as first:
            terms = CallTerms(StaticToken(served.token()), SystemClock(), Limits(), Backoff())
            async with PeerChannel(f"127.0.0.1:{port}", terms) as channel:
                stub = await ready(channel)
                simulator.faults.plan(Fault(frame_delay_s=1))
                stream = stub.Stream(pb.StreamRequest(request=request()))
                assert (await stream.read()).WhichOneof("event") == "started"

                # The other process leaves the call to the one that lives.
                waiting = asyncio.create_task(LlmGatewayStub(served.channel).Generate(request(), timeout=WAIT_S))
                done, _ = await asyncio.wait([waiting], timeout=1)
                assert not done
                first.send_signal(signal.SIGKILL)
                answer = await waiting
                recorded = await events(served)

    assert answer.message.parts[0].text == ANSWER
    assert answer.reservation_id.endswith(":2")
    assert [event.type for event in recorded] == [
        "ModelCallAttemptStarted",
        "ModelCallAttemptFailed",
        "ModelCallAttemptStarted",
        "ModelCallCompleted",
    ]
    failed = json.loads(recorded[1].data)
    assert (failed["failure"]["reason"], failed["billed"]) == ("GATEWAY_STOPPED", "unknown")
