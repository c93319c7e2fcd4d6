"""prices: what models cost, prices of one's own, and costs priced anew."""

from typing import Annotated, Final

import typer
from synod.common.money import format_usd
from synod.cost_ledger.v1.cost_ledger_pb2 import Price, RerateChargesRequest, RerateChargesResponse

from synod_client.cli.output import as_dict, print_json, print_messages, print_table
from synod_client.cli.session import AsJson, Data, run
from synod_client.cli.values import Since, Until, nano_usd, period, provider_and_model
from synod_client.client import Synod

prices_app = typer.Typer(help="Prices of models.", no_args_is_help=True)
_NANO_PER_MILLION_IN_PICO: Final = 1_000


@prices_app.command("set")
def prices_set(
    model: Annotated[str, typer.Argument(help="provider/model.")],
    usd_in: Annotated[str, typer.Argument(help="US dollars per million input tokens, such as 0.10.")],
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
    rates = [nano_usd(text, hint) for text, hint in ((usd_in, "USD_IN"), (usd_out, "USD_OUT"))]

    async def command(synod: Synod) -> None:
        # A nano-USD per million tokens is a thousandth of a pico-USD per token.
        pico = (rate // _NANO_PER_MILLION_IN_PICO for rate in rates)
        price = await synod.set_price(provider, name, *pico, own_provider=own_provider)
        if as_json:
            return print_messages([price])
        return print_table("", ("model", "USD in", "USD out"), [(model, usd_in, usd_out)])

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
    per_million = (format_usd(rate * _NANO_PER_MILLION_IN_PICO) for rate in rates)
    return (f"{each.provider}/{each.model}", *per_million, each.source)


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
