"""The composition root of tool-executor."""

import asyncio
from functools import partial

from eventlog.codec import Codec
from servicekit.app import run
from servicekit.host import Host
from synod.common.ids import new_id
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.tool_executor.events import EVENTS
from synod.tool_executor.v1.tool_executor_pb2_grpc import add_ToolExecutorServicer_to_server

from tool_executor.application import Parts, ToolExecutor, announce
from tool_executor.clients import GrpcLedger
from tool_executor.flights import Flights
from tool_executor.grants import GrantIndex, Grants
from tool_executor.holds import PostgresHolds
from tool_executor.manifests import Catalogue
from tool_executor.projections import GrantsView, Queries, ToolCallsView, ToolsView
from tool_executor.recovery import Recovery
from tool_executor.rpc import PERMISSIONS, ToolExecutorRpc
from tool_executor.sandboxes.probe import Capabilities, probe
from tool_executor.sandboxes.sandbox import Level
from tool_executor.settings import Settings
from tool_executor.slots import Slots
from tool_executor.telemetry import Telemetry
from tool_executor.tools.catalogue import catalogue
from tool_executor.tools.runner import Runner, RunnerLimits
from tool_executor.tools.tool import Tool
from tool_executor.translate import ERRORS
from tool_executor.workers import PostgresWorkers, private_directory
from tool_executor.workspaces import Workspaces


async def compose(host: Host[Settings]) -> None:
    await compose_with(host, catalogue(), await asyncio.to_thread(probe))


async def compose_with(host: Host[Settings], tools: tuple[Tool, ...], capabilities: Capabilities) -> None:
    """The service with these tools, on a machine that can do this."""
    settings, log, codec, worker = (
        host.settings,
        await host.open_personal_log(EVENTS),
        Codec(EVENTS, sealed_below=True),
        new_id("wrk"),
    )
    if capabilities.best < Level.L2:
        host.health.degrade("sandbox", f"best level is {capabilities.best.name}: {capabilities.fix}")
    workers = PostgresWorkers(settings.postgres_dsn.get_secret_value(), host.pool, worker)
    await workers.enter()
    # Stopped in reverse: calls end, then their sandboxes, and the worker is dead when nothing of it runs any more.
    host.on_stop(workers.leave)
    holds = PostgresHolds(host.pool)
    await holds.prepare()
    directory = await private_directory(settings.state_dir / "sandboxes", worker, workers)
    runner = Runner(capabilities, RunnerLimits(calls_max=settings.calls_max), state_dir=directory)
    parts = Parts(
        log=log,
        codec=codec,
        clock=host.clock,
        catalogue=Catalogue(tools, capabilities, settings.tool_prices),
        runner=runner,
        grants=GrantIndex(log, codec),
        flights=Flights(log, host.clock, host.log_),
        slots=Slots(settings.calls_max, settings.calls_per_agent_max),
        workers=workers,
        workspaces=Workspaces(settings.state_dir / "workspaces"),
        telemetry=Telemetry(host.tracer, host.metrics.registry, settings.calls_max),
        ledger=GrpcLedger(CostLedgerStub(host.channel("cost-ledger")), settings.ledger_timeout_s),
        holds=holds,
        worker=worker,
    )
    host.on_stop(runner.aclose)
    # Calls had their time; this is for what somebody started and left.
    host.on_stop(partial(parts.flights.close, settings.shutdown_grace_s / 10))
    await parts.grants.catch_up()
    await announce(parts)
    _serve(host, parts, holds)
    host.add_task("worker lock", workers.stay)
    if settings.warm:
        host.add_task("warm sandboxes", partial(runner.start, tools))


def _serve(host: Host[Settings], parts: Parts, holds: PostgresHolds) -> None:
    queries, executor = Queries(host.pool), ToolExecutor(parts)
    host.on_erasure(executor.forget)
    host.add_view(ToolCallsView())
    host.add_view(ToolsView())
    servicer = ToolExecutorRpc(
        executor=executor,
        grants=Grants(parts.log, parts.codec, parts.clock, parts.grants),
        catalogue=parts.catalogue,
        workspaces=parts.workspaces,
        queries=queries,
        grants_view=host.add_view(GrantsView()),
        log=parts.log,
        clock=host.clock,
    )
    host.add_rpc(add_ToolExecutorServicer_to_server, servicer, PERMISSIONS, ERRORS)
    host.add_task("grants", parts.grants.follow)
    host.add_task("ends of calls", parts.flights.follow)
    recovery = Recovery(executor, queries, holds, parts.workers, parts.ledger, host.clock, host.log_)
    host.add_task("recovery", recovery.run)


def main() -> int:
    return run(Settings, compose)
