"""prices: what models cost, prices of one's own, and costs priced anew."""

from typing import Annotated

import typer
from synod.common.money import format_usd
from synod.cost_ledger.v1.cost_ledger_pb2 import Price, RerateChargesRequest, RerateChargesResponse

from synod_client.cli.output import as_dict, print_json, print_messages, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import (
    NANO_PER_MILLION_IN_PICO,
    OfAmounts,
    Since,
    Until,
    period,
    pico_usd_each,
    provider_and_model,
)
from synod_client.client import Synod

prices_app = typer.Typer(help="Prices of models.", no_args_is_help=True)


@prices_app.command("set", cls=OfAmounts)
def prices_set(
    model: Annotated[str, typer.Argument(help="provider/model.")],
    usd_in: Annotated[
        str, typer.Argument(help="US dollars per million input tokens, such as 0.10; at most six decimals.")
    ],
    usd_out: Annotated[str, typer.Argument(help="US dollars per million output tokens.")],
    own_provider: Annotated[
        bool, typer.Option("--own-provider", help="The provider is your own, though its name is like a known one's.")
    ] = False,
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Give a model a price of your own, which wins over the price book.

    Example: synod prices set ollama/qwen3 0.02 0.08
    """
    provider, name = provider_and_model(model, "MODEL")
    rates = pico_usd_each(usd_in, "USD_IN"), pico_usd_each(usd_out, "USD_OUT")

    async def command(synod: Synod) -> None:
        price = await synod.set_price(provider, name, *rates, own_provider=own_provider)
        if as_json:
            return print_messages([price])
        kept = (_per_million(price.input_pico_usd), _per_million(price.output_pico_usd))
        return print_table("", ("model", "USD in", "USD out"), [(model, *kept)])

    run(command, data)


@prices_app.command("list")
def prices_list(
    provider: Annotated[str, typer.Option(help="Only this provider.")] = "",
    match: Annotated[str, typer.Option(help="Only models with this in their names.")] = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """List prices in force, US dollars per million tokens below the first context tier.

    Example: synod prices list --provider openai --match gpt-5
    """

    async def command(synod: Synod) -> None:
        found = [each async for each in synod.prices(provider) if match in f"{each.provider}/{each.model}"]
        if as_json:
            return print_messages(found)
        columns = ("model", "in>", "out>", "cache read>", "cache write>", "source")
        return print_table("", columns, [_price_row(each) for each in found])

    run(command, data)


def _price_row(each: Price) -> tuple[object, ...]:
    rates = (each.input_pico_usd, each.output_pico_usd, each.cache_read_pico_usd, each.cache_write_pico_usd)
    return (f"{each.provider}/{each.model}", *map(_per_million, rates), each.source)


def _per_million(pico_usd: int) -> str:
    return format_usd(pico_usd * NANO_PER_MILLION_IN_PICO)


@prices_app.command("rerate")
def prices_rerate(
    model: Annotated[str, typer.Option(help="Only costs of this model.")] = "",
    unpriced: Annotated[bool, typer.Option("--unpriced", help="Only costs that had no price.")] = False,
    reason: Annotated[str, typer.Option(help="Why; stands in every correction. Without it nothing is posted.")] = "",
    since: Since = "",
    until: Until = "",
    as_json: AsJson = False,
    data: Data = None,
) -> None:
    """Price settled costs anew. Shows the difference; with --reason it is also posted, as corrections.

    Example: synod prices rerate --unpriced --reason "was missing"
    """
    start, end = period(since, until)
    request = RerateChargesRequest(
        model=model,
        since=start,
        until=end,
        unpriced_only=unpriced,
        dry_run=not reason,
        reason=reason,
    )

    async def command(synod: Synod) -> None:
        found = await synod.rerate_charges(request)
        if as_json:
            return print_json(as_dict(found))
        return _print_rerating(found)

    run(command, data)


def _print_rerating(found: RerateChargesResponse) -> None:
    done = "would change; add --reason to post it" if found.dry_run else "changed"
    title = f"{found.changed} of {found.charges} costs {done}: {format_usd(found.difference_nano_usd)}"
    rows = [
        (
            row.model,
            row.charges,
            format_usd(row.before_nano_usd),
            format_usd(row.after_nano_usd),
            format_usd(row.after_nano_usd - row.before_nano_usd),
        )
        for row in found.rows
    ]
    print_table(title, ("model", "costs>", "before>", "after>", "difference>"), rows)
