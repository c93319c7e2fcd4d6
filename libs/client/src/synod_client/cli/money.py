"""spend and budget: what it cost, and what it may cost."""

from enum import StrEnum
from typing import Annotated

import typer
from synod.common.money import format_usd, parse_usd
from synod.cost_ledger.v1.cost_ledger_pb2 import Attribution, Budget

from synod_client.cli.output import as_dict, print_json, print_messages, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.client import Synod


class Window(StrEnum):
    """Over which time a budget is counted."""

    LIFETIME = "lifetime"
    DAY = "day"
    MONTH = "month"


budget_app = typer.Typer(help="Limits of spending.", no_args_is_help=True)
prices_app = typer.Typer(help="Prices of models.", no_args_is_help=True)
_NANO_PER_MILLION_IN_PICO = 1_000


def spend(
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="agent, model, run_id, root_run_id, tool, user_id, day, ...; repeatable."),
    ] = None,
    run_id: Annotated[str, typer.Option("--run", help="Only of this run and the runs below it.")] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """What was spent, by any attribution.

    Example: synod spend --by agent --by model
    """
    groups = by or ["agent"]

    async def command(synod: Synod) -> None:
        found = await synod.spend(*groups, scope=Attribution(root_run_id=run_id))
        if as_json:
            return print_json(as_dict(found))
        rows = [
            (*row.group, format_usd(row.cost_nano_usd), row.calls, row.input_tokens, row.output_tokens)
            for row in found.rows
        ]
        columns = (*groups, "cost>", "calls>", "input tokens>", "output tokens>")
        return print_table(f"Total {format_usd(found.total_nano_usd)}", columns, rows)

    run(command, data)


@prices_app.command("set")
def prices_set(
    model: Annotated[str, typer.Argument(help="provider/model.")],
    usd_in: Annotated[str, typer.Argument(help="US dollars per million input tokens, such as 0.10.")],
    usd_out: Annotated[str, typer.Argument(help="US dollars per million output tokens.")],
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Give a model a price of your own, which wins over the price book.

    Example: synod prices set ollama/qwen3 0.02 0.08
    """
    provider, found, name = model.partition("/")
    if not found:
        raise typer.BadParameter(f"'{model}' is not provider/model, such as ollama/qwen3", param_hint="MODEL")
    rates = [_nano_usd(text, hint) for text, hint in ((usd_in, "USD_IN"), (usd_out, "USD_OUT"))]

    async def command(synod: Synod) -> None:
        # A nano-USD per million tokens is a thousandth of a pico-USD per token.
        price = await synod.set_price(provider, name, *(rate // _NANO_PER_MILLION_IN_PICO for rate in rates))
        if as_json:
            return print_messages([price])
        return print_table("", ("model", "USD in", "USD out"), [(model, usd_in, usd_out)])

    run(command, data)


@budget_app.command("set")
def budget_set(
    budget_id: Annotated[str, typer.Argument(help="Name of the budget.")],
    limit: Annotated[str, typer.Argument(help="US dollars, such as 25 or 0.10.")],
    agent: Annotated[str, typer.Option(help="Only costs of this agent.")] = "",
    model: Annotated[str, typer.Option(help="Only costs of this model.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="Only costs of this run and the runs below it.")] = "",
    window: Annotated[Window, typer.Option(help="What the limit is for; days and months are UTC.")] = Window.LIFETIME,
    soft: Annotated[bool, typer.Option("--soft", help="Warn instead of refuse.")] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Create a budget or change its limit. Without a scope it holds for the whole tenant.

    Example: synod budget set daily 5 --window day
    """
    amount = _nano_usd(limit, "LIMIT")

    async def command(synod: Synod) -> None:
        scope = Attribution(agent=agent, model=model, root_run_id=run_id)
        _print([await synod.set_budget(budget_id, amount, scope=scope, hard=not soft, window=window)], as_json)

    run(command, data)


@budget_app.command("list")
def budget_list(as_json: AsJson = False, data: Data = None) -> None:
    """List budgets with what is spent, held and left.

    Example: synod budget list
    """

    async def command(synod: Synod) -> None:
        _print(await synod.budgets(), as_json)

    run(command, data)


def _print(budgets: list[Budget], as_json: bool) -> None:
    if as_json:
        return print_messages(budgets)
    rows = [
        (
            item.budget_id,
            ", ".join(f"{field.name}={value}" for field, value in item.scope.ListFields()) or "tenant",
            item.window,
            "hard" if item.hard else "soft",
            format_usd(item.limit_nano_usd),
            format_usd(item.posted_nano_usd),
            format_usd(item.pending_nano_usd),
            format_usd(item.available_nano_usd),
        )
        for item in budgets
    ]
    return print_table("", ("budget", "scope", "window", "kind", "limit>", "spent>", "held>", "left>"), rows)


def _nano_usd(text: str, hint: str) -> int:
    try:
        return parse_usd(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error
