"""budget: limits of spending and of use, how far they are, and when they run out."""

from enum import StrEnum
from typing import Annotated, Final

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from synod.common.money import format_usd
from synod.cost_ledger.v1.cost_ledger_pb2 import Attribution, Budget, BudgetForecast, SetBudgetRequest

from synod_client.cli.hints import tell_of_no_model, tell_of_nobody
from synod_client.cli.output import as_dict, moment, print_json, print_messages, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import OfAmounts, length, nano_usd, whole_number
from synod_client.client import Synod
from synod_client.errors import NotAllowed, NotFound

budget_app = typer.Typer(help="Limits of spending.", no_args_is_help=True)


class Window(StrEnum):
    """Over which time a budget is counted."""

    LIFETIME = "lifetime"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"
    ROLLING = "rolling"


class Unit(StrEnum):
    """What a budget limits."""

    USD = "usd"
    CALLS = "calls"
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    TOOL_MS = "tool_ms"
    CPU_MS = "cpu_ms"


_MONEY: Final = "nano_usd"
_NEW: Final = Budget(hard=True, window=Window.LIFETIME, time_zone="UTC", unit=_MONEY)
Share = Annotated[str, typer.Option(help="Which conversation, user, ... of a budget --per one.")]


@budget_app.command("set", cls=OfAmounts)
def budget_set(
    budget_id: Annotated[str, typer.Argument(help="Name of the budget.")],
    limit: Annotated[str, typer.Argument(help="US dollars, such as 25 or 0.10; or so many of --unit.")],
    agent: Annotated[str, typer.Option(help="Only costs of this agent.")] = "",
    model: Annotated[str, typer.Option(help="Only costs of this model.")] = "",
    tool: Annotated[str, typer.Option(help="Only costs of this tool.")] = "",
    user: Annotated[str, typer.Option(help="Only costs of this user.")] = "",
    project: Annotated[str, typer.Option(help="Only costs of this project.")] = "",
    conversation: Annotated[str, typer.Option(help="Only costs of this conversation.")] = "",
    run_id: Annotated[str, typer.Option("--run", help="Only costs of this run and the runs below it.")] = "",
    window: Annotated[
        Window | None, typer.Option(help="What the limit is for; calendar windows go by --zone. Default: lifetime.")
    ] = None,
    zone: Annotated[str, typer.Option(help="IANA time zone, such as Europe/Berlin. Default: UTC.")] = "",
    rolling: Annotated[str, typer.Option(help="Length of a rolling window: 90m, 24h, 7d.")] = "",
    per: Annotated[str, typer.Option(help="Each conversation_id, user_id, agent, ... has the limit for itself.")] = "",
    unit: Annotated[Unit | None, typer.Option(help="What is limited. Default: usd.")] = None,
    hard: Annotated[
        bool | None, typer.Option("--hard/--soft", help="Refuse what exceeds it, or only warn. Default: hard.")
    ] = None,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Create a budget or change its limit. A new one without a scope holds for the whole tenant; one that there is keeps
    what is not given.

    Example: synod budget set daily 5 --window day --zone Europe/Berlin
    """
    scope = Attribution(
        agent=agent,
        model=model,
        tool=tool,
        user_id=user,
        project_id=project,
        conversation_id=conversation,
        root_run_id=run_id,
    )
    given = Budget(scope=scope, window=window or "", time_zone=zone, rolling=_rolling(rolling, window), per=per)
    if unit is not None:
        given.unit = _MONEY if unit is Unit.USD else unit
    _amount_of(limit, given.unit)

    async def command(synod: Synod) -> None:
        budget = _changed(await _known(synod, budget_id) or _NEW, given)
        nano, quantity = _amount_of(limit, budget.unit)
        request = SetBudgetRequest(
            budget_id=budget_id,
            scope=budget.scope,
            limit_nano_usd=nano,
            limit_quantity=quantity,
            hard=budget.hard if hard is None else hard,
            window=budget.window,
            time_zone=budget.time_zone,
            rolling=budget.rolling if budget.HasField("rolling") else None,
            per=budget.per,
            unit=budget.unit,
        )
        _print([await synod.put_budget(request)], as_json)
        if agent:
            await tell_of_nobody(synod, agent, "the budget")
        if model:
            await tell_of_no_model(synod, model, "the budget")

    run(command, data)


async def _known(synod: Synod, budget_id: str) -> Budget | None:
    """None also for who may not read it: the ledger says then what cannot change."""
    try:
        return await synod.budget(budget_id)
    except (NotFound, NotAllowed):
        return None


def _changed(budget: Budget, given: Budget) -> Budget:
    """The budget with what is given instead. The scope is one thing, and so is the window with its length."""
    changed = Budget()
    changed.CopyFrom(budget)
    changed.scope.ClearField("tenant_id")  # which is the caller's
    if given.scope.ListFields():
        changed.ClearField("scope")
    if given.window:
        changed.ClearField("rolling")
    changed.MergeFrom(given)
    return changed


def _amount_of(limit: str, unit: str) -> tuple[int, int]:
    """As money and as a quantity, of which one is 0."""
    if unit in ("", _MONEY):
        return nano_usd(limit, "LIMIT"), 0
    return 0, whole_number(limit, "LIMIT")


def _rolling(text: str, window: Window | None) -> Duration | None:
    if bool(text) != (window is Window.ROLLING):
        raise typer.BadParameter("--window rolling and --rolling LENGTH belong together", param_hint="--rolling")
    if not text:
        return None
    found = Duration()
    found.FromTimedelta(length(text, "--rolling"))
    return found


@budget_app.command("suspend")
def budget_suspend(
    budget_id: Annotated[str, typer.Argument(help="Name of the budget.")],
    reason: Annotated[str, typer.Option(help="Why; whoever is refused reads it.")],
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Refuse every new call that counts against a budget, whatever is left of it; calls under way end as ever.

    Example: synod budget suspend daily --reason "the invoice is disputed"
    """

    async def command(synod: Synod) -> None:
        _print([await synod.suspend_budget(budget_id, reason)], as_json)

    run(command, data)


@budget_app.command("resume")
def budget_resume(
    budget_id: Annotated[str, typer.Argument(help="Name of the budget.")],
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Let a suspended budget decide by its limit again.

    Example: synod budget resume daily
    """

    async def command(synod: Synod) -> None:
        _print([await synod.resume_budget(budget_id)], as_json)

    run(command, data)


@budget_app.command("list")
def budget_list(as_json: AsJson = False, data: Data = None) -> None:
    """List budgets with what is spent, held (of it in suspense, if anything is) and left.

    Example: synod budget list
    """

    async def command(synod: Synod) -> None:
        _print(await synod.budgets(), as_json)

    run(command, data)


@budget_app.command("show")
def budget_show(
    budget_id: Annotated[str, typer.Argument(help="Name of the budget.")],
    share: Share = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Show one budget, or one share of it.

    Example: synod budget show talk --share conv_1
    """

    async def command(synod: Synod) -> None:
        _print([await synod.budget(budget_id, share)], as_json)

    run(command, data)


@budget_app.command("forecast")
def budget_forecast(
    budget_id: Annotated[str, typer.Argument(help="Name of the budget.")],
    share: Share = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """When a budget runs out if spending goes on as it did.

    Example: synod budget forecast daily
    """

    async def command(synod: Synod) -> None:
        found = await synod.forecast_budget(budget_id, share)
        if as_json:
            return print_json(as_dict(found))
        return print_table("", ("", ""), _forecast_rows(found))

    run(command, data)


def _forecast_rows(found: BudgetForecast) -> list[tuple[str, str]]:
    budget = found.budget
    at_end = _amount(budget, found.posted_at_end_p50)
    trend = f"{found.trend_percent:+d} % against the day before" if found.HasField("trend_percent") else "not known yet"
    return [
        ("spent", f"{_amount(budget, budget.posted)} of {_amount(budget, budget.limit)}"),
        ("an hour", _amount(budget, found.burn_per_hour)),
        ("trend", trend),
        ("window ends", moment(found.window_end) or "never"),
        ("runs out", _when(found, found.exhausted_p50, "exhausted_p50")),
        ("one in ten by", _when(found, found.exhausted_p10, "exhausted_p10")),
        ("spent at the end", f"{at_end}, one in ten above {_amount(budget, found.posted_at_end_p90)}"),
        ("from", f"{found.history_hours} hours; {found.method}"),
    ]


def _when(found: BudgetForecast, at: Timestamp, name: str) -> str:
    return moment(at) if found.HasField(name) else "not in its window or the next 90 days"  # type: ignore[arg-type]


def _print(budgets: list[Budget], as_json: bool) -> None:
    if as_json:
        return print_messages(budgets)
    columns = {
        "limit>": "limit",
        "spent>": "posted",
        "held>": "pending",
        "in suspense>": "suspense",
        "left>": "available",
    }
    if not any(item.suspense for item in budgets):
        del columns["in suspense>"]
    rows = [
        (
            item.budget_id,
            _scope(item),
            _window(item),
            _kind(item),
            *(_amount(item, getattr(item, amount)) for amount in columns.values()),
        )
        for item in budgets
    ]
    return print_table("", ("budget", "scope", "window", "kind", *columns), rows)


def _scope(budget: Budget) -> str:
    fields = [f"{field.name}={value}" for field, value in budget.scope.ListFields() if field.name != "tenant_id"]
    if budget.per:
        fields.append(f"each {budget.per}" + (f" ({budget.share})" if budget.share else ""))
    return ", ".join(fields) or "tenant"


def _kind(budget: Budget) -> str:
    if budget.suspended_for:
        return f"suspended: {budget.suspended_for}"
    return "hard" if budget.hard else "soft"


def _window(budget: Budget) -> str:
    if budget.window == Window.ROLLING:
        return f"last {budget.rolling.ToTimedelta()}"
    return budget.window if budget.time_zone in ("", "UTC") else f"{budget.window} {budget.time_zone}"


def _amount(budget: Budget, amount: int) -> str:
    return format_usd(amount) if budget.unit in ("", _MONEY) else f"{amount:,} {budget.unit}"
