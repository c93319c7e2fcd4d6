"""The APIs of OpenAI and Anthropic at llm-gateway itself: what a call is here, it is by gRPC, and the other way round."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import get_args, get_type_hints
from uuid import uuid4

import aiohttp
import grpc
import openai
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from anthropic.types import ContentBlockParam
from google.protobuf.timestamp_pb2 import Timestamp
from httpedge.compatible import anthropic_reasoning, sizes
from launcher.processes import Warden, free_port
from launcher.testing import RunningNats, RunningPostgres, running_nats
from llm_gateway import translate
from llm_gateway.main import compose
from llm_gateway.providers import opaque
from llm_gateway.settings import EdgeLimits, Settings
from openai import AsyncOpenAI
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator, running_simulator
from servicekit.app import StartFailed
from servicekit.errors import BudgetExhausted, ServiceError, Unauthenticated, trailers
from servicekit.testing import Served, serve_in_process, settings_for
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import (
    AgentRegistryServicer,
    add_AgentRegistryServicer_to_server,
)
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerServicer, add_CostLedgerServicer_to_server
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway.opaque import ANTHROPIC_BLOCKS
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

# One service for all tests of this file, each in a tenant of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")
WAIT_S = 30
STATUS = re.compile(rb"HTTP/1\.1 (\d+) ")
MODEL = "simulator/sim-1"
TENANTS = count(1)
CALL_TYPES = ["ModelCallAttemptStarted", "ModelCallCompleted"]


@dataclass
class Peers(AgentRegistryServicer, CostLedgerServicer):
    """The two services behind the gateway: `keys` are tokens by API key, and `refusals` what the ledger says first."""

    keys: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    reserved: list[ledger_pb.ReserveRequest] = field(default_factory=list)
    refusals: list[ServiceError] = field(default_factory=list)

    async def Authenticate(self, request, context):
        self.asked.append(request.api_key)
        if request.api_key not in self.keys:
            error = Unauthenticated("the API key is not known", reason="KEY_UNKNOWN")
            await context.abort(error.code, error.message, trailers(error, "agent-registry"))
        expires = Timestamp()
        expires.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        return registry_pb.AuthenticateResponse(token=self.keys[request.api_key], expires_at=expires)

    async def Reserve(self, request, context):
        if self.refusals:
            refusal = self.refusals.pop(0)
            await context.abort(refusal.code, refusal.message, trailers(refusal, "cost-ledger"))
        self.reserved.append(request)
        return ledger_pb.Reservation(reservation_id=request.reservation_id, state=ledger_pb.RESERVATION_STATE_HELD)


@asynccontextmanager
async def serving(peers: Peers) -> AsyncIterator[str]:
    server = grpc.aio.server()
    add_AgentRegistryServicer_to_server(peers, server)
    add_CostLedgerServicer_to_server(peers, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@dataclass
class Door:
    """The running gateway with its edge, and one tenant in it."""

    served: Served[Settings]
    peers: Peers
    simulator: RunningSimulator
    url: str
    tenant: str

    def key(self, *permissions: str) -> str:
        """An API key of the tenant."""
        key = f"syn_{self.tenant}_{len(self.peers.keys)}"
        self.peers.keys[key] = self.served.token(permissions or ("*",), self.tenant, id="usr_edge")
        return key

    def openai(self, key: str = "", **options: object) -> AsyncOpenAI:
        return AsyncOpenAI(api_key=key or self.key(), base_url=f"{self.url}/v1", **options)  # type: ignore[arg-type]

    def grpc(self) -> LlmGatewayStub:
        return LlmGatewayStub(self.served.connect(self.served.token(tenant=self.tenant)))

    async def raw(self, data: bytes) -> bytes:
        """All that is answered on one connection until it ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.served.host.settings.edge_port)
        writer.write(data)
        async with asyncio.timeout(WAIT_S):
            answers = await reader.read()
        writer.close()
        return answers

    async def events(self) -> list[log_pb.Event]:
        channel = self.served.connect(self.served.token(tenant=self.tenant))
        return list((await EventLogStub(channel).Read(log_pb.ReadRequest(page_size=100))).events)

    async def types(self) -> list[str]:
        return [event.type for event in await self.events()]

    async def ends_with(self, type: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while (await self.types())[-1:] != [type]:
                continue


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what happens elsewhere in this process, at most WAIT_S."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def settings_of(dsn: str, nats_url: str, address: str, simulator: RunningSimulator, **more: object) -> Settings:
    return settings_for(
        Settings,
        dsn,
        nats_url,
        peers={"cost-ledger": address, "agent-registry": address},
        simulator_url=simulator.origin,
        reserve_ahead_s=0,  # each call for itself
        openai_api_key=None,
        **{"edge_port": free_port(), **more},
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(
    postgres_server: RunningPostgres, launcher_directory: Path, launcher_warden: Warden
) -> AsyncIterator[Door]:
    peers, directory = Peers(), launcher_directory / f"nats-{uuid4().hex}"
    with postgres_server.fresh_database() as dsn, running_nats(directory, launcher_warden) as nats:
        async with serving(peers) as address, running_simulator() as simulator:
            settings = settings_of(
                dsn, nats.url, address, simulator, edge=EdgeLimits(call_s=1, body_bytes_max=4096, keys_cached_max=2)
            )
            async with serve_in_process(compose, settings) as served:
                yield Door(served, peers, simulator, f"http://127.0.0.1:{settings.edge_port}", "")


@pytest.fixture
def door(started: Door) -> Door:
    started.simulator.faults.clear()
    started.simulator.usage.clear()
    started.peers.refusals.clear()
    started.peers.reserved.clear()
    started.tenant = f"edge-{next(TENANTS)}"
    return started


def said(script: str = "answer: {{input}}!") -> list[dict[str, str]]:
    return [{"role": "system", "content": script}, {"role": "user", "content": "Hello"}]


async def test_a_call_here_is_the_same_events_as_by_grpc(door: Door) -> None:
    """Of the same caller, with the same attribution, in the same order."""
    tags = {"synod-tags": "team=search", "idempotency-key": "req_edge"}
    async with door.openai() as sdk:
        answer = await sdk.chat.completions.create(model=MODEL, messages=said(), extra_headers=tags)
    assert answer.choices[0].message.content == "Hello!"
    here = await door.events()

    messages = [
        pb.Message(role=role, parts=[pb.Part(text=text)])
        for role, text in ((pb.ROLE_SYSTEM, "answer: {{input}}!"), (pb.ROLE_USER, "Hello"))
    ]
    owner = ledger_pb.Attribution(user_id="usr_edge", tags={"team": "search"})
    channel = door.served.connect(door.served.token(tenant=door.tenant, id="usr_edge"))
    asked = pb.GenerateRequest(request_id="req_grpc", model=MODEL, messages=messages, attribution=owner)
    await LlmGatewayStub(channel).Generate(asked)
    there = (await door.events())[len(here) :]

    assert [event.type for event in here] == [event.type for event in there] == CALL_TYPES
    assert {(event.actor, event.correlation_id) for event in here} == {
        (event.actor, event.correlation_id) for event in there
    }
    reservations = door.peers.reserved
    assert len(reservations) == 2
    assert reservations[0].attribution == reservations[1].attribution


async def test_what_was_answered_here_is_repeated_by_either_way(door: Door) -> None:
    async with door.openai() as sdk:
        named = {"idempotency-key": "req_1"}
        first = await sdk.chat.completions.create(model=MODEL, messages=said(), extra_headers=named)
        again = await sdk.chat.completions.create(model=MODEL, messages=said(), extra_headers=named)
    assert again.choices[0].message.content == first.choices[0].message.content
    assert door.simulator.usage.total().requests == 1
    assert await door.types() == CALL_TYPES


async def test_a_stream_comes_in_pieces_and_is_recorded(door: Door) -> None:
    async with door.openai() as sdk:
        stream = await sdk.chat.completions.create(model=MODEL, messages=said("answer: one two three"), stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(pieces) == "one two three"
    assert await door.types() == CALL_TYPES


async def test_the_form_of_anthropic_and_the_counting_of_tokens(door: Door) -> None:
    async with AsyncAnthropic(api_key=door.key(), base_url=door.url) as sdk:
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "system": "answer: {{input}}!"}
        answer = await sdk.messages.create(max_tokens=10, **asked)  # type: ignore[arg-type]
        counted = await sdk.messages.count_tokens(**asked)  # type: ignore[arg-type]
        models = await sdk.models.list()
    assert answer.content[0].text == "Hello!"  # type: ignore[union-attr]
    assert counted.input_tokens > 0
    assert MODEL in {model.id for model in models.data}


async def test_vectors(door: Door) -> None:
    async with door.openai() as sdk:
        found = await sdk.embeddings.create(model="simulator/sim-embed", input=["Hello"], dimensions=8)
    assert len(found.data[0].embedding) == 8


async def test_a_key_is_exchanged_once_and_kept_for_as_many_as_there_is_room(door: Door) -> None:
    keys = [door.key() for _ in range(3)]
    door.peers.asked.clear()
    for key in (keys[0], keys[0], keys[1], keys[2], keys[0]):
        async with door.openai(key) as sdk:
            await sdk.models.list()
    assert door.peers.asked == [keys[0], keys[1], keys[2], keys[0]]


async def test_a_token_is_taken_as_it_is(door: Door) -> None:
    door.peers.asked.clear()
    async with door.openai(door.served.token(tenant=door.tenant)) as sdk:
        await sdk.chat.completions.create(model=MODEL, messages=said())
    assert door.peers.asked == []
    assert await door.types() == CALL_TYPES


@pytest.mark.parametrize(
    ("credential", "reason"),
    [({}, "credential_missing"), ({"authorization": "Bearer syn_of_nobody"}, "invalid_api_key")],
)
async def test_who_is_not_known_is_refused(door: Door, credential: dict[str, str], reason: str) -> None:
    body = {"model": MODEL, "messages": said()}
    http = aiohttp.ClientSession(door.url, headers=credential)
    async with http, http.post("/v1/chat/completions", json=body) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (401, reason)
    assert door.simulator.usage.total().requests == 0


async def test_who_may_not_is_refused_as_by_grpc(door: Door) -> None:
    async with door.openai(door.key("models.read")) as sdk:
        await sdk.models.list()
        for refused in (
            sdk.chat.completions.create(model=MODEL, messages=said()),
            sdk.chat.completions.create(model=MODEL, messages=said(), stream=True),
            sdk.embeddings.create(model="simulator/sim-embed", input="Hello"),
        ):
            with pytest.raises(openai.PermissionDeniedError, match=r"models\.generate"):
                await refused
    async with door.openai(door.key("models.generate")) as sdk:
        with pytest.raises(openai.PermissionDeniedError, match=r"models\.read"):
            await sdk.models.list()
    assert await door.types() == []


async def test_a_service_of_all_tenants_does_not_come_by_this_door(door: Door) -> None:
    token = door.served.token(tenant="*", kind="service", id="service:agent-runtime")
    async with door.openai(token) as sdk:
        with pytest.raises(openai.PermissionDeniedError, match="by gRPC, not by the edge"):
            await sdk.models.list()


async def test_an_exhausted_budget_is_402_and_not_repeated(door: Door) -> None:
    door.peers.refusals.append(BudgetExhausted("bdg_1", available=5, required=900))
    async with door.openai() as sdk:
        with pytest.raises(openai.APIStatusError, match="bdg_1") as refused:
            await sdk.chat.completions.create(model=MODEL, messages=said())
    assert refused.value.status_code == 402
    assert (door.simulator.usage.total().requests, await door.types()) == (0, [])


async def test_refusals_of_the_gateway_keep_their_status_and_words(door: Door) -> None:
    async with door.openai() as sdk:
        with pytest.raises(openai.NotFoundError, match="did you mean simulator/sim-1"):
            await sdk.chat.completions.create(model="simulator/sim1", messages=said())
        with pytest.raises(openai.NotFoundError, match="did you mean simulator/sim-1"):
            await sdk.chat.completions.create(model="simulator/sim1", messages=said(), stream=True)
        with pytest.raises(openai.BadRequestError, match="set OLLAMA_HOST"):
            await sdk.chat.completions.create(model="ollama/qwen3", messages=said())
        with pytest.raises(openai.BadRequestError, match=r"idempotency-key = .*at most 128 characters, not 129"):
            long = {"idempotency-key": "k" * 129}
            await sdk.chat.completions.create(model=MODEL, messages=said(), extra_headers=long)


async def test_a_provider_that_breaks_after_content_breaks_the_stream(door: Door) -> None:
    async with door.openai() as sdk:
        stream = await sdk.chat.completions.create(model="simulator/sim-cut", messages=said(), stream=True)
        with pytest.raises(openai.APIError):
            async for _ in stream:
                pass
    assert (await door.types())[-1] == "ModelCallFailed"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_takes_too_long_is_504_and_its_answer_is_kept(door: Door, stream: bool) -> None:
    door.simulator.faults.plan(Fault(first_byte_delay_s=1.5))
    named = {"idempotency-key": "req_late"}
    async with door.openai(max_retries=0) as sdk:
        with pytest.raises(openai.APIStatusError, match="longer than the 1 s it may take") as late:
            await sdk.chat.completions.create(model=MODEL, messages=said(), stream=stream, extra_headers=named)
        assert late.value.status_code == 504
        await door.ends_with("ModelCallCompleted")
        answer = await sdk.chat.completions.create(model=MODEL, messages=said(), extra_headers=named)
    assert answer.choices[0].message.content == "Hello!"
    assert door.simulator.usage.total().requests == 1


async def test_a_client_who_leaves_does_not_stop_what_is_paid_for(door: Door) -> None:
    door.simulator.faults.plan(Fault(first_byte_delay_s=0.2))
    async with door.openai() as sdk:
        asking = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=said()))
        await until(lambda: door.simulator.usage.total().requests > 0)
        asking.cancel()
        await asyncio.wait([asking])
    await door.ends_with("ModelCallCompleted")


async def test_a_client_who_leaves_a_stream_does_not_stop_it_either(door: Door) -> None:
    door.simulator.faults.plan(Fault(frame_delay_s=0.01))
    async with door.openai() as sdk:
        script = said("answer: " + "word " * 20)
        stream = await sdk.chat.completions.create(model=MODEL, messages=script, stream=True)
        await anext(aiter(stream))
        await stream.close()
    await door.ends_with("ModelCallCompleted")


async def test_a_body_over_the_limit_and_an_unknown_path(door: Door) -> None:
    async with aiohttp.ClientSession(door.url, headers={"authorization": f"Bearer {door.key()}"}) as http:
        async with http.post("/v1/chat/completions", data=b"x" * 5000) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")
            assert answer.headers["x-should-retry"] == "false"
        async with http.get("/api/v1/agents") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (404, "not_found")


async def test_the_edge_takes_as_much_as_the_gateway_does(door: Door) -> None:
    assert (sizes.MESSAGES_MAX, sizes.TOOLS_MAX) == (translate.MESSAGES_MAX, translate.TOOLS_MAX)
    most = translate.OUTPUT_TOKENS_MAX
    async with aiohttp.ClientSession(door.url, headers={"authorization": f"Bearer {door.key()}"}) as http:
        for tokens, status in ((most, 200), (most + 1, 400)):
            body = {"model": MODEL, "messages": said(), "max_tokens": tokens}
            async with http.post("/v1/chat/completions", json=body) as answer:
                assert answer.status == status, await answer.text()
                param = None if status == 200 else (await answer.json())["error"]["param"]
            assert param == (None if status == 200 else "max_tokens")


_SAID_TO_ANTHROPIC = {get_args(get_type_hints(block)["type"])[0] for block in get_args(ContentBlockParam)}


@pytest.mark.parametrize("type", sorted(_SAID_TO_ANTHROPIC.union(ANTHROPIC_BLOCKS, ["connector_text"])))
async def test_the_edge_gives_back_to_anthropic_what_the_gateway_does(type: str) -> None:
    taken = opaque.problem(anthropic_reasoning.OWN, json.dumps({"type": type}).encode()) is None
    assert (type in ANTHROPIC_BLOCKS) == taken


async def test_a_balancer_may_ask_whether_to_send_requests_here(door: Door) -> None:
    async with aiohttp.ClientSession(door.url) as http, http.get("/ready") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


UPGRADE = b"connection: close, upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: a2V5"


@pytest.mark.parametrize(
    "head", [b"OPTIONS * HTTP/1.1\r\nconnection: close", b"GET /v1/responses HTTP/1.1\r\n" + UPGRADE]
)
async def test_what_only_another_server_would_answer_is_no_defect_of_this_one(door: Door, head: bytes) -> None:
    assert STATUS.findall(await door.raw(head + b"\r\nhost: edge\r\n\r\n")) == [b"404"]


async def test_a_request_behind_another_has_its_own_time(door: Door) -> None:
    """And nothing else of the call before it, by whose end it is begun."""
    door.simulator.faults.plan(Fault(first_byte_delay_s=0.5))
    body = b'{"model": "%b", "messages": [{"role": "user", "content": "Hello"}]}' % MODEL.encode()
    impatient = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nx-api-key: %b\r\nx-stainless-read-timeout: 0.1\r\n"
        b"content-length: %d\r\n\r\n%b" % (door.key().encode(), len(body), body)
    )
    behind = b"GET /v1/models HTTP/1.1\r\nhost: edge\r\nx-api-key: %b\r\nconnection: close\r\n\r\n"
    answers = await door.raw(impatient + behind % door.key().encode())
    assert STATUS.findall(answers) == [b"504", b"200"]


async def test_answers_are_counted(door: Door) -> None:
    def counted() -> float:
        labels = {"method": "GET", "status": "200"}
        return door.served.host.metrics.registry.get_sample_value("edge_requests_total", labels) or 0

    before = counted()
    async with door.openai() as sdk:
        await sdk.models.list()
    assert counted() == before + 1


async def test_a_port_that_is_taken_ends_the_start_with_its_name(postgres_dsn: str, fresh_nats: RunningNats) -> None:
    async with serving(Peers()) as address, running_simulator() as simulator:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = settings_of(postgres_dsn, fresh_nats.url, address, simulator, edge_port=taken.getsockname()[1])
            with pytest.raises(StartFailed, match="SYNOD_EDGE_PORT"):
                async with serve_in_process(compose, settings):
                    pass


async def test_a_call_under_way_is_answered_by_a_gateway_that_stops(postgres_dsn: str, fresh_nats: RunningNats) -> None:
    peers = Peers()
    async with serving(peers) as address, running_simulator() as simulator:
        settings = settings_of(postgres_dsn, fresh_nats.url, address, simulator, shutdown_grace_s=10)
        async with serve_in_process(compose, settings) as served:
            url = f"http://127.0.0.1:{settings.edge_port}"
            simulator.faults.plan(Fault(first_byte_delay_s=0.5))
            sdk = AsyncOpenAI(api_key=served.token(tenant="edge-stop"), base_url=f"{url}/v1", max_retries=0)
            asking = asyncio.create_task(sdk.chat.completions.create(model=MODEL, messages=said()))
            await until(lambda: simulator.usage.total().requests > 0)
        answer = await asking
        await sdk.close()
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection("127.0.0.1", settings.edge_port)
    assert answer.choices[0].message.content == "Hello!"


async def test_a_gateway_that_stops_lets_nobody_in_while_its_calls_finish(
    postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    peers = Peers()
    async with serving(peers) as address, running_simulator() as simulator, AsyncExitStack() as running:
        settings = settings_of(postgres_dsn, fresh_nats.url, address, simulator, shutdown_grace_s=10)
        served = await running.enter_async_context(serve_in_process(compose, settings))
        simulator.faults.plan(Fault(first_byte_delay_s=1.5))
        asked = pb.GenerateRequest(
            request_id="req_stop", model=MODEL, messages=[pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hello")])]
        )
        caller = (("authorization", f"Bearer {served.token(tenant='edge-stop')}"),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.host.grpc_port}") as channel:
            asking = asyncio.ensure_future(LlmGatewayStub(channel).Generate(asked, metadata=caller))
            await until(lambda: bool(peers.reserved))
            stopping = asyncio.create_task(running.aclose())
            await until(lambda: not listens(settings.edge_port))
            assert not asking.done()
            assert (await asking).message.parts[0].text
            await stopping


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
