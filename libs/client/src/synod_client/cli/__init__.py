"""The synod command."""

from importlib.metadata import version
from typing import Annotated

import typer

from synod_client.cli import agents, budgets, bus, decisions, events, prices, proofs, runs, spending, system, tls

EXIT_CODES = """Exit codes:

\b
  0  done
  1  what was asked did not come true: a run failed, a log is broken, a replay differs
  2  wrong usage
  3  refused; repeating does not help
  4  no valid key, or not the permission
  5  not found
  6  unavailable now; try again
  7  a service failed
  8  a budget is exhausted or suspended
130  interrupted
"""

app = typer.Typer(
    name="synod",
    help="Teams of AI agents under control: run them, see what they did and why, what it cost, and prove it.\n\n"
    f"First `synod up`, then for example `synod run` in another terminal.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"synod {version('synod-client')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What holds for every command; the help text is the app's."""


SYSTEM = "The system"
WORK = "Agents and their work"
CONTROL = "Money and decisions"
PROOF = "What happened, and the proof"

app.command("up", rich_help_panel=SYSTEM)(system.up)
app.add_typer(bus.nats_app, name="nats", rich_help_panel=SYSTEM)
app.add_typer(tls.tls_app, name="tls", rich_help_panel=SYSTEM)
app.command("demo", rich_help_panel=SYSTEM)(system.demo)
app.command("define", rich_help_panel=WORK)(agents.define)
app.command("agents", rich_help_panel=WORK)(agents.agents)
app.command("models", rich_help_panel=WORK)(agents.models)
app.add_typer(agents.tools_app, name="tools", rich_help_panel=WORK)
app.command("run", rich_help_panel=WORK)(runs.start)
app.command("runs", rich_help_panel=WORK)(runs.runs)
app.command("watch", rich_help_panel=WORK)(runs.watch)
app.command("cancel", rich_help_panel=WORK)(runs.cancel)
app.command("chat", rich_help_panel=WORK)(runs.chat)
app.command("ask", rich_help_panel=WORK)(agents.ask)
app.add_typer(spending.spend_app, name="spend", rich_help_panel=CONTROL)
app.add_typer(budgets.budget_app, name="budget", rich_help_panel=CONTROL)
app.command("propose", rich_help_panel=CONTROL)(decisions.propose)
app.command("vote", rich_help_panel=CONTROL)(decisions.vote)
app.command("proposals", rich_help_panel=CONTROL)(decisions.proposals)
app.add_typer(decisions.variables_app, name="variables", rich_help_panel=CONTROL)
app.add_typer(prices.prices_app, name="prices", rich_help_panel=CONTROL)
events.events_app.command("checkpoints")(proofs.checkpoints)
events.events_app.command("prove")(proofs.prove)
events.events_app.command("rotate-key")(proofs.rotate_key)
app.add_typer(events.events_app, name="events", rich_help_panel=PROOF)
app.add_typer(events.views_app, name="views", rich_help_panel=PROOF)
app.command("replay", rich_help_panel=PROOF)(runs.replay)
app.command("erase", rich_help_panel=PROOF)(proofs.erase)
app.command("erasures", rich_help_panel=PROOF)(proofs.erasures)


def main() -> None:
    app()
