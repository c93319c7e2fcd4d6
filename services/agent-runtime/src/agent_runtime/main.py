"""The composition root of agent-runtime."""

from functools import partial

from eventlog.codec import Codec
from eventlog.sources import LogSource, StreamSource
from servicekit.app import run
from servicekit.clock import Clock
from servicekit.host import Host
from synod.agent_runtime.events import EVENTS
from synod.agent_runtime.v1.agent_runtime_pb2_grpc import add_AgentRuntimeServicer_to_server
from synod.common.ids import new_id
from synod.consensus.events import EVENTS as CONSENSUS_EVENTS

from agent_runtime.application import Runtime
from agent_runtime.clients import connect
from agent_runtime.ports import Ports
from agent_runtime.projections import ConversationsView, Queries, RunsView
from agent_runtime.rpc import PERMISSIONS, AgentRuntimeRpc
from agent_runtime.settings import Settings
from agent_runtime.subscriptions import (
    ACK_WAIT_S,
    DELIVERIES_MAX,
    Dispatcher,
    NatsTokenListener,
    Positions,
    RunCommands,
    Sweeper,
)
from agent_runtime.telemetry import Telemetry
from agent_runtime.translate import ERRORS
from agent_runtime.work.calls import Calls
from agent_runtime.work.dispatch import DECISIONS, DISPATCHED, VERB, WorkItem
from agent_runtime.work.histories import Histories
from agent_runtime.work.store import Conversations, Runs, codec
from agent_runtime.work.turns import Turns
from agent_runtime.work.watch import Feed, Watcher
from agent_runtime.work.worker import Worker


async def compose(host: Host[Settings]) -> None:
    await compose_with(host, connect(host))


async def compose_with(host: Host[Settings], ports: Ports) -> None:
    """Everything but the ports, which tests replace by fakes."""
    log, stored, events = await host.open_personal_log(EVENTS), await host.open_log(), codec()
    runs, conversations, histories = Runs(log, events), Conversations(log, events), Histories(log, events)
    calls = Calls(ports, conversations)
    turns = Turns()
    worker = Worker(new_id("wrk"), log, runs, events, host.clock, calls, turns)
    runtime = Runtime(log, runs, conversations, histories, events, host.clock, ports)
    feed = Feed(stored)
    for forget in (runs.forget, conversations.forget, turns.nudge_all):
        host.on_erasure(forget)
    watcher = Watcher(log, runs, histories, events, feed, NatsTokenListener(host.nats))
    queries, positions = Queries(host.pool), Positions(host.pool)
    await positions.prepare()
    host.add_view(RunsView(), LogSource(log, "agent-runtime"))
    host.add_view(ConversationsView())
    host.add_rpc(add_AgentRuntimeServicer_to_server, AgentRuntimeRpc(runtime, watcher, queries), PERMISSIONS, ERRORS)
    host.add_command(
        VERB,
        RunCommands(worker, runs, host.log_).work,
        WorkItem,
        ack_wait_s=ACK_WAIT_S,
        max_deliver=DELIVERIES_MAX,
        concurrency=host.settings.runs_concurrent_max,
    )
    own = Dispatcher(LogSource(stored, "agent-runtime"), DISPATCHED, events, host.queue, positions, host.log_)
    decided = Dispatcher(
        StreamSource(host.nats, "consensus"), DECISIONS, Codec(CONSENSUS_EVENTS), host.queue, positions, host.log_
    )
    host.add_measurement(partial(_measure, queries, Telemetry(host.metrics.registry), host.clock))
    host.add_task("dispatch", own.run)
    host.add_task("dispatch decisions", decided.run)
    host.add_task("feed", feed.follow)
    host.add_task("sweep", Sweeper(queries, host.queue, host.clock, host.settings.sweep_s).run)


async def _measure(queries: Queries, telemetry: Telemetry, clock: Clock) -> None:
    now = clock.now()
    telemetry.open_runs(await queries.open_runs(now), now)


def main() -> int:
    return run(Settings, compose)
