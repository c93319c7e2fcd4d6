"""The service as its clients see it: real gRPC, PostgreSQL and NATS, real tools in real sandboxes."""

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
import pytest_asyncio
from eventlog.codec import Codec
from eventlog.records import NO_STREAM, Append, Context, Filter, StreamId
from launcher.processes import Warden
from launcher.testing import RunningNats, RunningPostgres, running_nats
from servicekit.auth import TENANT
from servicekit.errors import (
    AlreadyExists,
    BudgetExhausted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    from_rpc_error,
    trailers,
)
from servicekit.testing import FakeClock, Served, serve_in_process, settings_for, write_public_key
from synod.common.event import Event
from synod.common.ids import new_id
from synod.common.subjects import SHARED_TENANT
from synod.common.values import Attribution
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerServicer, add_CostLedgerServicer_to_server
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.tool_executor.events import (
    EVENTS,
    EffectClass,
    ToolCallCompleted,
    ToolCallReconciled,
    ToolCallRequested,
    ToolCallStarted,
)
from synod.tool_executor.v1 import tool_executor_pb2 as pb
from synod.tool_executor.v1.tool_executor_pb2_grpc import ToolExecutorStub
from tool_executor import arguments
from tool_executor.application import call_stream
from tool_executor.main import compose, compose_with
from tool_executor.recovery import UNREPEATED
from tool_executor.sandboxes.probe import Capabilities
from tool_executor.sandboxes.probe import capabilities as capabilities_of
from tool_executor.settings import Settings
from tool_executor.tools.catalogue import catalogue
from tool_executor.tools.network import Network
from tool_executor.tools.tool import Arguments, Effect, NetworkTool, Result
from tool_executor.workspaces import FILE_BYTES_MAX, FILES_MAX

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAIT_S = 30
PRICES = b"model,usd\nsmall,1\nlarge,5\n"
BUSY = {"code": "while True: pass"}
HELD = {"code": "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nresult = 'done'"}
"""Runs until there is a file named go in its workspace."""


class PayArguments(Arguments):
    cents: int


class PayResult(Result):
    receipt: str


async def never_ending(_: PayArguments, __: Network) -> PayResult:
    await asyncio.Event().wait()
    return PayResult(receipt="never")


PAY = NetworkTool(
    name="pay",
    version="1.0.0",
    title="Pay",
    description="Pays, and does not come back.",
    arguments=PayArguments,
    result=PayResult,
    effect=Effect.AT_MOST_ONCE,
    run=never_ending,
    self_tests=(),
)


@dataclass
class Ledger(CostLedgerServicer):
    """A ledger in this process that reserves everything but what `refusals` says, by tenant. Of tenants in `mute` it
    answers no reservation before there is something in it.
    """

    reserved: list[ledger_pb.ReserveRequest] = field(default_factory=list)
    released: list[tuple[str, str]] = field(default_factory=list)
    """Tenants and reservations: each tenant has ids of its own."""
    mute: dict[str, asyncio.Event] = field(default_factory=dict)
    refusals: dict[str, ServiceError] = field(default_factory=dict)
    address: str = ""

    async def Reserve(
        self, request: ledger_pb.ReserveRequest, context: grpc.aio.ServicerContext
    ) -> ledger_pb.Reservation:  # type: ignore[override, type-arg]
        if refusal := self.refusals.get(request.attribution.tenant_id):
            await context.abort(refusal.code, refusal.message, trailers(refusal, "cost-ledger"))
        self.reserved.append(request)
        if heard := self.mute.get(request.attribution.tenant_id):
            await heard.wait()
        gone = (request.attribution.tenant_id, request.reservation_id) in self.released
        state = ledger_pb.RESERVATION_STATE_RELEASED if gone else ledger_pb.RESERVATION_STATE_HELD
        return ledger_pb.Reservation(reservation_id=request.reservation_id, state=state)

    async def Release(
        self, request: ledger_pb.ReleaseRequest, context: grpc.aio.ServicerContext
    ) -> ledger_pb.Reservation:  # type: ignore[override, type-arg]
        metadata = dict(context.invocation_metadata() or ())
        self.released.append((str(metadata[TENANT]), request.reservation_id))
        return ledger_pb.Reservation(reservation_id=request.reservation_id, state=ledger_pb.RESERVATION_STATE_RELEASED)

    def of(self, tenant: str) -> list[ledger_pb.ReserveRequest]:
        return [request for request in self.reserved if request.attribution.tenant_id == tenant]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ledger() -> AsyncIterator[Ledger]:
    ledger, server = Ledger(), grpc.aio.server()
    add_CostLedgerServicer_to_server(ledger, server)
    ledger.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield ledger
    await server.stop(0)


def settings(postgres_dsn: str, nats: RunningNats, state_dir: Path, ledger: Ledger, **values: Any) -> Settings:
    peers = {"cost-ledger": ledger.address}
    return settings_for(Settings, postgres_dsn, nats.url, state_dir=state_dir, warm=False, peers=peers, **values)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(
    postgres_server: RunningPostgres,
    launcher_directory: Path,
    launcher_warden: Warden,
    tmp_path_factory: pytest.TempPathFactory,
    capabilities: Capabilities,
    ledger: Ledger,
) -> AsyncIterator[Served[Settings]]:
    """One for all tests; each has a tenant of its own."""
    state_dir = tmp_path_factory.mktemp("state")
    composed = partial(compose_with, tools=(*catalogue(), PAY), capabilities=capabilities)
    with (
        postgres_server.fresh_database() as dsn,
        running_nats(launcher_directory / "nats-tools", launcher_warden) as nats,
    ):
        given = settings(dsn, nats, state_dir, ledger, tool_prices={"pay": 70}, ledger_timeout_s=60)
        async with serve_in_process(composed, given) as served:
            yield served


@pytest.fixture
def tenant() -> str:
    return new_id("ten")


@pytest.fixture
def stub(service: Served[Settings], tenant: str) -> ToolExecutorStub:
    return stub_of(service, tenant)


@pytest.fixture
def files(service: Served[Settings], tenant: str) -> Path:
    """Where the workspace of run_1 lies."""
    return service.host.settings.state_dir / "workspaces" / tenant / "run_1"


def stub_of(service: Served[Settings], tenant: str) -> ToolExecutorStub:
    return ToolExecutorStub(service.connect(service.token(tenant=tenant)))


@asynccontextmanager
async def another(
    service: Served[Settings], capabilities: Capabilities, **values: Any
) -> AsyncIterator[Served[Settings]]:
    """A second process of the same service, as far as the log and the database can tell."""
    composed = partial(compose_with, tools=(*catalogue(), PAY), capabilities=capabilities)
    async with serve_in_process(composed, service.host.settings.model_copy(update=values), key=service.key) as served:
        yield served


def execute(call_id: str, tool: str, arguments: object, **more: str) -> pb.ExecuteRequest:
    values = {"agent": "analyst", "workspace_id": "run_1"} | more
    return pb.ExecuteRequest(call_id=call_id, tool=tool, arguments_json=json.dumps(arguments), **values)


async def grant(stub: ToolExecutorStub, tool: str = "*", agent: str = "analyst") -> pb.Grant:
    return await stub.GrantTool(pb.GrantToolRequest(agent=agent, tool=tool))


async def refusal(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def events_of(service: Served[Settings], tenant: str, *types: str) -> list[Event]:
    log = service.host.history.log
    assert log is not None
    stored = await log.read(where=Filter(types=frozenset(types), tenant=tenant))
    decoded = [Codec[Event](EVENTS).decode(event) for event in stored]
    return [event for event in decoded if isinstance(event, Event)]


async def running(stub: ToolExecutorStub, call_id: str, execution: asyncio.Future[pb.ToolCall]) -> None:
    """Wait until a call runs. Raises what its execution raises, if that comes first."""
    async with asyncio.timeout(WAIT_S):
        while True:
            assert not execution.done(), execution.result()
            try:
                call = await stub.GetToolCall(pb.GetToolCallRequest(call_id=call_id))
            except grpc.aio.AioRpcError:
                continue
            if call.state == pb.TOOL_CALL_STATE_RUNNING:
                return


async def release(stub: ToolExecutorStub) -> None:
    """Let what is HELD go on."""
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="go", content=b""))


async def left_open(
    service: Served[Settings], tenant: str, call_id: str, tool: str, given: object, effect: EffectClass
) -> pb.ExecuteRequest:
    """What a worker leaves that dies while the tool runs; answers the request that it was serving."""
    parsed = arguments.parse(json.dumps(given))
    requested = ToolCallRequested(
        call_id=call_id,
        tool=tool,
        tool_version="1.0.0",
        tool_digest="",
        agent="analyst",
        workspace_id="run_1",
        arguments_json=parsed.text,
        arguments_sha256=parsed.sha256,
        effect=effect,
        grant_id="grt_1",
        attribution=Attribution(tenant_id=tenant, agent="analyst", tool=tool),
    )
    started = ToolCallStarted(call_id=call_id, attempt=1, worker="wrk_dead", isolation="L2")
    codec, now = Codec[Event](EVENTS, sealed_below=True), datetime.now(UTC)
    events = tuple(codec.encode(event, at=now) for event in (requested, started))
    log = service.host.history.log
    assert log is not None
    stream = StreamId("tool-call", call_stream(tenant, call_id))
    await log.append(Append(stream, NO_STREAM, events, Context(tenant=tenant, actor="usr_test")))
    return execute(call_id, tool, given)


async def test_lists_tools_with_schemas_and_what_the_sandboxes_can_do(stub: ToolExecutorStub) -> None:
    listed = await stub.ListTools(pb.ListToolsRequest())
    assert {"calc", "sql_query", "python_exec", "file_write"} <= {tool.name for tool in listed.tools}
    assert listed.best_level == "L2"
    calc = await stub.GetTool(pb.GetToolRequest(reference="calc@1.0.0"))
    assert json.loads(calc.parameters_json)["additionalProperties"] is False
    assert len(calc.digest) == 64


async def test_calculates_and_answers_the_recorded_result_the_second_time(stub: ToolExecutorStub) -> None:
    await grant(stub)
    first = await stub.Execute(execute("c1", "calc", {"expression": "6 * 7"}))
    assert (first.state, json.loads(first.result_json)["value"]) == (pb.TOOL_CALL_STATE_SUCCEEDED, 42)
    second = await stub.Execute(execute("c1", "calc", {"expression": "6 * 7"}))
    assert (first.replayed, second.replayed) == (False, True)
    assert second.result_json == first.result_json


async def test_queries_an_uploaded_file_with_sql(stub: ToolExecutorStub) -> None:
    await grant(stub, "sql_query")
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="data/prices.csv", content=PRICES))
    query = {"sql": "select model from prices where usd > 2"}
    answer = await stub.Execute(execute("c1", "sql_query", query))
    assert "large" in answer.result_json, answer


# --- refusals -----------------------------------------------------------------------------------------------------------


async def test_denied_is_the_default_and_the_message_says_how_to_allow(stub: ToolExecutorStub) -> None:
    await grant(stub, "csv_profile")
    error = await refusal(stub.Execute(execute("c1", "calc", {"expression": "1"})))
    assert isinstance(error, PermissionDenied)
    assert error.reason == "TOOL_NOT_GRANTED"
    assert "agent 'analyst' may not use the tool 'calc'" in error.message
    assert "GrantTool" in error.message
    assert isinstance(await refusal(stub.GetToolCall(pb.GetToolCallRequest(call_id="c1"))), NotFound)


async def test_a_grant_holds_at_once_and_a_revoked_one_no_longer(stub: ToolExecutorStub) -> None:
    given = await grant(stub, "calc", agent="*")
    assert (await stub.Execute(execute("c1", "calc", {"expression": "1"}))).state == pb.TOOL_CALL_STATE_SUCCEEDED
    assert [each.id for each in (await stub.ListGrants(pb.ListGrantsRequest())).grants] == [given.id]
    revoked = await stub.RevokeGrant(pb.RevokeGrantRequest(id=given.id))
    assert revoked.HasField("revoked_at")
    error = await refusal(stub.Execute(execute("c2", "calc", {"expression": "1"})))
    assert error.reason == "TOOL_NOT_GRANTED"
    assert not (await stub.ListGrants(pb.ListGrantsRequest(agent="*"))).grants


async def test_a_late_repeat_of_a_request_does_not_revive_a_grant(stub: ToolExecutorStub) -> None:
    request = pb.GrantToolRequest(agent="analyst", tool="calc", request_id="req_1")
    given = await stub.GrantTool(request)
    await stub.RevokeGrant(pb.RevokeGrantRequest(id=given.id))
    assert (await stub.GrantTool(request)).HasField("revoked_at")
    assert not (await grant(stub, "calc")).HasField("revoked_at")


async def test_every_problem_of_the_arguments_is_listed(stub: ToolExecutorStub) -> None:
    await grant(stub)
    error = await refusal(stub.Execute(execute("c1", "calc", {"expression": 5, "exact": "yes", "extra": 1})))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "INVALID_ARGUMENTS"
    for part in ("$.expression: 5 is not of type 'string'", "$.exact: 'yes' is not of type 'boolean'", "'extra'"):
        assert part in error.message


async def test_refusals_name_what_is_wrong(stub: ToolExecutorStub) -> None:
    await grant(stub)
    fine = {"expression": "1"}
    cases = [
        (stub.Execute(execute("c1", "clac", fine)), NotFound, "did you mean calc?"),
        (stub.Execute(execute("c1", "calc@9.0.0", fine)), NotFound, "calc@1.0.0"),
        (stub.GrantTool(pb.GrantToolRequest(agent="a", tool="sql_qery")), NotFound, "sql_query"),
        (stub.GetTool(pb.GetToolRequest(reference="file_writ")), NotFound, "file_write"),
        (stub.Execute(execute("", "calc", fine)), InvalidArgument, "call_id"),
        (stub.Execute(execute("c1", "calc", fine, workspace_id="../up")), InvalidArgument, "workspace_id"),
        (stub.Execute(execute("c1", "calc", [1])), InvalidArgument, "JSON object"),
        (stub.RevokeGrant(pb.RevokeGrantRequest(id="grt_none")), NotFound, "grt_none"),
        (stub.CancelToolCall(pb.CancelToolCallRequest(call_id="none")), NotFound, "none"),
    ]
    for call, kind, words in cases:
        error = await refusal(call)
        assert isinstance(error, kind), error
        assert words in error.message


async def test_a_call_id_with_other_arguments_is_a_conflict(stub: ToolExecutorStub) -> None:
    await grant(stub)
    await stub.Execute(execute("c1", "calc", {"expression": "1"}))
    error = await refusal(stub.Execute(execute("c1", "calc", {"expression": "2"})))
    assert isinstance(error, AlreadyExists)
    assert error.reason == "IDEMPOTENCY_CONFLICT"


async def test_an_agent_acts_as_itself_only(service: Served[Settings], tenant: str) -> None:
    token = service.token(["tools.execute"], tenant, id="agt_1", kind="agent")
    error = await refusal(ToolExecutorStub(service.connect(token)).Execute(execute("c1", "calc", {})))
    assert isinstance(error, PermissionDenied)
    assert "agt_1 may not use tools as 'analyst'" in error.message


async def test_a_tool_that_needs_more_isolation_than_there_is_does_not_run(
    postgres_dsn: str, fresh_nats: RunningNats, tmp_path: Path, tenant: str, ledger: Ledger
) -> None:
    weak = capabilities_of(0, {"landlock": "ENOSYS: Function not implemented"})
    composed = partial(compose_with, tools=catalogue(), capabilities=weak)
    async with serve_in_process(composed, settings(postgres_dsn, fresh_nats, tmp_path, ledger)) as served:
        stub = stub_of(served, tenant)
        await grant(stub)
        error = await refusal(stub.Execute(execute("c1", "python_exec", {"code": "result = 1"})))
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "SANDBOX_UNAVAILABLE"
        assert "landlock: ENOSYS" in error.message
        assert "sandbox" in served.host.health.problems
        assert not await events_of(served, tenant, "ToolCallRequested")


async def test_too_many_calls_are_refused_and_told_when_to_come_back(
    service: Served[Settings], capabilities: Capabilities, tenant: str
) -> None:
    async with another(service, capabilities, calls_per_agent_max=1) as narrow:
        stub = stub_of(narrow, tenant)
        await grant(stub)
        busy = asyncio.create_task(stub.Execute(execute("c1", "pay", {"cents": 1})))
        await running(stub, "c1", busy)
        error = await refusal(stub.Execute(execute("c2", "calc", {"expression": "1"})))
        await stub.CancelToolCall(pb.CancelToolCallRequest(call_id="c1"))
        await busy
        assert isinstance(error, ResourceExhausted)
        assert error.retry_after_s == 1.0
        assert "agent 'analyst' runs 1" in error.message
        assert (await stub.Execute(execute("c2", "calc", {"expression": "1"}))).state == pb.TOOL_CALL_STATE_SUCCEEDED


# --- what calls may take ------------------------------------------------------------------------------------------------


async def test_what_a_call_may_take_is_held_under_its_id_before_it_runs_and_told_when_it_ends(
    service: Served[Settings], stub: ToolExecutorStub, ledger: Ledger, tenant: str
) -> None:
    await grant(stub)
    request = execute("c1", "python_exec", {"code": "result = sum(range(100000))"})
    request.attribution.run_id = "run_2"
    request.attribution.tags["team"] = "search"
    await stub.Execute(request)
    (held,) = ledger.of(tenant)
    assert (held.reservation_id, held.attribution.run_id, held.attribution.tool) == ("c1", "run_2", "python_exec")
    assert dict(held.attribution.tags) == {"team": "search"}
    most = {each.unit: each.quantity for each in held.quantities}
    (done,) = await events_of(service, tenant, "ToolCallCompleted")
    assert isinstance(done, ToolCallCompleted)
    assert 0 < done.duration_ms <= most["tool_ms"]
    assert 0 < done.cpu_ms <= most["cpu_ms"]


async def test_a_call_that_a_quota_has_no_room_for_does_not_happen_and_the_ledgers_answer_is_passed_on(
    service: Served[Settings], stub: ToolExecutorStub, ledger: Ledger, tenant: str
) -> None:
    await grant(stub)
    ledger.refusals[tenant] = BudgetExhausted("compute", 5, 30_200)
    request = execute("c1", "python_exec", {"code": "result = 1"})
    error = await refusal(stub.Execute(request))
    assert (error.reason, error.metadata["budget_id"], error.retryable) == ("BUDGET_EXHAUSTED", "compute", False)
    assert not await events_of(service, tenant, "ToolCallRequested")
    del ledger.refusals[tenant]
    assert (await stub.Execute(request)).state == pb.TOOL_CALL_STATE_SUCCEEDED


async def test_without_the_ledger_nothing_that_is_charged_for_begins_and_the_rest_goes_on(
    stub: ToolExecutorStub, ledger: Ledger, tenant: str
) -> None:
    await grant(stub)
    ledger.refusals[tenant] = Unavailable("the ledger starts")
    error = await refusal(stub.Execute(execute("c1", "python_exec", {"code": "result = 1"})))
    assert (error.reason, error.retryable) == ("LEDGER_UNAVAILABLE", True)
    assert (await stub.Execute(execute("c2", "calc", {"expression": "1"}))).state == pb.TOOL_CALL_STATE_SUCCEEDED
    assert not ledger.of(tenant)


async def test_another_attempt_after_a_crash_holds_the_same_again_and_no_more(
    service: Served[Settings], stub: ToolExecutorStub, ledger: Ledger, tenant: str
) -> None:
    await grant(stub)
    given = {"code": "result = 1"}
    await stub.Execute(execute("c0", "python_exec", given))
    request = await left_open(service, tenant, "c1", "python_exec", given, "pure")
    answers = [await stub.Execute(request), await stub.Execute(request)]
    assert [answer.attempt for answer in answers] == [2, 2]
    whole, again = ledger.of(tenant)
    assert (again.reservation_id, again.attribution.tool) == ("c1", "python_exec")
    assert (again.ttl, list(again.quantities)) == (whole.ttl, list(whole.quantities))


async def test_what_has_a_price_holds_it_and_costs_it_if_it_happened(
    service: Served[Settings], stub: ToolExecutorStub, ledger: Ledger, tenant: str
) -> None:
    await grant(stub)
    call = asyncio.create_task(stub.Execute(execute("c1", "pay", {"cents": 5})))
    await running(stub, "c1", call)
    await stub.CancelToolCall(pb.CancelToolCallRequest(call_id="c1"))
    await call
    await stub.ReconcileToolCall(pb.ReconcileToolCallRequest(call_id="c1", happened=True, reason="statement"))
    (held,) = ledger.of(tenant)
    assert held.upper_bound_nano_usd == 70
    (said,) = await events_of(service, tenant, "ToolCallReconciled")
    assert isinstance(said, ToolCallReconciled)
    assert said.cost_nano_usd == 70


async def test_what_a_killed_worker_held_for_a_call_that_it_never_began_is_given_back_when_nobody_repeats_it(
    service: Served[Settings],
    stub: ToolExecutorStub,
    ledger: Ledger,
    tenant: str,
    capabilities: Capabilities,
    tmp_path: Path,
) -> None:
    await grant(stub)
    begun, lost, waiting = (f"{name}-{tenant}" for name in ("begun", "lost", "waiting"))
    await stub.Execute(execute(begun, "python_exec", {"code": "result = 1"}))
    heard = ledger.mute[tenant] = asyncio.Event()
    alive = asyncio.create_task(stub.Execute(execute(waiting, "python_exec", {"code": "result = 1"})))
    await held(ledger, waiting)
    async with killed_in_the_end(service, tmp_path) as (address, kill), grpc.aio.insecure_channel(address) as channel:
        request, owner = execute(lost, "python_exec", {"code": "result = 1"}), service.token(tenant=tenant)
        metadata = (("authorization", f"Bearer {owner}"),)
        call = ToolExecutorStub(channel).Execute(request, metadata=metadata, wait_for_ready=True)
        await held(ledger, lost)
        kill()
        await refusal(call)
    composed = partial(compose_with, tools=(*catalogue(), PAY), capabilities=capabilities)
    later = FakeClock(datetime.now(UTC) + UNREPEATED + timedelta(minutes=1))
    async with serve_in_process(composed, service.host.settings, clock=later, key=service.key):
        async with asyncio.timeout(WAIT_S):
            while (tenant, lost) not in ledger.released:  # noqa: ASYNC110
                await asyncio.sleep(0)
    heard.set()
    assert (await alive).state == pb.TOOL_CALL_STATE_SUCCEEDED
    assert [each for each in ledger.released if each[0] == tenant] == [(tenant, lost)]
    assert [event.model_dump()["call_id"] for event in await events_of(service, tenant, "ToolCallStarted")] == [
        begun,
        waiting,
    ]
    error = await refusal(stub.Execute(execute(lost, "python_exec", {"code": "result = 1"})))
    assert (error.reason, error.retryable) == ("CALL_GIVEN_UP", False)


async def held(ledger: Ledger, call_id: str) -> None:
    """Wait until a call has asked for its reservation."""
    async with asyncio.timeout(WAIT_S):
        while not any(request.reservation_id == call_id for request in ledger.reserved):  # noqa: ASYNC110
            await asyncio.sleep(0)


@asynccontextmanager
async def killed_in_the_end(
    service: Served[Settings], directory: Path
) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """A second replica in a process of its own: its address, and what kills it."""
    settings = service.host.settings
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = {
        "SYNOD_POSTGRES_DSN": settings.postgres_dsn.get_secret_value(),
        "SYNOD_NATS_URL": settings.nats_url,
        "SYNOD_STATE_DIR": str(settings.state_dir),
        "SYNOD_PEERS": json.dumps(dict(settings.peers)),
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(write_public_key(service.key, directory)),
        "SYNOD_GRPC_PORT": str(port),
        "SYNOD_HTTP_PORT": "0",
        "SYNOD_WARM": "false",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SYNOD_")}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tool_executor", env=inherited | named)
    try:
        yield f"127.0.0.1:{port}", process.kill
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# --- calls in flight ----------------------------------------------------------------------------------------------------


async def test_the_same_call_twice_at_once_runs_once(
    service: Served[Settings], stub: ToolExecutorStub, tenant: str
) -> None:
    await grant(stub)
    request = execute("c1", "python_exec", {"code": "import random\nresult = random.random()"})
    answers = await asyncio.gather(*(stub.Execute(request) for _ in range(5)))
    assert len({answer.result_json for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False, True, True, True, True]
    assert len(await events_of(service, tenant, "ToolCallStarted")) == 1


async def test_a_caller_that_leaves_does_not_stop_its_tool(stub: ToolExecutorStub, service: Served[Settings]) -> None:
    await grant(stub)
    request = execute("c1", "python_exec", HELD)
    leaving = asyncio.create_task(stub.Execute(request))
    await running(stub, "c1", leaving)
    leaving.cancel()
    await release(stub)
    answer = await stub.Execute(request)
    assert (answer.state, answer.attempt, answer.replayed) == (pb.TOOL_CALL_STATE_SUCCEEDED, 1, True)
    assert "done" in answer.result_json


async def test_a_call_out_of_time_is_answered_as_timed_out(stub: ToolExecutorStub) -> None:
    await grant(stub)
    answer, timeout_s = await out_of_time(stub)
    assert (answer.state, answer.failure.kind) == (pb.TOOL_CALL_STATE_TIMED_OUT, "LIMIT_WALL")
    assert answer.took.ToMilliseconds() >= 1000 * (timeout_s / 2 - 0.1)
    again = await stub.Execute(execute(answer.call_id, "python_exec", HELD))
    assert (again.state, again.replayed) == (pb.TOOL_CALL_STATE_TIMED_OUT, True)


async def out_of_time(stub: ToolExecutorStub) -> tuple[pb.ToolCall, float]:
    """The answer to a call that ran out of time, and the time that it had; a slow machine answers too late to the first."""
    for timeout_s in (3.0, 12.0):
        try:
            return await stub.Execute(execute(f"in {timeout_s:g}", "python_exec", HELD), timeout=timeout_s), timeout_s
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return await stub.Execute(execute("in 25", "python_exec", HELD), timeout=25), 25.0


async def test_a_failed_tool_is_an_answer_with_its_kind(stub: ToolExecutorStub) -> None:
    await grant(stub)
    answer = await stub.Execute(execute("c1", "calc", {"expression": "1 / 0"}))
    assert (answer.state, answer.failure.kind) == (pb.TOOL_CALL_STATE_FAILED, "DIVISION_BY_ZERO")


async def test_cancelling_ends_a_running_call(stub: ToolExecutorStub) -> None:
    await grant(stub)
    call = asyncio.create_task(stub.Execute(execute("c1", "python_exec", BUSY)))
    await running(stub, "c1", call)
    cancelled = await stub.CancelToolCall(pb.CancelToolCallRequest(call_id="c1"))
    assert cancelled.state == (await call).state == pb.TOOL_CALL_STATE_CANCELLED
    assert "usr_test" in cancelled.failure.message


async def test_of_a_cancelled_effect_the_outcome_is_unknown_until_somebody_says(stub: ToolExecutorStub) -> None:
    await grant(stub)
    call = asyncio.create_task(stub.Execute(execute("c1", "pay", {"cents": 5})))
    await running(stub, "c1", call)
    await stub.CancelToolCall(pb.CancelToolCallRequest(call_id="c1"))
    assert (await call).state == pb.TOOL_CALL_STATE_OUTCOME_UNKNOWN
    said = pb.ReconcileToolCallRequest(call_id="c1", happened=True, result_json='{"receipt":"r7"}', reason="statement")
    assert (await stub.ReconcileToolCall(said)).state == pb.TOOL_CALL_STATE_SUCCEEDED
    again = await stub.Execute(execute("c1", "pay", {"cents": 5}))
    assert (json.loads(again.result_json), again.replayed) == ({"receipt": "r7"}, True)
    other = pb.ReconcileToolCallRequest(call_id="c1", happened=False, reason="changed my mind")
    assert (await refusal(stub.ReconcileToolCall(other))).reason == "OUTCOME_KNOWN"


async def test_a_call_that_runs_in_another_process_is_joined_and_cancelled_from_here(
    service: Served[Settings], stub: ToolExecutorStub, capabilities: Capabilities, tenant: str
) -> None:
    async with another(service, capabilities) as second:
        there = stub_of(second, tenant)
        await grant(stub)
        request = execute("c1", "python_exec", BUSY)
        first = asyncio.create_task(stub.Execute(request))
        await running(stub, "c1", first)
        joined = asyncio.create_task(there.Execute(request))
        cancelled = await there.CancelToolCall(pb.CancelToolCallRequest(call_id="c1"))
        async with asyncio.timeout(WAIT_S):
            states = {cancelled.state, (await first).state, (await joined).state}
        assert states == {pb.TOOL_CALL_STATE_CANCELLED}
        assert len(await events_of(service, tenant, "ToolCallStarted")) == 1


# --- calls that a dead worker has left ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "given", "effect"),
    [
        ("calc", {"expression": "6 * 7"}, "pure"),
        ("file_write", {"path": "a.txt", "content": "hello"}, "idempotent"),
    ],
)
async def test_a_repeatable_call_of_a_dead_worker_is_run_again(
    service: Served[Settings], stub: ToolExecutorStub, tool: str, given: object, effect: EffectClass, tenant: str
) -> None:
    await grant(stub)
    request = await left_open(service, tenant, "c1", tool, given, effect)
    answer = await stub.Execute(request)
    assert (answer.state, answer.attempt, answer.replayed) == (pb.TOOL_CALL_STATE_SUCCEEDED, 2, False)
    assert (await stub.Execute(request)).replayed


async def test_an_at_most_once_call_of_a_dead_worker_is_never_run_again(
    service: Served[Settings], stub: ToolExecutorStub, tenant: str
) -> None:
    await grant(stub)
    request = await left_open(service, tenant, "c1", "pay", {"cents": 5}, "at_most_once")
    answer = await stub.Execute(request)
    assert (answer.state, answer.attempt) == (pb.TOOL_CALL_STATE_OUTCOME_UNKNOWN, 1)
    assert "worker died" in answer.failure.message
    said = pb.ReconcileToolCallRequest(call_id="c1", happened=False, reason="the bank has no trace of it")
    assert (await stub.ReconcileToolCall(said)).failure.kind == "EFFECT_DID_NOT_HAPPEN"
    assert len(await events_of(service, tenant, "ToolCallStarted")) == 1


async def test_what_dead_workers_left_is_found_when_the_service_starts(
    service: Served[Settings], capabilities: Capabilities, tenant: str
) -> None:
    await left_open(service, tenant, "c1", "pay", {"cents": 5}, "at_most_once")
    await left_open(service, tenant, "c2", "calc", {"expression": "1"}, "pure")
    async with another(service, capabilities), asyncio.timeout(WAIT_S):
        while not (found := await events_of(service, tenant, "ToolCallOutcomeUnknown")):
            continue
    assert [event.model_dump()["call_id"] for event in found] == ["c1"]


async def test_a_call_that_the_service_stops_is_run_again_by_the_next(
    service: Served[Settings], stub: ToolExecutorStub, capabilities: Capabilities, tenant: str
) -> None:
    await grant(stub)
    request = execute("c1", "python_exec", HELD)
    async with another(service, capabilities, shutdown_grace_s=0.2) as stopping:
        there = stub_of(stopping, tenant)
        lost = asyncio.create_task(there.Execute(request))
        await running(stub, "c1", lost)
    await asyncio.wait({lost})
    assert lost.cancelled() or lost.exception()
    await release(stub)
    answer = await stub.Execute(request)
    assert (answer.state, answer.attempt) == (pb.TOOL_CALL_STATE_SUCCEEDED, 2)


# --- workspaces ---------------------------------------------------------------------------------------------------------


async def test_tools_and_clients_see_the_same_files(stub: ToolExecutorStub) -> None:
    await grant(stub)
    written = await stub.Execute(execute("c1", "file_write", {"path": "out/report.md", "content": "# Report"}))
    assert [artefact.path for artefact in written.artefacts] == ["out/report.md"]
    found = await stub.GetFile(pb.GetFileRequest(workspace_id="run_1", path="out/report.md"))
    assert (found.content, found.file.sha256) == (b"# Report", written.artefacts[0].sha256)
    listed = await stub.ListFiles(pb.ListFilesRequest(workspace_id="run_1"))
    assert [file.path for file in listed.files] == ["out/report.md"]


async def test_a_file_of_the_largest_size_goes_in_and_out(stub: ToolExecutorStub) -> None:
    content = bytes(FILE_BYTES_MAX)
    put = await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="zeros.bin", content=content))
    assert put.size_bytes == FILE_BYTES_MAX
    assert (await stub.GetFile(pb.GetFileRequest(workspace_id="run_1", path="zeros.bin"))).content == content
    larger = pb.PutFileRequest(workspace_id="run_1", path="more.bin", content=content + b"x")
    assert (await refusal(stub.PutFile(larger))).reason == "TOO_LARGE"


async def test_no_path_leads_out_of_a_workspace(stub: ToolExecutorStub, files: Path) -> None:
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="a.txt", content=b"a"))
    (files / "link").symlink_to("/etc")
    for path in ("../other/a.txt", "/etc/passwd", "link/passwd", "", "a.txt/b"):
        error = await refusal(stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path=path, content=b"x")))
        assert isinstance(error, InvalidArgument), path
        assert error.reason == "INVALID_PATH"
        assert (
            await refusal(stub.GetFile(pb.GetFileRequest(workspace_id="run_1", path=path)))
        ).reason == "INVALID_PATH"


async def test_a_workspace_holds_a_bounded_number_of_files(stub: ToolExecutorStub, files: Path) -> None:
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="0.txt", content=b""))
    for number in range(1, FILES_MAX):
        (files / f"{number}.txt").touch()
    error = await refusal(stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="more.txt", content=b"")))
    assert "1000 files" in error.message
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="0.txt", content=b"replaced"))


async def test_tenants_do_not_see_each_other(service: Served[Settings], stub: ToolExecutorStub) -> None:
    await grant(stub)
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="a.txt", content=b"a"))
    await stub.Execute(execute("c1", "calc", {"expression": "1"}))
    stranger = ToolExecutorStub(service.connect(service.token(tenant="other")))
    get = pb.GetFileRequest(workspace_id="run_1", path="a.txt")
    assert isinstance(await refusal(stranger.GetFile(get)), NotFound)
    assert not (await stranger.ListFiles(pb.ListFilesRequest(workspace_id="run_1"))).files
    assert not (await stranger.ListGrants(pb.ListGrantsRequest())).grants
    assert isinstance(await refusal(stranger.GetToolCall(pb.GetToolCallRequest(call_id="c1"))), NotFound)
    error = await refusal(stranger.Execute(execute("c1", "calc", {"expression": "1"})))
    assert error.reason == "TOOL_NOT_GRANTED"


# --- the log and its views ----------------------------------------------------------------------------------------------


async def test_a_call_is_attributed_and_belongs_to_its_run(
    service: Served[Settings], stub: ToolExecutorStub, tenant: str
) -> None:
    await grant(stub)
    request = execute("c1", "calc", {"expression": "1"})
    request.attribution.run_id, request.attribution.root_run_id = "run_2", "run_1"
    request.attribution.tenant_id = "somebody else"
    await stub.Execute(request)
    (done,) = await events_of(service, tenant, "ToolCallCompleted")
    attribution = done.model_dump()["attribution"]
    assert (attribution["tenant_id"], attribution["run_id"], attribution["tool"]) == (tenant, "run_2", "calc")
    log = service.host.history.log
    assert log is not None
    assert len(await log.read(where=Filter(correlation="run_1", tenant=tenant))) == 3


async def test_the_catalogue_is_registered_once(service: Served[Settings], capabilities: Capabilities) -> None:
    probed = len(await events_of(service, SHARED_TENANT, "SandboxCapabilitiesProbed"))
    async with another(service, capabilities):
        registered = await events_of(service, SHARED_TENANT, "ToolRegistered")
    assert len(registered) == len(catalogue()) + 1
    assert len(await events_of(service, SHARED_TENANT, "SandboxCapabilitiesProbed")) == probed + 1


async def test_a_version_that_runs_here_no_more_can_still_be_looked_up(
    service: Served[Settings], stub: ToolExecutorStub, tenant: str
) -> None:
    settled = await stub.ListTools(pb.ListToolsRequest())
    unpriced = service.host.settings.model_copy(update={"tool_prices": {}})
    async with serve_in_process(compose, unpriced, key=service.key) as without_pay:
        there = stub_of(without_pay, tenant)
        listed = await there.ListTools(pb.ListToolsRequest())
        found = await there.GetTool(pb.GetToolRequest(reference="pay@1.0.0"))
    assert {tool.name for tool in settled.tools} - {tool.name for tool in listed.tools} == {"pay"}
    assert found.effect == pb.EFFECT_CLASS_AT_MOST_ONCE


async def test_calls_are_counted_by_tool(service: Served[Settings], stub: ToolExecutorStub) -> None:
    await grant(stub)
    await stub.Execute(execute("c1", "calc", {"expression": "1"}))
    async with httpx2.AsyncClient() as client:
        text = (await client.get(f"{service.http_url}/metrics")).text
    assert 'tool_calls_total{outcome="succeeded",tool="calc"}' in text
    assert f"tool_calls_limit {float(service.host.settings.calls_max)}" in text.splitlines()


async def test_views_equal_views_rebuilt_from_the_log(
    service: Served[Settings], stub: ToolExecutorStub, tenant: str
) -> None:
    given = await grant(stub)
    await grant(stub, "calc", agent="other")
    await stub.Execute(execute("c1", "calc", {"expression": "1"}))
    await stub.Execute(execute("c2", "calc", {"expression": "1 / 0"}))
    await stub.Execute(await left_open(service, tenant, "c3", "pay", {"cents": 5}, "at_most_once"))
    await stub.RevokeGrant(pb.RevokeGrantRequest(id=given.id))
    log = EventLogStub(service.channel)
    views = (await log.ListViews(log_pb.ListViewsRequest())).views
    assert {view.name for view in views} == {"tool_calls", "grants", "tools"}
    for view in views:
        assert (await log.VerifyView(log_pb.VerifyViewRequest(name=view.name))).equal
        assert not (await log.ListParkedEvents(log_pb.ListParkedEventsRequest(view=view.name))).parked
    assert (await log.Verify(log_pb.VerifyRequest())).ok
