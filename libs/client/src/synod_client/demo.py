"""The main job, end to end, and its proof: a team works on real input, then every claim about it is checked.

Writes ``<out>/demo.json``: run_id, state, result_sha256, replay_equal, views_equal, logs_verified, attested_to
(by log, the position up to which signed checkpoints hold), cost_nano_usd, events (count over all logs), seconds (by
phase).
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from launcher.layout import Layout
from launcher.supervisor import State, Status
from launcher.system import System
from rich.markup import escape
from synod.agent_runtime.v1.agent_runtime_pb2 import RUN_STATE_COMPLETED, Run, RunState
from synod.common.ids import new_id
from synod.common.money import format_usd, parse_usd
from synod.cost_ledger.v1.cost_ledger_pb2 import Attribution

from synod_client.checkpoints import PublicKeys
from synod_client.cli.events import print_verdicts
from synod_client.cli.output import console, enum_name, print_table
from synod_client.cli.runs import print_update
from synod_client.client import Synod
from synod_client.endpoints import Endpoints
from synod_client.verifying import verify_log

TEAM = "model-scout"
QUESTION = "Which models would serve this monthly workload cheapest under its constraints?"
BUDGET = "0.50"
SIGNED_TIMEOUT_S, SIGNED_POLL_S = 30.0, 0.1
"""A log that rests gets a checkpoint within seconds."""
PROVIDERS = ("provider-simulator", "llm-gateway", "tool-executor")


@dataclass(frozen=True, slots=True)
class Options:
    """What to run, where it goes, and on which system."""

    example: Path
    out: Path
    model: str = ""
    data: Path | None = None
    running: bool = False
    port_base: int = 7100


@dataclass(slots=True)
class Outcome:
    """What demo.json holds."""

    run_id: str = ""
    state: str = ""
    result_sha256: str = ""
    replay_equal: bool = False
    views_equal: bool = False
    logs_verified: bool = False
    attested_to: dict[str, int] = field(default_factory=dict)
    cost_nano_usd: int = 0
    events: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        return self.state == "completed" and self.replay_equal and self.views_equal and self.logs_verified

    @contextmanager
    def phase(self, name: str, title: str) -> Iterator[None]:
        console.rule(f"[bold]{title}[/bold]", align="left")
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)


async def run(options: Options) -> bool:
    """True when the team's run completed and every proof held."""
    outcome = Outcome()
    start = time.monotonic()
    try:
        async with _system(options, outcome) as (system, endpoints), Synod.connect(endpoints) as synod:
            workspace = await _prepare(synod, options, outcome)
            ended = await _work(synod, workspace, outcome)
            await _show(synod, ended, workspace, options, outcome)
            await _prove(synod, system, ended, outcome)
    finally:
        outcome.seconds["total"] = round(time.monotonic() - start, 3)
        _write(options.out / "demo.json", json.dumps(asdict(outcome), indent=2).encode() + b"\n")
    _conclude(outcome, options.out)
    return outcome.proved


@asynccontextmanager
async def _system(options: Options, outcome: Outcome) -> AsyncIterator[tuple[System | None, Endpoints]]:
    if options.running:
        yield None, Endpoints.discover(data=options.data)
        return
    data = options.data or options.out / "demo-data"
    system = System(Layout(data, options.port_base, simulator=True), fresh=True)
    try:
        with outcome.phase("start", "Start PostgreSQL, NATS and the services"):
            await system.up(_print_status)
        yield system, Endpoints.discover(data=system.layout.data)
    finally:
        await system.down()


def _print_status(status: Status) -> None:
    if status.state is State.READY:
        console.print(f"  [green]ready[/green] {status.name:<18} [dim]{status.address}[/dim]", highlight=False)
    elif status.problem and status.state is not State.STARTING:
        console.print(
            f"  [yellow]{status.state.value}[/yellow] {status.name} {escape(status.problem)}", highlight=False
        )


async def _prepare(synod: Synod, options: Options, outcome: Outcome) -> str:
    """Registers the team, grants its tools, prices its model, and puts its input into a workspace."""
    with outcome.phase("prepare", "Prepare the team and its input"):
        prices = options.out / "model-scout" / "prices.csv"
        command = [sys.executable, str(options.example / "export_prices.py"), str(prices)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        definitions = await synod.define(_definitions(options))
        for item in definitions:
            console.print(f"  {item.kind} {item.name}@{item.version} [dim]{item.digest[:12]}[/dim]", highlight=False)
            for tool in json.loads(item.spec_json)["spec"].get("tools", ()):
                await synod.grant(item.name, tool)
        workspace = new_id("ws")
        for path in (prices, options.example / "workload.json"):
            await synod.put_file(workspace, path.name, path.read_bytes())
    return workspace


def _definitions(options: Options) -> str:
    text = (options.example / "agents.yaml").read_text(encoding="utf-8")
    return re.sub(r"simulator/sim-1", options.model, text) if options.model else text


async def _work(synod: Synod, workspace: str, outcome: Outcome) -> Run:
    with outcome.phase("run", "The team works"):
        started = await synod.start(TEAM, QUESTION, budget_nano_usd=parse_usd(BUDGET), workspace_id=workspace)
        console.print(f"  {started.id}, at most {format_usd(parse_usd(BUDGET))}", highlight=False)
        async for update in synod.watch(started.id):
            print_update(update)
        ended = await synod.run(started.id)
    outcome.run_id = ended.id
    outcome.state = enum_name(RunState.Name(ended.state), "RUN_STATE_")
    outcome.result_sha256 = ended.result_sha256
    if ended.state != RUN_STATE_COMPLETED:
        console.print(f"[red]{outcome.state}[/red] {ended.failure.reason}: {escape(ended.failure.message)}")
    return ended


async def _show(synod: Synod, ended: Run, workspace: str, options: Options, outcome: Outcome) -> None:
    """The report and its chart as files; the votes; the cost by agent."""
    with outcome.phase("report", "What came of it"):
        for file in await synod.files(workspace):
            if file.path not in {"prices.csv", "workload.json"}:
                place = options.out / "model-scout" / file.path
                _write(place, await synod.get_file(workspace, file.path))
                console.print(f"  {place}  {file.size_bytes} bytes", highlight=False)
        await _show_votes(synod, ended.id)
        await _show_cost(synod, ended.id, outcome)


async def _show_votes(synod: Synod, run_id: str) -> None:
    for proposal in await synod.proposals(run_id):
        title = f"{proposal.title}: [bold]{proposal.outcome}[/bold]. {proposal.explanation}"
        rows = [(ballot.voter_id, ballot.option, ballot.reason) for ballot in proposal.ballots]
        print_table(title, ("voter", "vote", "reason"), rows)


async def _show_cost(synod: Synod, run_id: str, outcome: Outcome) -> None:
    spend = await synod.spend("agent", "model", scope=Attribution(root_run_id=run_id))
    outcome.cost_nano_usd = spend.total_nano_usd
    rows = [
        (*row.group, format_usd(row.cost_nano_usd), row.calls, row.input_tokens, row.output_tokens)
        for row in spend.rows
    ]
    columns = ("agent", "model", "cost>", "calls>", "input tokens>", "output tokens>")
    print_table(f"Cost {format_usd(spend.total_nano_usd)}", columns, rows)
    if any("sim-1" in row.group[1] for row in spend.rows):
        console.print(
            "[dim]simulator/sim-1 is the provider simulator: the tools' work is real, its words are scripted.[/dim]"
        )


async def _prove(synod: Synod, system: System | None, ended: Run, outcome: Outcome) -> None:
    with outcome.phase("views", "Proof 1: every view, rebuilt from its events, is the same"):
        outcome.views_equal = await _views_equal(synod)
    with outcome.phase("logs", "Proof 2: every log is contiguous, its hash chain holds, and it is as it was signed"):
        outcome.logs_verified = await _logs_verified(synod, outcome)
    with outcome.phase("replay", "Proof 3: the run, replayed with the providers switched off, is the same"):
        await _switch_off(system)
        replayed = await synod.replay(ended.id)
        outcome.replay_equal = (
            replayed.equal and replayed.outside_calls == 0 and replayed.replayed_sha256 == ended.result_sha256
        )
        console.print(f"  {replayed.runs} runs, {replayed.events} events, {replayed.outside_calls} calls outside")
        console.print(f"  {replayed.recorded_sha256} recorded\n  {replayed.replayed_sha256} replayed", highlight=False)
        if replayed.first_difference:
            console.print(f"  [red]{escape(replayed.first_difference)}[/red]")


async def _switch_off(system: System | None) -> None:
    """On a system of our own nothing is left that could answer for a model or a tool."""
    if system is None:
        console.print("  [dim]the running system is left as it is; a replay has no port to the outside[/dim]")
        return
    for name in PROVIDERS:
        await system.switch_off(name)
    console.print(f"  stopped: {', '.join(PROVIDERS)}")


async def _views_equal(synod: Synod) -> bool:
    found = [(service, view.name) for service in synod.services for view in await synod.views(service)]
    rows = []
    equal = bool(found)
    for service, name in found:
        result = await synod.verify_view(service, name)
        equal = equal and result.equal
        verdict = "equal" if result.equal else f"DIFFERS: {', '.join(result.differing_tables)}"
        rows.append((service, name, result.position, verdict, result.checksum[:16]))
    print_table("", ("service", "view", "position>", "rebuilt", "checksum"), rows)
    return equal


async def _logs_verified(synod: Synod, outcome: Outcome) -> bool:
    """Every log holds, and all that was in it when the run had ended is attested to by a signed checkpoint."""
    due = {service: (await synod.read(service, limit=1)).head_position for service in synod.services}
    await asyncio.gather(*(_signed(synod, service, head) for service, head in due.items() if head))
    data = synod.connection.endpoints.data
    found = {name: await verify_log(synod, name, PublicKeys.of_system(data, name)) for name in synod.services}
    outcome.events = sum(each.found.events for each in found.values())
    outcome.attested_to = {name: each.found.attested_position for name, each in found.items()}
    print_verdicts(found)
    return all(each.ok and outcome.attested_to[name] >= due[name] for name, each in found.items())


async def _signed(synod: Synod, service: str, head: int) -> None:
    """Wait for a checkpoint over a position; one that does not come is missed by what is verified then."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SIGNED_TIMEOUT_S):
            while not await synod.checkpoints(service, after=head - 1, limit=1):  # noqa: ASYNC110
                await asyncio.sleep(SIGNED_POLL_S)


def _conclude(outcome: Outcome, out: Path) -> None:
    console.rule(align="left")
    verdict = "[bold green]proved[/bold green]" if outcome.proved else "[bold red]NOT proved[/bold red]"
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in outcome.seconds.items())
    console.print(
        f"{verdict}  {outcome.run_id} {outcome.state}, {format_usd(outcome.cost_nano_usd)}, {outcome.events} events"
    )
    console.print(f"report {out / 'model-scout' / 'report.md'}   details {out / 'demo.json'}", highlight=False)
    console.print(f"seconds: {seconds}", highlight=False)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
