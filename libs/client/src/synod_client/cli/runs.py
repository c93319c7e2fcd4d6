"""run, chat, watch, replay: work, and what became of it."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from synod.agent_runtime.v1.agent_runtime_pb2 import RUN_STATE_COMPLETED, Run, RunState, RunUpdate
from synod.common.ids import new_id

from synod_client.cli.output import Exit, as_dict, console, enum_name, errors, moment, print_json, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import POSITION_MAX, nano_usd, tags
from synod_client.client import Synod

Budget = Annotated[str, typer.Option("--budget", help="Hard limit of this run in US dollars, such as 0.25.")]


def start(
    definition: Annotated[str, typer.Argument(help="Agent or team: name, name@version or digest.")],
    text: Annotated[str, typer.Argument(help="The task.")],
    budget: Budget = "",
    files: Annotated[
        list[Path] | None,
        typer.Option("--file", help="Put a file into the run's workspace; repeatable.", exists=True, dir_okay=False),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", help="A word for reports on all that the run costs, NAME=VALUE; repeatable."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start and return at once.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Start a run and watch it to its end. Exits with 1 when it fails.

    Example: synod run analyst "Profile it" --file prices.csv --budget 0.10
    """
    limit, words = _limit(budget), tags(tag)

    async def command(synod: Synod) -> int:
        workspace = new_id("ws") if files else ""
        for path in files or ():
            await synod.put_file(workspace, path.name, path.read_bytes())
        started = await synod.start(definition, text, budget_nano_usd=limit, workspace_id=workspace, tags=words)
        if detach:
            print_json(as_dict(started)) if as_json else console.print(started.id, highlight=False)
            return Exit.DONE
        return await _follow(synod, started.id, 0, as_json)

    run(command, data)


def watch(
    run_id: Annotated[str, typer.Argument(help="Id of a run.")],
    after: Annotated[int, typer.Option("--after", help="Cursor to resume from.", min=0, max=POSITION_MAX)] = 0,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Watch a run and the runs below it until it has ended.

    Example: synod watch run_01k9...
    """
    run(lambda synod: _follow(synod, run_id, after, as_json), data)


def runs(
    everything: Annotated[bool, typer.Option("--all", help="Also the runs of team members.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """List runs, newest first.

    Example: synod runs --all
    """

    async def command(synod: Synod) -> None:
        found = await synod.runs(roots_only=not everything)
        if as_json:
            return print_json([as_dict(item) for item in found])
        rows = [
            (item.id, item.definition_name, _state(item), item.model_calls, item.tool_calls, moment(item.started_at))
            for item in found
        ]
        return print_table("", ("run", "definition", "state", "model calls>", "tool calls>", "started"), rows)

    run(command, data)


def cancel(
    run_id: Annotated[str, typer.Argument(help="Id of a run.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept with the event.")] = "cancelled by hand",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Cancel a run and every run below it.

    Example: synod cancel run_01k9... --reason "wrong input"
    """

    async def command(synod: Synod) -> None:
        ended = await synod.cancel(run_id, reason)
        if as_json:
            return print_json(as_dict(ended))
        return console.print(f"{ended.id} {_state(ended)}", markup=False, highlight=False)

    run(command, data)


def replay(
    run_id: Annotated[str, typer.Argument(help="Id of a run.")], as_json: AsJson = False, data: Data = None
) -> None:
    """Fold a run again from its events, with no call outside, and compare. Exits with 1 when it differs.

    Example: synod replay run_01k9...
    """

    async def command(synod: Synod) -> int:
        found = await synod.replay(run_id)
        if as_json:
            print_json(as_dict(found))
        else:
            verdict = (
                "[green]equal[/green]" if found.equal else f"[red]different[/red]: {escape(found.first_difference)}"
            )
            console.print(f"{verdict}  {found.runs} runs, {found.events} events, {found.outside_calls} calls outside")
            console.print(f"recorded {found.recorded_sha256}\nreplayed {found.replayed_sha256}", highlight=False)
        return Exit.DONE if found.equal else Exit.NOT_TRUE

    run(command, data)


def chat(
    definition: Annotated[str, typer.Argument(help="Agent to talk with.")],
    message: Annotated[
        list[str] | None,
        typer.Option("--message", "-m", help="Say this instead of asking at the terminal; repeatable."),
    ] = None,
    data: Data = None,
) -> None:
    """Talk with an agent; tokens appear as they are produced. An empty line ends.

    Example: synod chat helper -m "What can you do?"
    """

    async def command(synod: Synod) -> int:
        conversation = await synod.converse(definition)
        given = iter(message or ())
        while True:
            text = next(given, "") if message else _typed()
            if not text.strip():
                return Exit.DONE
            if (ended := await _turn(synod, conversation.id, text)) is not Exit.DONE:
                return ended

    run(command, data)


async def _turn(synod: Synod, conversation_id: str, text: str) -> Exit:
    started = await synod.send(conversation_id, text)
    console.print(f"[bold]{escape(started.definition_name)}[/bold] ", end="")
    streamed = False
    async for update in synod.watch(started.id, tokens=True):
        if update.type == "Token":
            streamed = True
            console.print(update.summary, end="", markup=False, highlight=False)
        elif update.type == "ModelCallSucceeded" and _is_simulated(update):
            console.print(" [dim](simulated)[/dim]", end="")
    ended = await synod.run(started.id)
    if ended.state != RUN_STATE_COMPLETED:
        console.print()
        errors.print(f"[red]{ended.failure.reason}[/red] {escape(ended.failure.message)}")
        return _outcome(ended)
    console.print("" if streamed else escape(ended.output))
    return Exit.DONE


def _typed() -> str:
    """What a person types; empty at the end of the input.

    Waiting here blocks the event loop, which would keep the first Ctrl-C to itself; so it is given back for the while.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return console.input("[bold]you[/bold] ")
    except EOFError:
        console.print()
        return ""
    finally:
        signal.signal(signal.SIGINT, before)


def _is_simulated(update: RunUpdate) -> bool:
    return "simulated" in update.data and bool(update.data["simulated"])


async def _follow(synod: Synod, run_id: str, after: int, as_json: bool) -> int:
    if not as_json:
        console.print(f"[dim]{run_id}[/dim]")
    async for update in synod.watch(run_id, after=after):
        print_json(as_dict(update)) if as_json else print_update(update)
    ended = await synod.run(run_id)
    if as_json:
        print_json(as_dict(ended))
    elif ended.state == RUN_STATE_COMPLETED:
        console.print(ended.output, markup=False, highlight=False, soft_wrap=True)
    else:
        errors.print(f"[red]{_state(ended)}[/red] {ended.failure.reason}: {escape(ended.failure.message)}")
    return _outcome(ended)


def _outcome(ended: Run) -> Exit:
    if ended.state == RUN_STATE_COMPLETED:
        return Exit.DONE
    return Exit.BUDGET if ended.failure.reason in ("BUDGET_EXHAUSTED", "BUDGET_SUSPENDED") else Exit.NOT_TRUE


def print_update(update: RunUpdate) -> None:
    clock = update.at.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
    line = f"[dim]{clock}[/dim] [cyan]{escape(update.agent):<16}[/cyan] {escape(update.summary)}"
    console.print(line, highlight=False, no_wrap=True, overflow="ellipsis")


def _state(item: Run) -> str:
    return enum_name(RunState.Name(item.state), "RUN_STATE_")


def _limit(text: str) -> int:
    """0 for no budget, which is why no budget may be 0."""
    limit = nano_usd(text, "--budget") if text else 0
    if text and not limit:
        raise typer.BadParameter(
            "a budget of 0 pays for nothing; give more, or leave it out for none", param_hint="--budget"
        )
    return limit
