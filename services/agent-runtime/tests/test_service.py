"""The service as its clients see it: real gRPC, PostgreSQL and NATS; the services it calls are fakes."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import nats
import psycopg
import pytest
from agent_runtime.clients import NatsTokens
from agent_runtime.main import compose_with
from agent_runtime.ports import ModelAnswer, ModelCall, Ports
from agent_runtime.settings import Settings
from agent_runtime.testing import (
    FakeConsensus,
    FakeLedger,
    FakeModels,
    FakeRegistry,
    FakeTools,
    a_model_answer,
    a_team,
    an_agent,
    scripted,
)
from eventlog.codec import Codec
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, StreamId
from eventlog.relay import Relay
from launcher.testing import RunningNats
from servicekit.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ServiceError,
    from_rpc_error,
)
from servicekit.host import Host
from servicekit.tags import values_of
from servicekit.testing import Served, serve_in_process, settings_for
from synod.agent_runtime.v1 import agent_runtime_pb2 as pb
from synod.agent_runtime.v1.agent_runtime_pb2_grpc import AgentRuntimeStub
from synod.common.ids import uuid7
from synod.common.subjects import event_stream
from synod.consensus.events import EVENTS as CONSENSUS_EVENTS
from synod.consensus.events import OptionTally, ProposalDecided
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub

WAIT_S = 30
ENDED = (pb.RUN_STATE_COMPLETED, pb.RUN_STATE_FAILED, pb.RUN_STATE_CANCELLED)

Serve = Callable[[], AbstractAsyncContextManager[Served[Settings]]]


@dataclass
class World:
    """What is outside of agent-runtime, and how to start one on it."""

    models: FakeModels
    tools: FakeTools
    registry: FakeRegistry
    ledger: FakeLedger
    consensus: FakeConsensus
    serve: Serve

    def says(self, lines: dict[str, Sequence[object]]) -> None:
        self.models.script = scripted(lines)  # type: ignore[arg-type]


@pytest.fixture
def world(postgres_dsn: str, fresh_nats: RunningNats, tmp_path: Path) -> World:
    master_key = tmp_path / "master.key"
    master_key.write_text(b64encode(bytes(32)).decode())
    models = FakeModels(scripted({"ann": ["one two three"], "bob": ["done"]}))
    tools = FakeTools({"double": lambda arguments: {"result": 2 * arguments["number"]}})
    registry, ledger, consensus = FakeRegistry(), FakeLedger(), FakeConsensus()
    for name in ("ann", "bob"):
        registry.add(an_agent(name, tools=("double",)))

    async def compose(host: Host[Settings]) -> None:
        await compose_with(host, Ports(models, tools, registry, ledger, consensus, NatsTokens(host.nats)))

    settings = settings_for(
        Settings,
        postgres_dsn,
        fresh_nats.url,
        runs_concurrent_max=4,
        sweep_s=0.2,
        shutdown_grace_s=0.5,
        master_key_file=master_key,
    )

    @asynccontextmanager
    async def serve() -> AsyncIterator[Served[Settings]]:
        async with serve_in_process(compose, settings) as served:
            yield served

    return World(models, tools, registry, ledger, consensus, serve)


@pytest.fixture
async def service(world: World) -> AsyncIterator[Served[Settings]]:
    async with world.serve() as served:
        yield served


@pytest.fixture
def stub(service: Served[Settings]) -> AgentRuntimeStub:
    return AgentRuntimeStub(service.channel)


async def ended(stub: AgentRuntimeStub, run_id: str) -> pb.Run:
    """The run, once it has ended."""
    async with asyncio.timeout(WAIT_S):
        async for _ in stub.WatchRun(pb.WatchRunRequest(id=run_id)):
            pass
    return await stub.GetRun(pb.GetRunRequest(id=run_id))


async def run(stub: AgentRuntimeStub, definition: str = "ann", text: str = "go", request_id: str = "r1") -> pb.Run:
    started = await stub.StartRun(pb.StartRunRequest(request_id=request_id, definition=definition, input=text))
    return await ended(stub, started.id)


async def refused(call: object) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return from_rpc_error(caught.value)


async def test_a_run_is_started_worked_on_and_told(stub: AgentRuntimeStub) -> None:
    done = await run(stub)
    assert (done.state, done.output, done.epoch, done.model_calls) == (pb.RUN_STATE_COMPLETED, "one two three", 1, 1)
    assert done.ended_at.ToDatetime() >= done.started_at.ToDatetime()


async def test_a_run_keeps_its_tags_and_shows_them_alone_and_in_lists(
    world: World, service: Served[Settings], stub: AgentRuntimeStub
) -> None:
    tags = {"team": "search", "feature": "chat"}
    order = pb.StartRunRequest(request_id="r1", definition="ann", input="go", tags=tags)
    done = await ended(stub, (await stub.StartRun(order)).id)
    await caught_up(service, "runs")
    (listed,) = (await stub.ListRuns(pb.ListRunsRequest())).runs
    assert dict(done.tags) == dict(listed.tags) == tags
    assert values_of(world.models.calls[0].attribution.tags) == tags

    assert (await stub.StartRun(order)).id == done.id
    order.tags["team"] = "ads"
    assert isinstance(await refused(stub.StartRun(order)), AlreadyExists)
    order.tags["team"] = ""
    error = await refused(stub.StartRun(order))
    assert isinstance(error, InvalidArgument)
    assert error.field == "tags.team"


async def test_watch_tells_events_in_order_with_cursors_and_summaries(stub: AgentRuntimeStub) -> None:
    started = await stub.StartRun(pb.StartRunRequest(request_id="r1", definition="ann", input="count"))
    async with asyncio.timeout(WAIT_S):
        updates = [update async for update in stub.WatchRun(pb.WatchRunRequest(id=started.id))]
    assert [update.type for update in updates][0::5] == ["RunStarted", "RunCompleted"]
    assert [update.cursor for update in updates] == sorted({update.cursor for update in updates})
    assert updates[0].summary == "ann starts: count"
    assert updates[-1].summary == "ann completed: one two three"
    again = [
        update async for update in stub.WatchRun(pb.WatchRunRequest(id=started.id, after_cursor=updates[2].cursor))
    ]
    assert again == updates[3:]


async def test_watch_merges_tokens_as_they_are_produced(world: World, stub: AgentRuntimeStub) -> None:
    world.models.hold = asyncio.Event()
    started = await stub.StartRun(pb.StartRunRequest(request_id="r1", definition="ann", input="count"))
    watch = stub.WatchRun(pb.WatchRunRequest(id=started.id, tokens=True))
    updates = []
    async with asyncio.timeout(WAIT_S):
        async for update in watch:
            updates.append(update)
            if update.type == "ModelCallRequested":
                world.models.hold.set()
    tokens = [update for update in updates if update.type == "Token"]
    assert [(token.token_sequence, token.summary, token.agent) for token in tokens] == [
        (1, "one", "ann"),
        (2, "two", "ann"),
        (3, "three", "ann"),
    ]
    types = [update.type for update in updates]
    assert types.index("Token") < types.index("ModelCallSucceeded")


async def test_a_team_runs_its_members_and_is_replayed(world: World, stub: AgentRuntimeStub) -> None:
    world.says({"ann": [[("double", {"number": 21})], "42"], "bob": ["report"]})
    world.registry.add(
        a_team(
            "crew",
            steps=[
                {"id": "compute", "agent": "ann", "task": "{{input}}"},
                {"id": "write", "agent": "bob", "task": "about {{steps.compute.output}}"},
            ],
        )
    )
    done = await run(stub, "crew", "double it")
    assert (done.output, len(done.child_run_ids), done.epoch) == ("report", 2, 1)
    replayed = await stub.ReplayRun(pb.ReplayRunRequest(id=done.id))
    assert (replayed.equal, replayed.runs, replayed.outside_calls) == (True, 3, 0)
    assert replayed.replayed_sha256 == done.result_sha256


async def test_a_decision_of_consensus_wakes_the_run_that_waits_for_it(
    world: World, service: Served[Settings], stub: AgentRuntimeStub
) -> None:
    world.says({"ann": ['{"vote": "approve"}'], "bob": ['{"vote": "reject"}']})
    vote = {"id": "agree", "task": "{{input}}", "vote": {"voters": ["ann", "bob"], "required": False}}
    world.registry.add(a_team("crew", steps=[vote]))
    started = await stub.StartRun(pb.StartRunRequest(request_id="r1", definition="crew", input="well?"))
    async with asyncio.timeout(WAIT_S):
        async for update in stub.WatchRun(pb.WatchRunRequest(id=started.id)):
            if update.type == "BallotsCast":
                break
    waiting = await stub.GetRun(pb.GetRunRequest(id=started.id))
    (proposal_id,) = waiting.proposal_ids
    assert waiting.state == pb.RUN_STATE_WAITING
    world.consensus.close(proposal_id)
    await publish_decision(service, proposal_id, started.id)
    done = await ended(stub, started.id)
    assert (done.state, '"outcome": ""' in done.output) == (pb.RUN_STATE_COMPLETED, True)


async def publish_decision(service: Served[Settings], proposal_id: str, run_id: str) -> None:
    """What the relay of consensus does when a proposal is decided."""
    log, clock = MemoryEventLog(), service.clock
    event = ProposalDecided(
        proposal_id=proposal_id,
        outcome="reject",
        tally=(OptionTally(option="reject", weight=1),),
        explanation="closed",
        run_id=run_id,
    )
    new = Codec(CONSENSUS_EVENTS).encode(event, at=clock.now())
    # A decision that a release to come wrote comes first, and must not keep the others from being heard.
    unreadable = replace(new, id=uuid7(), type_version=9)
    context = Context(tenant="local", actor="svc_consensus", correlation=run_id)
    await log.append(Append(StreamId("proposal", "future"), ANY, (unreadable,), context))
    await log.append(Append(StreamId("proposal", proposal_id), ANY, (new,), context))
    relay = asyncio.create_task(Relay(log, service.host.nats, "consensus").run())
    jetstream = service.host.nats.jetstream()
    async with asyncio.timeout(WAIT_S):
        while not [info for info in await jetstream.streams_info() if info.config.name == "EVT_CONSENSUS"]:
            await asyncio.wait([relay], timeout=0.05)
        while (await jetstream.stream_info("EVT_CONSENSUS")).state.last_seq < 2:
            await asyncio.wait([relay], timeout=0.05)
    await end(relay)


async def test_a_run_interrupted_by_the_death_of_its_process_goes_on_in_the_next(world: World) -> None:
    world.models.hold = asyncio.Event()
    async with world.serve() as first:
        stub = AgentRuntimeStub(first.channel)
        started = await stub.StartRun(pb.StartRunRequest(request_id="r1", definition="ann", input="survive"))
        await world.models.was_asked(1, WAIT_S)
    world.models.hold.set()
    async with world.serve() as second:
        done = await ended(AgentRuntimeStub(second.channel), started.id)
    assert (done.state, done.output, done.epoch) == (pb.RUN_STATE_COMPLETED, "one two three", 2)
    assert set(world.models.produced.values()) == {1}


async def test_cancel_ends_a_run_whose_model_call_is_in_flight(world: World, stub: AgentRuntimeStub) -> None:
    world.models.hold = asyncio.Event()
    started = await stub.StartRun(pb.StartRunRequest(request_id="r1", definition="ann", input="long"))
    await world.models.was_asked(1, WAIT_S)
    await stub.CancelRun(pb.CancelRunRequest(id=started.id, reason="enough"))
    done = await ended(stub, started.id)
    assert (done.state, done.failure.reason, done.failure.message) == (pb.RUN_STATE_CANCELLED, "CANCELLED", "enough")


async def test_a_conversation_is_held_in_runs(world: World, stub: AgentRuntimeStub) -> None:
    world.registry.add(an_agent("cat", behaviour="chat"))
    world.models.script = answer_with_length
    opened = await stub.CreateConversation(pb.CreateConversationRequest(request_id="c1", definition="cat"))
    for number in ("one", "two"):
        sent = await stub.SendMessage(
            pb.SendMessageRequest(request_id=number, conversation_id=opened.id, text=f"say {number}")
        )
        await ended(stub, sent.id)
    told = await stub.GetConversation(pb.GetConversationRequest(id=opened.id))
    assert [(message.role, message.text) for message in told.messages] == [
        ("user", "say one"),
        ("assistant", "read 2"),
        ("user", "say two"),
        ("assistant", "read 4"),
    ]
    assert told.active_run_id == ""


def answer_with_length(call: ModelCall) -> ModelAnswer:
    return a_model_answer(f"read {len(call.messages)}")


async def test_what_a_person_said_and_was_told_is_unreadable_after_their_erasure(
    world: World, service: Served[Settings], stub: AgentRuntimeStub, postgres_dsn: str, fresh_nats: RunningNats
) -> None:
    asked, told, other = "my sister Ludmilla is ill", "Ludmilla will recover", "what Bartholomew asked"
    world.says({"ann": [[("double", {"number": 21, "about": asked})], told], "bob": ["fine", "fine"]})
    world.registry.add(a_team("crew", steps=[{"id": "one", "agent": "ann", "task": "{{input}}"}]))
    team = await run(stub, "crew", asked)
    opened = await stub.CreateConversation(pb.CreateConversationRequest(request_id="c1", definition="bob"))
    message = pb.SendMessageRequest(request_id="m1", conversation_id=opened.id, text=asked)
    turn = await ended(stub, (await stub.SendMessage(message)).id)
    neighbour = AgentRuntimeStub(service.connect(service.token(id="usr_other")))
    kept = await run(neighbour, "bob", other, "r9")
    assert (team.input, team.output) == (asked, told)

    log: Any = EventLogStub(service.channel)
    erased = await log.EraseSubject(
        log_pb.EraseSubjectRequest(tenant="local", data_subject="usr_test", reason="asked by letter")
    )
    assert (erased.key_destroyed, list(erased.views_rebuilt)) == (True, ["runs"])
    rows, copies = everything(postgres_dsn), await published(fresh_nats.url)
    for text in ("Ludmilla", "sister"):
        assert text not in rows
        assert text not in copies
    assert opened.id in copies
    for run_id in (team.id, turn.id):
        found = await eventually_erased(stub, run_id)
        assert "Ludmilla" not in str(found)
        error = await refused(stub.ReplayRun(pb.ReplayRunRequest(id=run_id)))
        assert (type(error), error.reason) == (FailedPrecondition, "RUN_ERASED")
    listed = await stub.ListRuns(pb.ListRunsRequest(page_size=10))
    assert {each.input for each in listed.runs if each.id != kept.id} == {"[erased]"}
    assert (await neighbour.GetRun(pb.GetRunRequest(id=kept.id))).input == other
    assert (await log.Verify(log_pb.VerifyRequest())).ok
    assert (await log.VerifyView(log_pb.VerifyViewRequest(name="runs"))).equal


async def test_a_run_that_is_worked_on_ends_when_its_person_is_erased_and_says_nothing_on(
    world: World, service: Served[Settings], stub: AgentRuntimeStub, postgres_dsn: str
) -> None:
    world.says({"ann": [[("double", {"number": 21})], "Ludmilla will recover"], "bob": ["fine"]})
    world.tools.hold, world.models.hold = asyncio.Event(), asyncio.Event()
    started = await stub.StartRun(pb.StartRunRequest(request_id="r1", definition="ann", input="Ludmilla is ill"))
    neighbour = AgentRuntimeStub(service.connect(service.token(id="usr_other")))
    kept = await neighbour.StartRun(pb.StartRunRequest(request_id="r2", definition="bob", input="about Bartholomew"))
    await world.models.was_asked(2, WAIT_S)

    log: Any = EventLogStub(service.channel)
    await log.EraseSubject(log_pb.EraseSubjectRequest(tenant="local", data_subject="usr_test", reason="asked"))
    done = await ended(stub, started.id)
    assert (done.state, done.failure.reason, done.input) == (pb.RUN_STATE_FAILED, "RUN_ERASED", "[erased]")
    world.models.hold.set()
    world.tools.hold.set()
    assert (await ended(neighbour, kept.id)).output == "fine"
    assert world.models.asked.total() == 2, "nobody was told again what was erased"
    assert "Ludmilla" not in everything(postgres_dsn)


def everything(dsn: str) -> str:
    """Every row of every table, texts and bytes alike."""
    with psycopg.connect(dsn) as connection:
        connection.execute("set bytea_output = 'escape'")
        tables = connection.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname !~ '^(pg_|information)'"
        ).fetchall()
        return "\n".join(
            text for (table,) in tables for (text,) in connection.execute(f"select t::text from {table} t".encode())
        )


async def published(url: str) -> str:
    """The payloads of all events in JetStream."""
    client = await nats.connect(url)
    try:
        last = (await client.jetstream().stream_info(event_stream("agent-runtime"))).state.last_seq
        messages = [await client.jetstream().get_msg(event_stream("agent-runtime"), n) for n in range(1, last + 1)]
        return "\n".join((message.data or b"").decode() for message in messages)
    finally:
        await client.close()


async def eventually_erased(stub: AgentRuntimeStub, run_id: str) -> pb.Run:
    """The run, once the process has heard of the erasure."""
    async with asyncio.timeout(WAIT_S):
        while (found := await stub.GetRun(pb.GetRunRequest(id=run_id))).input != "[erased]":
            pass
    return found


async def test_runs_are_listed_in_pages_newest_first(service: Served[Settings], stub: AgentRuntimeStub) -> None:
    done = [await run(stub, request_id=f"r{number}") for number in range(3)]
    await caught_up(service, "runs")
    first = await stub.ListRuns(pb.ListRunsRequest(page_size=2, roots_only=True))
    rest = await stub.ListRuns(pb.ListRunsRequest(page_size=2, page_token=first.next_page_token))
    listed = [*first.runs, *rest.runs]
    assert [one.id for one in listed] == [one.id for one in reversed(done)]
    assert listed == list(reversed(done))
    assert not (await stub.ListRuns(pb.ListRunsRequest(state=pb.RUN_STATE_FAILED))).runs


async def caught_up(service: Served[Settings], view: str) -> None:
    log = service.host.history.log
    assert log is not None
    (projector,) = (one for one in service.host.history.projectors if one.view.name == view)
    head = await log.head()
    assert await projector.wait_for(head, WAIT_S) >= head


async def test_views_equal_views_folded_anew(world: World, service: Served[Settings], stub: AgentRuntimeStub) -> None:
    world.says({"ann": [[("double", {"number": 2})], "4"], "bob": ["fine"]})
    world.registry.add(a_team("crew", steps=[{"id": "a", "agent": "ann", "task": "x"}]))
    await run(stub, "crew")
    await run(stub, "bob", request_id="r2")
    log = EventLogStub(service.channel)
    for view in ("runs", "conversations"):
        await caught_up(service, view)
        verified = await log.VerifyView(log_pb.VerifyViewRequest(name=view))
        assert verified.equal


async def test_an_overdue_run_is_woken_by_the_sweep(world: World, stub: AgentRuntimeStub) -> None:
    world.models.hold = asyncio.Event()
    world.registry.add(an_agent("dan", timeout_s=1))
    world.registry.add(a_team("slow", timeout_s=1, steps=[{"id": "a", "agent": "ann", "task": "x"}]))
    done = await run(stub, "slow")
    assert (done.state, done.failure.reason) == (pb.RUN_STATE_FAILED, "TIMEOUT")
    child = await stub.GetRun(pb.GetRunRequest(id=done.child_run_ids[0]))
    assert child.state == pb.RUN_STATE_CANCELLED


async def test_wrong_requests_are_refused_by_name(service: Served[Settings], stub: AgentRuntimeStub) -> None:
    unknown = await refused(stub.StartRun(pb.StartRunRequest(definition="nobody", input="x")))
    assert isinstance(unknown, NotFound)
    assert (unknown.reason, "nobody" in unknown.message) == ("DEFINITION_NOT_FOUND", True)
    empty = await refused(stub.StartRun(pb.StartRunRequest(definition="ann", input="")))
    assert isinstance(empty, InvalidArgument)
    assert empty.field == "input"
    missing = await refused(stub.GetRun(pb.GetRunRequest(id="run_x")))
    assert isinstance(missing, NotFound)
    assert "run_x" in missing.message
    token = await refused(stub.ListRuns(pb.ListRunsRequest(page_token="bm9uc2Vuc2U=")))
    assert isinstance(token, InvalidArgument)
    assert token.field == "page_token"


async def test_a_request_id_with_other_content_is_refused(stub: AgentRuntimeStub) -> None:
    await run(stub, text="one")
    reused = await refused(stub.StartRun(pb.StartRunRequest(request_id="r1", definition="ann", input="two")))
    assert isinstance(reused, AlreadyExists)
    assert reused.reason == "REQUEST_ID_REUSED"


async def test_permission_and_tenant_are_checked(service: Served[Settings], stub: AgentRuntimeStub) -> None:
    done = await run(stub)
    reader = AgentRuntimeStub(service.connect(service.token(["runs.read"])))
    denied = await refused(reader.StartRun(pb.StartRunRequest(definition="ann", input="x")))
    assert isinstance(denied, PermissionDenied)
    assert denied.permission == "runs.start"
    stranger = AgentRuntimeStub(service.connect(service.token(["runs.*"], "other")))
    assert isinstance(await refused(stranger.GetRun(pb.GetRunRequest(id=done.id))), NotFound)
