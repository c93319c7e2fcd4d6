"""The service as its clients see it: real gRPC, PostgreSQL and NATS, the provider simulator, a ledger that can refuse."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count

import grpc
import pytest
import pytest_asyncio
from eventlog.codec import Codec
from eventlog.postgres import PostgresEventLog
from eventlog.records import Append, Context, StreamId
from grpc.aio import AioRpcError
from launcher.testing import RunningNats, RunningPostgres
from llm_gateway.application import call_id
from llm_gateway.limits import LimitRule
from llm_gateway.main import compose
from llm_gateway.settings import Settings
from llm_gateway.stock_journal import StockJournal
from provider_simulator.faults import Fault
from provider_simulator.testing import RunningSimulator, running_simulator
from servicekit.clock import SystemClock
from servicekit.errors import (
    AlreadyExists,
    BudgetExhausted,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    from_rpc_error,
    trailers,
)
from servicekit.peers import PeerChannel
from servicekit.testing import Served, serve_in_process, settings_for
from synod.common.event import Event
from synod.common.values import Attribution
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerServicer, add_CostLedgerServicer_to_server
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway.events import EVENTS, ModelCallAccepted, ModelCallAttemptStarted
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

WAIT_S = 30
TENANTS = count(1)

# One service for all tests of this file, each in a tenant of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Ledger(CostLedgerServicer):
    """A ledger in this process that reserves everything but what `refusals` says."""

    reserved: list[ledger_pb.ReserveRequest] = field(default_factory=list)
    refusals: list[ServiceError] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)
    ahead: list[ledger_pb.ReserveRequest] = field(default_factory=list)
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

    async def ReserveMany(
        self, request: ledger_pb.ReserveManyRequest, context: grpc.aio.ServicerContext
    ) -> ledger_pb.ReserveManyResponse:  # type: ignore[override, type-arg]
        wanted = [item.reserve for item in request.items]
        (self.ahead if wanted[0].holder else self.reserved).extend(wanted)
        held = ledger_pb.RESERVATION_STATE_HELD
        outcomes = [ledger_pb.ReserveManyResponse.Outcome(state=held, holder=each.holder) for each in wanted]
        return ledger_pb.ReserveManyResponse(outcomes=outcomes)


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_ledger() -> AsyncIterator[Ledger]:
    async with serving(Ledger()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_simulator() -> AsyncIterator[RunningSimulator]:
    async with running_simulator() as running:
        yield running


@pytest.fixture
def ledger(shared_ledger: Ledger) -> Ledger:
    shared_ledger.reserved.clear()
    shared_ledger.refusals.clear()
    shared_ledger.tenants.clear()
    shared_ledger.ahead.clear()
    return shared_ledger


@pytest.fixture
def simulator(shared_simulator: RunningSimulator) -> RunningSimulator:
    shared_simulator.faults.clear()
    shared_simulator.usage.clear()
    return shared_simulator


def settings_of(dsn: str, nats_url: str, ledger: Ledger, simulator: RunningSimulator) -> Settings:
    return settings_for(
        Settings,
        dsn,
        nats_url,
        peers={"cost-ledger": ledger.address, "agent-registry": ledger.address},
        simulator_url=simulator.origin,
        reserve_ahead_s=0,  # each call for itself, but where a test wants it
        openai_api_key=None,
        anthropic_api_key="key-of-a-test",
        anthropic_base_url=simulator.anthropic_base_url,
        ollama_host="",
        vllm_url=simulator.openai_base_url,
        model_aliases={"scout": "simulator/sim-1"},
        rate_limits=(
            LimitRule("tenant", output_tokens_per_min=6_000_000, concurrent=50),
            LimitRule("tenant_model", models="simulator/sim-no-usage", requests_per_min=6),
        ),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    postgres_server: RunningPostgres, nats_url: str, shared_ledger: Ledger, shared_simulator: RunningSimulator
) -> AsyncIterator[Served[Settings]]:
    with postgres_server.fresh_database() as dsn:
        settings = settings_of(dsn, nats_url, shared_ledger, shared_simulator)
        async with serve_in_process(compose, settings) as served:
            yield served


@pytest.fixture
def own_settings(postgres_dsn: str, fresh_nats: RunningNats, ledger: Ledger, simulator: RunningSimulator) -> Settings:
    """For a service that the test itself starts and stops."""
    return settings_of(postgres_dsn, fresh_nats.url, ledger, simulator)


@pytest.fixture
def tenant() -> str:
    return f"gateway-{next(TENANTS)}"


@pytest.fixture
def channel(service: Served[Settings], tenant: str) -> PeerChannel:
    return service.connect(service.token(tenant=tenant))


@pytest.fixture
def stub(channel: PeerChannel, ledger: Ledger, simulator: RunningSimulator) -> LlmGatewayStub:
    """A client in a tenant of its own, of a gateway whose ledger and simulator have forgotten all before."""
    return LlmGatewayStub(channel)


def request(request_id: str = "req", script: str = "answer: {{input}}!", **more: object) -> pb.GenerateRequest:
    values: dict[str, object] = {
        "request_id": request_id,
        "model": "simulator/sim-1",
        "messages": [
            pb.Message(role=pb.ROLE_SYSTEM, parts=[pb.Part(text=script)]),
            pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text="Hello")]),
        ],
        "attribution": ledger_pb.Attribution(agent="scout", run_id="run_1", tags={"team": "search"}),
    }
    return pb.GenerateRequest(**(values | more))  # type: ignore[arg-type]


def streamed(asked: pb.GenerateRequest) -> pb.StreamRequest:
    return pb.StreamRequest(request=asked)


async def refused(call: object) -> ServiceError:
    with pytest.raises(AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def event_types(channel: PeerChannel) -> list[str]:
    answer = await EventLogStub(channel).Read(log_pb.ReadRequest(page_size=100))
    return [event.type for event in answer.events]


async def test_an_answer_is_reserved_before_and_recorded_after(
    channel: PeerChannel, stub: LlmGatewayStub, ledger: Ledger, tenant: str
) -> None:
    answer = await stub.Generate(request())

    assert answer.message.parts[0].text == "Hello!"
    assert (answer.finish_reason, answer.model, answer.simulated) == ("stop", "simulator/sim-1", True)
    assert answer.usage.source == "provider_final"
    assert sum(line.quantity for line in answer.usage.lines if line.direction == "input") == answer.usage.input_tokens
    (reserved,) = ledger.reserved
    assert reserved.reservation_id == answer.reservation_id
    assert (reserved.model, reserved.attribution.agent, ledger.tenants) == ("simulator/sim-1", "scout", [tenant])
    assert dict(reserved.attribution.tags) == {"team": "search"}
    assert reserved.input_tokens_max >= answer.usage.input_tokens
    assert reserved.output_tokens_max == 4096
    assert await event_types(channel) == ["ModelCallAttemptStarted", "ModelCallCompleted"]


async def test_what_the_price_depends_on_is_reserved(stub: LlmGatewayStub, ledger: Ledger) -> None:
    asked = request(service_tier="flex")
    asked.messages[1].parts.append(pb.Part(image=pb.Image(media_type="image/png", data=b"x")))
    await stub.Generate(asked)

    (reserved,) = ledger.reserved
    assert (dict(reserved.price_context), list(reserved.modalities)) == ({"service_tier": "flex"}, ["image"])


async def test_a_stream_begins_delivers_and_completes_once(stub: LlmGatewayStub) -> None:
    events = [event async for event in stub.Stream(streamed(request(script="answer: one two three")))]

    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[0].started.model == "simulator/sim-1"
    assert "".join(event.text_delta for event in events) == "one two three"
    assert [event.WhichOneof("event") for event in events].count("completed") == 1
    assert events[-1].completed.message.parts[0].text == "one two three"


async def test_tools_are_called_by_name_with_json(stub: LlmGatewayStub) -> None:
    script = '1. call lookup with {"city": "Zürich"}\nanswer: {{1.degrees}} degrees'
    tools = [pb.Tool(name="lookup", description="Temperature.", parameters_json='{"type": "object"}')]
    asked = request(script=script, tools=tools)
    events = [event async for event in stub.Stream(streamed(asked))]

    call = events[-1].completed.message.parts[0].tool_call
    assert (call.name, call.arguments_json) == ("lookup", '{"city":"Zürich"}')
    assert events[-1].completed.finish_reason == "tool_calls"
    assert "".join(event.tool_call_delta.arguments_delta for event in events) == call.arguments_json

    result = pb.ToolResult(tool_call_id=call.id, name="lookup", content='{"degrees": 21}')
    following = request("req2", script, tools=tools)
    following.messages.extend(
        [events[-1].completed.message, pb.Message(role=pb.ROLE_TOOL, parts=[pb.Part(tool_result=result)])]
    )
    assert (await stub.Generate(following)).message.parts[0].text == "21 degrees"


async def test_a_model_that_its_provider_does_not_know_is_refused_in_its_words(stub: LlmGatewayStub) -> None:
    error = await refused(stub.Generate(request(model="anthropic/claude-opus-5")))
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "PROVIDER_REFUSED"
    assert "anthropic: status 404" in error.message


async def test_group_18_a_repeat_is_answered_from_the_record_and_charged_once(
    stub: LlmGatewayStub, ledger: Ledger, simulator: RunningSimulator
) -> None:
    first = await stub.Generate(request())
    again = await stub.Generate(request())
    (streamed_again,) = [event async for event in stub.Stream(streamed(request()))]

    assert again.replayed
    assert not first.replayed
    assert streamed_again.completed == again
    again.replayed = False
    assert again == first
    assert (len(ledger.reserved), simulator.usage.total().requests) == (1, 1)


async def test_an_equal_request_is_answered_from_the_cache_and_shown_in_the_view(
    service: Served[Settings], channel: PeerChannel, stub: LlmGatewayStub, ledger: Ledger, simulator: RunningSimulator
) -> None:
    more = {"temperature": 0.0, "seed": 7}
    first = await stub.Generate(request("req1", "answer: one two", **more))
    events = [event async for event in stub.Stream(streamed(request("req2", "answer: one two", **more)))]
    unasked = await stub.Generate(request("req3", "answer: one two"))

    hit = events[-1].completed
    assert (first.cache, hit.cache, unasked.cache) == ("miss", "hit", "")
    assert (events[0].started.cache, events[1].text_delta) == ("hit", "one two")
    assert (hit.usage.source, hit.usage.input_tokens) == ("gateway_cache", first.usage.input_tokens)
    assert (len(ledger.reserved), simulator.usage.total().requests) == (2, 2)
    assert await event_types(channel) == [
        *["ModelCallAttemptStarted", "ModelCallCompleted"],
        "ModelCallServedFromCache",
        *["ModelCallAttemptStarted", "ModelCallCompleted"],
    ]


def embedding(request_id: str = "emb", *texts: str, **more: object) -> pb.EmbedRequest:
    owner = ledger_pb.Attribution(agent="scout")
    values: dict[str, object] = {"model": "simulator/sim-embed", "texts": texts or ("one", "two"), "attribution": owner}
    return pb.EmbedRequest(request_id=request_id, **(values | more))  # type: ignore[arg-type]


async def test_a_similar_request_is_answered_alike_where_service_and_caller_allow_it(
    own_settings: Settings, ledger: Ledger, simulator: RunningSimulator
) -> None:
    allowed = pb.CachePolicy(mode=pb.CACHE_MODE_ON, similar=True)
    settings = own_settings.model_copy(update={"similar_model": "simulator/sim-embed", "similar_likeness_min": 0.8})

    def said(request_id: str, text: str, cache: pb.CachePolicy = allowed) -> pb.GenerateRequest:
        asked = request(request_id, cache=cache)
        asked.messages[1].parts[0].text = text
        return asked

    async with serve_in_process(compose, settings) as served:
        stub = LlmGatewayStub(served.connect(served.token(tenant="similar")))
        first = await stub.Generate(said("one", "How warm is it in Rome today?"))
        alike = await stub.Generate(said("two", "how warm is it in Rome today"))
        other = await stub.Generate(said("three", "What does a flight to Oslo cost?"))
        exact = await stub.Generate(said("four", "how warm is it in Rome today", pb.CachePolicy(mode=pb.CACHE_MODE_ON)))

    assert (first.cache, alike.cache, other.cache, exact.cache) == ("miss", "hit", "miss", "miss")
    assert alike.message == first.message
    assert [one.model for one in ledger.reserved].count("simulator/sim-embed") == 3
    assert [one.model for one in ledger.reserved].count("simulator/sim-1") == 3


async def test_texts_are_embedded_reserved_by_their_tokens_and_charged_once(
    channel: PeerChannel, stub: LlmGatewayStub, ledger: Ledger, simulator: RunningSimulator
) -> None:
    found = await stub.Embed(embedding())
    again = await stub.Embed(embedding())

    assert [len(one.values) for one in found.embeddings] == [256, 256]
    assert (found.model, found.simulated, found.usage.output_tokens) == ("simulator/sim-embed", True, 0)
    assert (again.replayed, again.embeddings) == (True, found.embeddings)
    (reserved,) = ledger.reserved
    assert reserved.input_tokens_max >= found.usage.input_tokens == simulator.usage.total().input_tokens > 0
    assert (reserved.output_tokens_max, reserved.reservation_id) == (0, found.reservation_id)
    assert await event_types(channel) == ["ModelCallAttemptStarted", "ModelCallCompleted"]


async def test_equal_texts_are_embedded_once_by_those_who_allow_it(
    stub: LlmGatewayStub, simulator: RunningSimulator
) -> None:
    allowed = pb.CachePolicy(mode=pb.CACHE_MODE_ON)
    first = await stub.Embed(embedding("one", cache=allowed))
    second = await stub.Embed(embedding("two", cache=allowed))
    other = await stub.Embed(embedding("three", cache=allowed, dimensions=8))

    assert (first.cache, second.cache, other.cache) == ("miss", "hit", "miss")
    assert second.embeddings == first.embeddings
    assert simulator.usage.total().requests == 2


@pytest.mark.parametrize(
    ("more", "field"),
    [({"texts": ["a", ""]}, "texts[1]"), ({"dimensions": -1}, "dimensions"), ({"texts": []}, "texts")],
)
async def test_what_cannot_be_embedded_is_named(stub: LlmGatewayStub, more: dict[str, object], field: str) -> None:
    error = await refused(stub.Embed(embedding("emb", **more)))
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field


async def test_a_model_without_vectors_is_unknown_and_names_those_with(stub: LlmGatewayStub) -> None:
    error = await refused(stub.Embed(embedding(model="anthropic/claude-opus-5")))
    assert isinstance(error, NotFound)
    assert "embed" in error.message
    chat = await refused(stub.Generate(request(model="simulator/sim-embed")))
    assert (chat.reason, "sim-1" in chat.message) == ("UNKNOWN_MODEL", True)


async def test_a_failing_embedding_is_retried_and_its_last_failure_told(
    stub: LlmGatewayStub, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(status=529))
    assert len((await stub.Embed(embedding("again"))).embeddings) == 2
    refusal = await refused(stub.Embed(embedding("never", model="simulator/sim-401")))
    assert (refusal.reason, simulator.usage.total().requests) == ("PROVIDER_ACCOUNT_REFUSED", 3)


async def test_other_content_under_the_same_request_id_is_refused(stub: LlmGatewayStub) -> None:
    await stub.Generate(request())
    error = await refused(stub.Generate(request(script="answer: other")))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "REQUEST_ID_REUSED"
    assert "use a new one for new content" in error.message


async def test_a_rate_limit_is_waited_for_and_tried_again(
    channel: PeerChannel, stub: LlmGatewayStub, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(status=429, headers={"retry-after-ms": "50"}))

    answer = await stub.Generate(request())

    assert answer.reservation_id.endswith(":2")
    assert (await event_types(channel))[1:3] == ["ModelCallAttemptFailed", "ModelCallAttemptStarted"]


async def test_a_rate_limit_beyond_the_deadline_says_when_to_come_back(
    stub: LlmGatewayStub, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(status=429, retry_after="3600"))

    # Not the model of the other tests: it is left alone for a while.
    error = await refused(stub.Generate(request(model="vllm/sim-1"), timeout=20))

    assert isinstance(error, ResourceExhausted)
    assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", 3600)


async def test_a_limit_set_here_refuses_what_it_cannot_serve_before_the_deadline(
    stub: LlmGatewayStub, ledger: Ledger
) -> None:
    await stub.Generate(request("first", model="simulator/sim-no-usage"))

    error = await refused(stub.Generate(request("second", model="simulator/sim-no-usage"), timeout=3))

    assert isinstance(error, ResourceExhausted)
    assert error.reason == "RATE_LIMITED"
    assert error.retry_after_s == pytest.approx(9, abs=2)
    assert len(ledger.reserved) == 1


async def test_a_fallback_answers_for_a_model_that_is_down(stub: LlmGatewayStub, simulator: RunningSimulator) -> None:
    asked = request(model="simulator/sim-401", fallback_models=["scout"])

    answer = await stub.Generate(asked)

    assert answer.model == "simulator/sim-1"
    assert simulator.usage.totals["sim-401"].failed == 1


async def test_group_08_a_stream_that_breaks_after_content_ends_in_one_error(
    channel: PeerChannel, stub: LlmGatewayStub
) -> None:
    asked = request(model="simulator/sim-cut", script="answer: one two three four five six")

    events = [event async for event in stub.Stream(streamed(asked))]

    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "error")
    assert (events[-1].error.reason, events[-1].error.retryable) == ("PROVIDER_UNAVAILABLE", True)
    assert (await event_types(channel))[-2:] == ["ModelCallAttemptFailed", "ModelCallFailed"]


async def test_a_caller_who_leaves_does_not_stop_what_is_paid_for(
    channel: PeerChannel, stub: LlmGatewayStub, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(frame_delay_s=0.005))
    asked = request(script="answer: " + "word " * 50)
    stream = stub.Stream(streamed(asked))
    assert (await stream.read()).WhichOneof("event") == "started"
    stream.cancel()

    async with asyncio.timeout(WAIT_S):
        while (await event_types(channel))[-1] != "ModelCallCompleted":
            continue
    answer = await stub.Generate(asked)
    assert answer.message.parts[0].text.count("word") == 50
    assert simulator.usage.total().answered == 1


async def test_a_call_past_its_deadline_says_so_and_is_answered_later(
    stub: LlmGatewayStub, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(first_byte_delay_s=0.5))
    error = await refused(stub.Generate(request(), timeout=0.2))
    assert isinstance(error, DeadlineExceeded)
    assert "repeat with a longer one (same request id)" in error.message

    answer = await stub.Generate(request(), timeout=WAIT_S)

    assert answer.message.parts[0].text == "Hello!"
    assert simulator.usage.total().requests == 1


async def test_an_exhausted_budget_reaches_the_caller_unchanged(
    channel: PeerChannel, stub: LlmGatewayStub, ledger: Ledger, simulator: RunningSimulator
) -> None:
    ledger.refusals.append(BudgetExhausted("bdg_1", available=5, required=900))

    error = await refused(stub.Generate(request()))

    assert isinstance(error, BudgetExhausted)
    assert (error.budget_id, error.available, error.required) == ("bdg_1", 5, 900)
    assert error.domain == "synod.cost-ledger"
    assert simulator.usage.total().requests == 0
    assert await event_types(channel) == []


async def test_group_04_a_ledger_that_stumbles_is_asked_again(stub: LlmGatewayStub, ledger: Ledger) -> None:
    ledger.refusals.extend([Unavailable("starting", 0.1)] * 2)
    assert (await stub.Generate(request())).finish_reason == "stop"


async def test_group_04_without_a_ledger_nothing_is_spent(
    stub: LlmGatewayStub, ledger: Ledger, simulator: RunningSimulator
) -> None:
    ledger.refusals.extend([Unavailable("down", 0.1)] * 50)

    error = await refused(stub.Generate(request()))

    assert isinstance(error, Unavailable)
    assert error.reason == "LEDGER_UNAVAILABLE"
    assert simulator.usage.total().requests == 0


async def test_refusals_name_what_is_wrong_and_what_to_do(stub: LlmGatewayStub) -> None:
    message = [pb.Message(role=pb.ROLE_USER, parts=[pb.Part()])]
    cases = [
        (request(model="simulator/sim1"), NotFound, "did you mean simulator/sim-1"),
        (request(model="sim-1"), NotFound, "did you mean simulator/sim-1"),
        (request(model="openai/gpt-5-mini"), FailedPrecondition, "set OPENAI_API_KEY"),
        (request(model="ollama/qwen3"), FailedPrecondition, "set OLLAMA_HOST"),
        (request(fallback_models=["nope"]), NotFound, "no model 'nope'"),
        (request(""), InvalidArgument, "request_id"),
        (request("r" * 129), InvalidArgument, "1 to 128 characters"),
        (request(messages=[]), InvalidArgument, "messages"),
        (request(messages=message), InvalidArgument, "messages[0].parts[0]"),
        (request(messages=[pb.Message()]), InvalidArgument, "messages[0].role"),
        (request(tools=[pb.Tool(name="x", parameters_json="{")]), InvalidArgument, "tools[0].parameters_json"),
        (request(tools=[pb.Tool(name="x", parameters_json="[]")]), InvalidArgument, "JSON object"),
        (request(tools=[pb.Tool(name="x"), pb.Tool(name="x")]), InvalidArgument, "more than once"),
        (request(tools=[pb.Tool(name="x", prompt_cache_ttl="2h")]), InvalidArgument, "tools[0].prompt_cache_ttl"),
        (request(prompt_cache_ttl="1d"), InvalidArgument, "prompt_cache_ttl"),
        (request(tool_choice="lookup"), InvalidArgument, "must be one of auto, none, required"),
        (request(output_format=pb.OutputFormat(kind="xml")), InvalidArgument, "output_format.kind"),
        (request(temperature=3), InvalidArgument, "must be from 0 to 2"),
        (request(top_p=2), InvalidArgument, "must be from 0 to 1"),
        (request(max_output_tokens=-1), InvalidArgument, "max_output_tokens"),
        (request(fallback_models=["scout"] * 6), InvalidArgument, "at most 5"),
        (request(attribution=ledger_pb.Attribution(tenant_id="x")), InvalidArgument, "attribution.tenant_id"),
        (request(attribution=ledger_pb.Attribution(tags={"2": "x"})), InvalidArgument, "attribution.tags"),
    ]
    for asked, kind, words in cases:
        error = await refused(stub.Generate(asked))
        assert isinstance(error, kind), asked
        assert words in error.message


async def test_a_provider_that_refuses_is_quoted(stub: LlmGatewayStub) -> None:
    error = await refused(stub.Generate(request(model="simulator/sim-400")))
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "PROVIDER_REFUSED"
    assert "status 400" in error.message


async def test_models_are_listed_with_what_is_missing(stub: LlmGatewayStub) -> None:
    models = {model.id: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}

    assert models["simulator/sim-1"].simulated
    assert list(models["simulator/sim-1"].aliases) == ["scout"]
    assert models["anthropic/claude-opus-5"].available
    assert models["openai/gpt-5-mini"].unavailable_reason == "set OPENAI_API_KEY"
    only = await stub.ListModels(pb.ListModelsRequest(provider="anthropic"))
    assert {model.provider for model in only.models} == {"anthropic"}


async def test_auto_is_answered_though_models_of_vectors_are_listed_too(stub: LlmGatewayStub) -> None:
    models = {model.id: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}
    assert models["simulator/sim-embed"].available

    routing = pb.RoutingPolicy(required_capabilities=["tools"])
    assert (await stub.Generate(request(model="auto", routing=routing))).model == "simulator/sim-1"


async def test_tokens_are_bounded_without_asking_anybody(stub: LlmGatewayStub, simulator: RunningSimulator) -> None:
    asked = request()
    counted = await stub.CountTokens(pb.CountTokensRequest(model=asked.model, messages=asked.messages))

    assert counted.method == "upper_bound"
    assert counted.input_tokens >= (await stub.Generate(asked)).usage.input_tokens
    assert simulator.usage.total().requests == 1


async def test_tokens_are_counted_by_the_provider_where_it_does_so_for_free(stub: LlmGatewayStub) -> None:
    asked = request()
    exact = await stub.CountTokens(
        pb.CountTokensRequest(model="anthropic/claude-opus-5", messages=asked.messages, exact=True)
    )
    bound = await stub.CountTokens(pb.CountTokensRequest(model=asked.model, messages=asked.messages, exact=True))

    assert (exact.method, bound.method) == ("provider", "upper_bound")
    assert 0 < exact.input_tokens < bound.input_tokens


async def test_no_event_holds_content_or_a_key(channel: PeerChannel, stub: LlmGatewayStub) -> None:
    await stub.Generate(request(script="answer: a secret word"))
    await refused(stub.Generate(request("other", model="anthropic/claude-opus-5")))

    events = (await EventLogStub(channel).Read(log_pb.ReadRequest(page_size=100))).events

    text = b"".join(event.SerializeToString() for event in events)
    assert b"secret word" not in text
    assert b"key-of-a-test" not in text


async def test_group_05_views_equal_views_rebuilt_from_the_log(channel: PeerChannel, stub: LlmGatewayStub) -> None:
    await stub.Generate(request())
    await refused(stub.Generate(request("failing", model="simulator/sim-400")))
    log = EventLogStub(channel)

    views = (await log.ListViews(log_pb.ListViewsRequest())).views

    assert {view.name for view in views} == {"reservations"}
    for view in views:
        assert (await log.VerifyView(log_pb.VerifyViewRequest(name=view.name))).equal
    assert (await log.Verify(log_pb.VerifyRequest())).ok


async def test_a_call_cut_short_by_a_stop_is_answered_after_the_next_start(
    own_settings: Settings, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(first_byte_delay_s=30))
    async with serve_in_process(compose, own_settings) as first:
        caller = asyncio.ensure_future(LlmGatewayStub(first.channel).Generate(request()))
        async with asyncio.timeout(WAIT_S):
            # Until the provider has the request: else the fault that delays it would meet the next.
            while not await event_types(first.channel) or simulator.faults.pending():
                continue
        caller.cancel()
    async with serve_in_process(compose, own_settings) as second:
        answer = await LlmGatewayStub(second.channel).Generate(request())
        assert answer.reservation_id.endswith(":2")
        assert (await event_types(second.channel))[1] == "ModelCallAttemptFailed"


async def test_a_start_ends_the_attempts_that_a_crash_left_running(own_settings: Settings) -> None:
    log = await PostgresEventLog.open(own_settings.postgres_dsn.get_secret_value())
    codec: Codec[Event] = Codec(EVENTS)
    attribution = Attribution(tenant_id="local", run_id="run_1")
    # As two events, which is how it was written before.
    accepted = ModelCallAccepted(
        request_id="req",
        model="simulator/sim-1",
        attribution=attribution,
        request_sha256="aa",
        input_tokens_max=1,
        output_tokens_max=1,
    )
    started = ModelCallAttemptStarted(
        request_id="req",
        attempt=1,
        model="simulator/sim-1",
        provider="simulator",
        reservation_id="mc:1",
        attribution=attribution,
    )
    new = tuple(codec.encode(event, at=datetime.now(UTC)) for event in (accepted, started))
    await log.append(
        Append(StreamId("model-call", call_id("local", "req")), 0, new, Context("local", "usr_ada", "run_1"))
    )
    await log.close()

    async with serve_in_process(compose, own_settings) as service, asyncio.timeout(WAIT_S):
        while (await event_types(service.channel))[-1] != "ModelCallAttemptFailed":
            continue
        (ended,) = (await EventLogStub(service.channel).Read(log_pb.ReadRequest(after_position=2))).events
        assert (ended.tenant, ended.correlation_id, ended.actor) == ("local", "run_1", "llm-gateway")
        assert b'"billed":"unknown"' in ended.data


async def test_a_stop_closes_the_stocks_of_the_process_after_its_calls_have_ended(
    own_settings: Settings, simulator: RunningSimulator
) -> None:
    simulator.faults.plan(Fault(first_byte_delay_s=30))
    log = await PostgresEventLog.open(own_settings.postgres_dsn.get_secret_value())
    journal = StockJournal(log, Codec(EVENTS), SystemClock())
    async with serve_in_process(compose, own_settings) as service:
        caller = asyncio.ensure_future(LlmGatewayStub(service.channel).Generate(request()))
        async with asyncio.timeout(WAIT_S):
            while not (stored := await log.read()):
                continue
        worker = json.loads(stored[0].data)["worker"]
        await journal.opened("local", f"{worker}.1")
        await journal.opened("local", "gw_another.1")
        caller.cancel()

    told = (await log.read())[1:]
    await log.close()
    assert sorted(each.type for each in told[:2]) == ["ReservationStockOpened"] * 2
    assert [each.type for each in told[2:]] == ["ModelCallAttemptFailed", "ReservationStockClosed"]
    assert json.loads(told[-1].data)["holder"] == f"{worker}.1"


async def test_who_calls_often_uses_what_was_reserved_ahead_and_the_rest_comes_back(
    own_settings: Settings, ledger: Ledger
) -> None:
    """Each reservation is used by one call, returned, or left to the close, which is the last word of the process."""
    often = own_settings.model_copy(update={"reserve_ahead_s": 0.2})
    async with serve_in_process(compose, often) as served:
        stub, log = LlmGatewayStub(served.channel), EventLogStub(served.channel)
        answers = [await stub.Generate(request(f"req{number}")) for number in range(40)]
        returned: set[str] = set()
        async with asyncio.timeout(10):
            while not returned:
                returned = returned_in((await log.Read(log_pb.ReadRequest(page_size=200))).events)
        answers += [await stub.Generate(request(f"again{number}")) for number in range(3)]
    async with serve_in_process(compose, own_settings) as served:
        events = (await EventLogStub(served.channel).Read(log_pb.ReadRequest(page_size=200))).events

    used = [answer.reservation_id for answer in answers]
    ahead = {each.reservation_id for each in ledger.ahead}
    assert len(set(used)) == len(used)
    assert len(ahead & set(used)) > 20
    assert len(ledger.reserved) + len(ahead & set(used)) == len(used)
    returned = returned_in(events)
    assert returned <= ahead - set(used)
    told = [event.type for event in events if event.type.startswith("Reservation")]
    assert (told[0], told[-1], events[-1].type) == ("ReservationStockOpened", "ReservationStockClosed", told[-1])
    assert told.count("ReservationStockOpened") == told.count("ReservationStockClosed") == 1


def returned_in(events: Iterable[log_pb.Event]) -> set[str]:
    told = [json.loads(event.data) for event in events if event.type == "ReservationsReturned"]
    return {id for each in told for id in each["reservation_ids"]}
