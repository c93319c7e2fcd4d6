"""The synod command."""

import typer

from synod_client.cli import agents, decisions, events, money, runs, system

app = typer.Typer(
    name="synod",
    help="Teams of AI agents under control: run them, see what they did and why, what it cost, and prove it.\n\n"
    "Exit codes: 0 done, 1 what was asked did not come true, 2 wrong usage, 3 refused, 4 not allowed, 5 not found, "
    "6 unavailable, 7 a service failed, 8 budget exhausted.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("up")(system.up)
app.command("demo")(system.demo)
app.command("define")(agents.define)
app.command("agents")(agents.agents)
app.command("models")(agents.models)
app.command("run")(runs.start)
app.command("runs")(runs.runs)
app.command("chat")(runs.chat)
app.command("watch")(runs.watch)
app.command("cancel")(runs.cancel)
app.command("replay")(runs.replay)
app.command("spend")(money.spend)
app.command("propose")(decisions.propose)
app.command("vote")(decisions.vote)
app.command("proposals")(decisions.proposals)
app.add_typer(money.budget_app, name="budget")
app.add_typer(agents.tools_app, name="tools")
app.add_typer(events.events_app, name="events")
app.add_typer(events.views_app, name="views")


def main() -> None:
    app()
