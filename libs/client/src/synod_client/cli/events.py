"""events and views: the logs of the services and what is folded from them."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from synod.eventlog.v1.eventlog_pb2 import Event, EventFilter

from synod_client.checkpoints import PublicKeys, read_kept
from synod_client.cli.output import Exit, as_dict, console, errors, moment, print_json, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import POSITION_MAX
from synod_client.client import Synod
from synod_client.endpoints import SERVICES
from synod_client.errors import NotFound
from synod_client.verifying import LogVerdict, verify_log

events_app = typer.Typer(help="Read, follow and verify the logs of the services.", no_args_is_help=True)
views_app = typer.Typer(help="What is folded from the logs: list, rebuild, verify.", no_args_is_help=True)


def known_service(name: str) -> str:
    if name not in SERVICES:
        raise typer.BadParameter(f"'{name}' is no service; services are {', '.join(SERVICES)}")
    return name


def known_services(names: list[str] | None) -> list[str]:
    return [known_service(name) for name in names or SERVICES]


def _complete_service(incomplete: str) -> list[str]:
    return [name for name in SERVICES if name.startswith(incomplete)]


Service = Annotated[
    str,
    typer.Argument(help=f"{', '.join(SERVICES)}.", callback=known_service, autocompletion=_complete_service),
]
Services = Annotated[
    list[str] | None,
    typer.Argument(help="Default: all.", callback=known_services, autocompletion=_complete_service),
]
Types = Annotated[list[str] | None, typer.Option("--type", help="Only events of this type; repeatable.")]
RunId = Annotated[str, typer.Option("--run", "--correlation", help="Only events of this run.")]
Stream = Annotated[str, typer.Option("--stream", help='Only this stream, "<aggregate>/<id>".')]
After = Annotated[int, typer.Option("--after", help="Events with a greater position.", min=0, max=POSITION_MAX)]


def a_moment(text: str) -> datetime:
    """A moment as ISO 8601; in UTC unless it says otherwise."""
    try:
        at = datetime.fromisoformat(text)
        # The first and the last hours of all time have no moment in UTC.
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"'{text}' is no moment such as 2026-11-01T12:00 or 2026-11-01T12:00+02:00") from error


Since = Annotated[datetime | None, typer.Option(parser=a_moment, metavar="TIME", help="Recorded then or later.")]
Until = Annotated[datetime | None, typer.Option(parser=a_moment, metavar="TIME", help="Recorded before then.")]
AsOf = Annotated[datetime | None, typer.Option(parser=a_moment, metavar="TIME", help="The log as it was then.")]
OneService = Annotated[
    str,
    typer.Argument(
        help="Default: all, for the events of a run.",
        callback=lambda name: name and known_service(name),
        autocompletion=_complete_service,
    ),
]


@events_app.command("read")
def events_read(
    service: OneService = "", after: After = 0, limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    types: Types = None, run_id: RunId = "", stream: Stream = "", since: Since = None, until: Until = None,
    as_of: AsOf = None, as_json: AsJson = False, data: Data = None,
) -> None:  # fmt: skip
    """Print events by position; those of a run over all services, each after what caused it.

    Example: synod events read --run run_01k9 --since 2026-11-01T12:00
    """
    if not service and not run_id:
        raise typer.BadParameter("name a service, or a run with --run", param_hint="SERVICE")
    if since is not None and until is not None and since >= until:
        raise typer.BadParameter(f"{until.isoformat()} is not after --since {since.isoformat()}", param_hint="--until")
    where = _filter(types, run_id, stream)
    if since is not None:
        where.since.FromDatetime(since)
    if until is not None:
        where.until.FromDatetime(until)

    async def tell(synod: Synod) -> None:
        story = await synod.story(where, as_of=as_of)
        if not story:
            raise NotFound(_no_events(run_id, narrowed=bool(types or stream or since or until or as_of)))
        for name, event in story:
            print_event(event, as_json, name)

    async def command(synod: Synod) -> None:
        page = await synod.read(service, after=after, limit=limit, where=where, as_of=as_of)
        for event in page.events:
            print_event(event, as_json)
        if not page.events:
            _hint_at_types(service, types)
        if not as_json:
            errors.print(
                f"[dim]{len(page.events)} events; the log's head is at {page.head_position}[/dim]", highlight=False
            )

    run(command if service else tell, data)


def _hint_at_types(service: str, asked: list[str] | None) -> None:
    """Whoever misspells a type waits in vain. No error: a log has types of its own too, and those of a newer release."""
    own = sorted(event.type_name() for event in import_module(f"synod.{service.replace('-', '_')}.events").EVENTS)
    if unknown := [name for name in asked or () if name not in own]:
        hint = f"{', '.join(unknown)}: none of the types of {service}, which are {', '.join(own)}"
        errors.print(hint, style="dim", markup=False, highlight=False, soft_wrap=True)


def _no_events(run_id: str, *, narrowed: bool) -> str:
    if narrowed:
        return f"no service has such an event of run {run_id!r}; ask for less, to see whether there is any"
    return f"no service has an event of run {run_id!r}; `synod runs` shows the runs that there are"


@events_app.command("tail")
def events_tail(
    service: Service,
    after: Annotated[int | None, typer.Option("--after", help="Default: only new events.", min=0, max=POSITION_MAX)] = None,
    types: Types = None, run_id: RunId = "", stream: Stream = "", as_json: AsJson = False, data: Data = None,
) -> None:  # fmt: skip
    """Follow a log: every event as it is appended, until interrupted.

    Example: synod events tail agent-runtime --after 0
    """
    where = _filter(types, run_id, stream)

    async def command(synod: Synod) -> None:
        _hint_at_types(service, types)
        start = after if after is not None else (await synod.read(service, limit=1)).head_position
        async for event in synod.subscribe(service, after=start, where=where):
            print_event(event, as_json)

    run(command, data)


@events_app.command("verify")
def events_verify(
    service: Services = None,
    kept: Annotated[
        Path | None,
        typer.Option("--checkpoints", help="File of checkpoints kept from before; they must hold too.", dir_okay=False),
    ] = None,
    keys: Annotated[
        list[Path] | None,
        typer.Option("--key", help="Public key that signs; repeatable. Default: those of the system on this machine."),
    ] = None,
    stream: Annotated[
        str, typer.Option("--stream", help='Only this stream of one service, "<aggregate>/<id>", by its own chain.')
    ] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Prove that positions are contiguous, hash chains unbroken, and logs as they were signed. Exits with 1 if not.

    Example: synod events verify
    """
    if stream:
        if len(service or ()) != 1 or kept or keys:
            raise typer.BadParameter("--stream goes with one service, and without --checkpoints and --key")
        return _verify_stream("".join(service or ()), stream, as_json, data)

    async def command(synod: Synod) -> int:
        witnessed = read_kept(kept) if kept else {}
        found: dict[str, LogVerdict] = {}
        for name in service or synod.services:
            known = PublicKeys.load(keys) if keys else PublicKeys.of_system(synod.connection.endpoints.data, name)
            found[name] = await verify_log(synod, name, known, witnessed.get(name, ()))
        if as_json:
            print_json({name: _as_dict(verdict) for name, verdict in found.items()})
        else:
            print_verdicts(found)
        return Exit.DONE if all(verdict.ok for verdict in found.values()) else Exit.NOT_TRUE

    return run(command, data)


def _verify_stream(service: str, stream: str, as_json: bool, data: Path | None) -> None:
    async def command(synod: Synod) -> int:
        found = await synod.verify_stream(service, stream)
        if as_json:
            print_json(as_dict(found))
        elif found.ok:
            signed = "attested to by the newest checkpoint" if found.attested else "not yet attested to by a checkpoint"
            console.print(f"{stream}: {found.events} events hold, {signed}", highlight=False)
        else:
            console.print(f"{stream}: BROKEN at version {found.broken_version}: {found.reason}", highlight=False)
        return Exit.DONE if found.ok else Exit.NOT_TRUE

    run(command, data)


@views_app.command("list")
def views_list(as_json: AsJson = False, data: Data = None) -> None:
    """List the views of every service with position and lag.

    Example: synod views list
    """

    async def command(synod: Synod) -> None:
        found = [(name, view) for name in synod.services for view in await synod.views(name)]
        if as_json:
            return print_json([{"service": name, **as_dict(view)} for name, view in found])
        rows = [
            (name, view.name, view.version, view.source, view.position, view.lag_events, view.parked_events)
            for name, view in found
        ]
        return print_table("", ("service", "view", "version>", "folds", "position>", "lag>", "parked>"), rows)

    run(command, data)


@views_app.command("rebuild")
def views_rebuild(
    service: Service, view: Annotated[str, typer.Argument(help="Name of the view.")],
    as_json: AsJson = False, data: Data = None,
) -> None:  # fmt: skip
    """Build a view anew beside the live one and swap it in.

    Example: synod views rebuild cost-ledger spend
    """

    async def command(synod: Synod) -> None:
        done = await synod.rebuild_view(service, view)
        if as_json:
            return print_json(as_dict(done))
        took = done.took.seconds + done.took.nanos / 1e9
        console.print(f"{service}/{view}: {done.events_folded} events in {took:.2f} s, live at {done.view.position}")
        return None

    run(command, data)


@views_app.command("rollback")
def views_rollback(
    service: Service, view: Annotated[str, typer.Argument(help="Name of the view.")],
    as_json: AsJson = False, data: Data = None,
) -> None:  # fmt: skip
    """Go back to the copy of a view that its last rebuild replaced, brought up to date first.

    Example: synod views rollback cost-ledger spend
    """

    async def command(synod: Synod) -> None:
        done = await synod.rollback_view(service, view)
        if as_json:
            return print_json(as_dict(done))
        return console.print(f"{service}/{view}: rolled back, live at {done.view.position}")

    run(command, data)


@views_app.command("parked")
def views_parked(service: Services = None, as_json: AsJson = False, data: Data = None) -> None:
    """List the events that a view could not fold and has set aside.

    Example: synod views parked cost-ledger
    """

    async def command(synod: Synod) -> None:
        found = [(name, item) for name in service or synod.services for item in await synod.parked(name)]
        if as_json:
            return print_json([{"service": name, **as_dict(item)} for name, item in found])
        rows = [(name, item.view, item.position, item.type, moment(item.parked_at), item.error) for name, item in found]
        return print_table("", ("service", "view", "position>", "type", "parked", "error"), rows)

    run(command, data)


@views_app.command("redrive")
def views_redrive(
    service: Service, view: Annotated[str, typer.Argument(help="Name of the view.")],
    position: Annotated[int, typer.Argument(help="Position of the parked event.", min=1, max=POSITION_MAX)],
    skip: Annotated[bool, typer.Option("--skip", help="Drop it from the list without folding it.")] = False,
    data: Data = None,
) -> None:  # fmt: skip
    """Fold a parked event again once the view can, or skip it for good.

    Example: synod views redrive cost-ledger spend 42
    """

    async def command(synod: Synod) -> None:
        await synod.redrive(service, view, position, skip=skip)
        console.print(f"{service}/{view}: event {position} {'skipped' if skip else 'folded'}")

    run(command, data)


@views_app.command("verify")
def views_verify(
    service: Services = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Rebuild every view aside and compare it with the live one. Exits with 1 when one differs.

    Example: synod views verify
    """

    async def command(synod: Synod) -> int:
        names = service or synod.services
        found = [(name, await synod.verify_view(name, view.name)) for name in names for view in await synod.views(name)]
        if as_json:
            print_json([{"service": name, **as_dict(item)} for name, item in found])
        else:
            rows = [
                (
                    name,
                    item.name,
                    item.position,
                    "equal" if item.equal else f"DIFFERS: {', '.join(item.differing_tables)}",
                )
                for name, item in found
            ]
            print_table("", ("service", "view", "position>", "rebuilt"), rows)
        return Exit.DONE if all(item.equal for _, item in found) else Exit.NOT_TRUE

    run(command, data)


def print_event(event: Event, as_json: bool, service: str = "") -> None:
    if as_json:
        named = {"service": service} if service else {}
        return print_json({**named, **as_dict(event), "data": json.loads(event.data)})
    head = f"[bold]{event.position:>6}[/bold] [dim]{moment(event.occurred_at)}[/dim] [cyan]{event.type}[/cyan]"
    head = f"{service:<14}{head}" if service else head
    console.print(f"{head} [dim]{event.stream}#{event.version}[/dim]", highlight=False)
    console.print(f"       {event.data.decode()}", markup=False, highlight=False, overflow="ellipsis", no_wrap=True)
    return None


def print_verdicts(found: Mapping[str, LogVerdict]) -> None:
    """A line for each log, and what they come to."""
    rows = [
        (
            name,
            each.found.events,
            each.words,
            each.found.head_hash.hex()[:16],
            each.found.attested_position or "",
            each.signed_by,
        )
        for name, each in found.items()
    ]
    print_table("", ("log", "events>", "chain", "head", "attested to>", "signed by"), rows)
    held = sum(each.ok for each in found.values())
    events, attested = _total(found, "events"), _total(found, "attested_position")
    console.print(
        f"{held} of {len(found)} logs verified; {attested} of {events} events attested to by signed checkpoints",
        highlight=False,
    )


def _total(found: Mapping[str, LogVerdict], field: str) -> int:
    return sum(getattr(each.found, field) for each in found.values())


def _cells(verdict: LogVerdict) -> tuple[object, ...]:
    found = verdict.found
    head, attested_to = found.head_hash.hex()[:16], found.attested_position or ""
    return found.events, verdict.words, head, attested_to, verdict.signed_by


def _as_dict(verdict: LogVerdict) -> dict[str, Any]:
    """The service's answer, in which what was found here stands above what it says."""
    own = {"ok": verdict.ok, "broken_position": str(verdict.broken_at), "reason": verdict.reason}
    return {**as_dict(verdict.found), **own, "signed_by": verdict.signed_by}


def _filter(types: list[str] | None, run_id: str, stream: str) -> EventFilter:
    return EventFilter(types=types or [], correlation_id=run_id, stream=stream)
