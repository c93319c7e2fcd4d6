"""spend: what it cost, what it would have cost, and whether the provider agrees."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from synod.common.money import format_usd
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb

from synod_client.cli import exports, invoices
from synod_client.cli.output import Exit, as_dict, console, errors, moment, print_json, print_messages, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import OfAmounts, Since, Until, nano_usd, period, provider_and_model, tags, terms
from synod_client.client import Synod

spend_app = typer.Typer(help="What was spent.", invoke_without_command=True)

Agent = Annotated[str, typer.Option(help="Only costs of this agent.")]
Model = Annotated[str, typer.Option(help="Only costs of this model.")]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="Only costs tagged so, NAME=VALUE; repeatable.")]
Reservation = Annotated[str, typer.Argument(help="Its id, as synod spend suspense lists it.")]
Run = Annotated[str, typer.Option("--run", help="Only of this run and the runs below it.")]


@spend_app.callback()
def spend(
    context: typer.Context,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            help="agent, model, run_id, root_run_id, tool, user_id, tag:NAME, hour, day, week, month, ...; repeatable.",
        ),
    ] = None,
    run_id: Run = "",
    tag: Tags = None,
    since: Since = "",
    until: Until = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """What was spent, by any attribution.

    Example: synod spend --by agent --by model --since 7d
    """
    if context.invoked_subcommand:
        return
    groups, (start, end) = by or ["agent"], period(since, until)
    scope = pb.Attribution(root_run_id=run_id, tags=tags(tag))
    request = pb.QuerySpendRequest(group_by=groups, filter=scope, until=end)
    if start is not None:
        # "from" is a word of Python, so the field has no attribute that could be written down.
        getattr(request, "from").CopyFrom(start)

    async def command(synod: Synod) -> None:
        found = await synod.query_spend(request)
        if as_json:
            return print_json(as_dict(found))
        rows = [
            (*row.group, format_usd(row.cost_nano_usd), row.calls, row.input_tokens, row.output_tokens)
            for row in found.rows
        ]
        columns = (*groups, "cost>", "calls>", "input tokens>", "output tokens>")
        return print_table(f"Total {format_usd(found.total_nano_usd)}", columns, rows)

    run(command, data)


@spend_app.command("export")
def spend_export(
    form: Annotated[exports.Format, typer.Option("--format", help="Columns.")] = exports.Format.CSV,
    file: Annotated[Path | None, typer.Option("--file", help="Where to; default is standard output.")] = None,
    agent: Agent = "",
    model: Model = "",
    run_id: Run = "",
    tag: Tags = None,
    since: Since = "",
    until: Until = "",
    data: Data = None,
) -> None:
    """Write every cost, oldest first, as it comes from the ledger.

    Example: synod spend export --format focus --since 30d --file nov.csv
    """
    scope = pb.Attribution(agent=agent, model=model, root_run_id=run_id, tags=tags(tag))
    start, end = period(since, until)
    request = pb.ExportSpendRequest(filter=scope, since=start, until=end)

    async def command(synod: Synod) -> None:
        with _opened(file) as out:
            written = await exports.write(synod.export_spend(request), form, out)
        errors.print(f"{written} costs", highlight=False)

    run(command, data)


@contextmanager
def _opened(file: Path | None) -> Iterator[TextIO]:
    if file is None:
        yield sys.stdout
        return
    try:
        out = file.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from error
    with out:
        yield out


@spend_app.command("models")
def spend_models(since: Since = "", until: Until = "", as_json: AsJson = False, data: Data = None) -> None:
    """Compare models by cost, latency, errors and cache hits.

    Example: synod spend models --since 7d
    """
    start, end = period(since, until)
    request = pb.CompareModelsRequest(since=start, until=end)

    async def command(synod: Synod) -> None:
        found = await synod.compare_models(request)
        if as_json:
            return print_json(as_dict(found))
        columns = (
            "model",
            "calls>",
            "cost>",
            "a call>",
            "p50 ms>",
            "p95 ms>",
            "first ms>",
            "errors>",
            "cached>",
            "saved>",
        )
        return print_table("", columns, [_model_row(each) for each in found.models])

    run(command, data)


def _model_row(each: pb.ModelComparison) -> tuple[object, ...]:
    return (
        each.model,
        each.calls,
        format_usd(each.cost_nano_usd),
        format_usd(each.cost_per_call_nano_usd),
        each.latency_p50_ms,
        each.latency_p95_ms,
        each.first_content_p50_ms,
        f"{each.errors_of_10000 / 100:.2f} %",
        f"{each.cached_of_10000 / 100:.2f} %",
        format_usd(each.saved_nano_usd),
    )


@spend_app.command("at")
def spend_at(
    model: Annotated[str, typer.Argument(help="provider/model to price the same usage at.")],
    term: Annotated[list[str] | None, typer.Option("--term", help="Such as processing=batch; repeatable.")] = None,
    agent: Agent = "",
    run_id: Run = "",
    since: Since = "",
    until: Until = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """What the same usage would have cost at another model.

    Example: synod spend at openai/gpt-5.5 --term processing=batch --since 30d
    """
    provider_and_model(model, "MODEL")
    start, end = period(since, until)
    request = pb.PriceUsageAtRequest(
        model=model,
        filter=pb.Attribution(agent=agent, root_run_id=run_id),
        since=start,
        until=end,
        price_context=terms(term, "--term"),
    )

    async def command(synod: Synod) -> None:
        found = await synod.price_usage_at(request)
        if as_json:
            return print_json(as_dict(found))
        difference = found.other_nano_usd - found.actual_nano_usd
        row = (found.calls, format_usd(found.actual_nano_usd), format_usd(found.other_nano_usd), format_usd(difference))
        return print_table("", ("calls>", "cost>", f"at {found.model}>", "difference>"), [row])

    run(command, data)


@spend_app.command("suspense")
def spend_suspense(as_json: AsJson = False, data: Data = None) -> None:
    """List what is held for calls of which nobody knows whether they were billed, the oldest first.

    It counts against budgets until a final invoice clears it, or settle or release does.

    Example: synod spend suspense
    """

    async def command(synod: Synod) -> None:
        found = [each async for each in synod.suspense()]
        if as_json:
            return print_messages(found)
        columns = ("reservation", "since", "model or tool", "agent", "run", "held>")
        return print_table("", columns, [_reservation_row(each) for each in found])

    run(command, data)


def _reservation_row(each: pb.Reservation) -> tuple[object, ...]:
    whose = each.attribution
    name = each.model or whose.tool
    return each.reservation_id, moment(each.reserved_at), name, whose.agent, whose.run_id, _held(each)


def _held(each: pb.Reservation) -> str:
    """What a tool without a price holds is time only; what a model holds besides money is in the JSON."""
    if each.reserved_nano_usd or not each.quantities:
        return format_usd(each.reserved_nano_usd)
    return ", ".join(f"{quantity.quantity:,} {quantity.unit}" for quantity in each.quantities)


@spend_app.command("settle", cls=OfAmounts)
def spend_settle(
    reservation_id: Reservation,
    amount: Annotated[str, typer.Argument(help="US dollars that were billed, such as 0.0123; 0 if it was free.")],
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Post what a call was billed, once the provider's own list or bill shows it.

    Example: synod spend settle req_4711:1 0.0123
    """
    nano = nano_usd(amount, "AMOUNT")
    request = pb.SettleRequest(
        reservation_id=reservation_id, amount_nano_usd=nano, free_of_charge=not nano, usage_source="provider_final"
    )

    async def command(synod: Synod) -> int:
        found = await synod.settle(request)
        _print_ended(found, as_json)
        if found.settled_nano_usd == nano:
            return Exit.DONE
        errors.print("It was settled before; what was posted then stays", highlight=False)
        return Exit.NOT_TRUE

    run(command, data)


@spend_app.command("release")
def spend_release(
    reservation_id: Reservation,
    reason: Annotated[str, typer.Option(help="How it is known that nothing was billed.")],
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Give a hold back to its budgets, on proof that nothing was billed. A bill that comes after all is posted.

    Example: synod spend release req_4711:1 --reason "not in its list of that day"
    """

    async def command(synod: Synod) -> None:
        _print_ended(await synod.release(reservation_id, reason), as_json)

    run(command, data)


def _print_ended(found: pb.Reservation, as_json: bool) -> None:
    if as_json:
        return print_json(as_dict(found))
    is_settled = found.state == pb.RESERVATION_STATE_SETTLED
    how = f"settled at {format_usd(found.settled_nano_usd)}" if is_settled else "released"
    return console.print(f"{found.reservation_id} is {how}", highlight=False, markup=False, soft_wrap=True)


@spend_app.command("reconcile")
def spend_reconcile(
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines with model, since, until, amount_usd.")],
    provider: Annotated[str, typer.Option(help="Whose invoice it is, as in provider/model; tool for what tools cost.")],
    invoice_id: Annotated[str, typer.Option("--id", help="Its number; imported once.")],
    clear_suspense: Annotated[
        bool, typer.Option("--final", help="It is final: it also tells which calls of unknown outcome were billed.")
    ] = False,
    replaces: Annotated[str, typer.Option(help="The number of the imported invoice that it corrects.")] = "",
    own_provider: Annotated[
        bool,
        typer.Option(
            "--own-provider", help="The provider is right, though the ledger has neither its prices nor its costs."
        ),
    ] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Compare a provider's invoice with the ledger, and post the differences. Exit code 1 if there are any.

    The header names the columns just so; model and currency (USD) may be left out. An empty model stands for all of the
    provider's; a negative amount is a credit. An amount with commas is quoted: "1,234.50". A line is for the time from since
    on and before until, each a day or a moment, in UTC unless it says otherwise: November is 2026-11-01 to 2026-12-01.

    Example: synod spend reconcile nov.csv --provider openai --id 4711
    """
    request = pb.ImportInvoiceRequest(
        invoice_id=invoice_id,
        provider=provider,
        lines=invoices.read(file),
        clear_suspense=clear_suspense,
        replaces=replaces,
        own_provider=own_provider,
    )

    async def command(synod: Synod) -> int:
        found = await synod.import_invoice(request)
        if as_json:
            print_json(as_dict(found))
        else:
            title = f"Difference {format_usd(found.difference_nano_usd)}{_from_suspense(found)}"
            print_table(
                title, ("model", "invoiced>", "ledger>", "difference>"), [_line_row(line) for line in found.lines]
            )
        if found.was_imported:
            errors.print(_imported_before(invoice_id, found.in_suspense), highlight=False, markup=False, soft_wrap=True)
        return Exit.NOT_TRUE if any(line.difference_nano_usd for line in found.lines) else Exit.DONE

    run(command, data)


def _from_suspense(found: pb.Reconciliation) -> str:
    if not found.settled_from_suspense + found.released_from_suspense:
        return ""
    amount = format_usd(found.settled_from_suspense_nano_usd)
    return f", from suspense {found.settled_from_suspense} settled ({amount}), {found.released_from_suspense} released"


def _imported_before(invoice_id: str, in_suspense: int) -> str:
    told = f"{invoice_id} was imported before; this is what was posted then"
    if not in_suspense:
        return told
    return (
        f"{told}. In suspense in its times by now: {in_suspense}; --id NEW --replaces {invoice_id} --final clears them"
    )


def _line_row(line: pb.Reconciliation.Line) -> tuple[object, ...]:
    amounts = (line.invoiced.amount_nano_usd, line.ledger_nano_usd, line.difference_nano_usd)
    return (line.invoiced.model or "all", *map(format_usd, amounts))
