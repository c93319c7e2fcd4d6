"""What is said of costs after the fact: corrections and forecasts. Never by rewriting; each is an event of its own."""

from __future__ import annotations

from synod.common.event import Event
from synod.common.money import nano_from_pico
from synod.cost_ledger.events import BudgetForecastChanged, ChargeRerated

from cost_ledger.book import Amounts, Book, Reservation, Told
from cost_ledger.commands import Rerate, TellForecast
from cost_ledger.postings import moved, owed


def rerate(book: Book, command: Rerate) -> tuple[Event, ...]:
    """The correction to the windows of the cost; none if it is right, or was corrected since the command was made.

    The amount may stay: what had no price may turn out to be free.
    """
    known = book.reservation(command.reservation_id)
    after = nano_from_pico(command.after_pico)
    if known is not None and (known.settled != command.before or _is_right(known, command, after)):
        return ()
    delta = after - command.before
    entry = moved(book, command.holds, "budget", "spent", Amounts(delta)) + owed(
        command.attribution, command.model, delta
    )
    return (
        ChargeRerated(
            reservation_id=command.reservation_id,
            revision=command.revision,
            attribution=command.attribution,
            model=command.model,
            before_nano_usd=command.before,
            after_nano_usd=after,
            after_pico_usd=command.after_pico,
            price_version=command.price.version,
            price_source=command.price.source,
            holds=command.holds,
            incurred_at=command.incurred_at,
            reason=command.reason,
            postings=entry.postings,
        ),
    )


def _is_right(known: Reservation, command: Rerate, after: int) -> bool:
    return (known.settled, known.price_source) == (after, command.price.source)


def tell_forecast(book: Book, command: TellForecast) -> tuple[Event, ...]:
    told = book.forecasts.get((command.budget_id, command.window_start), Told())
    if told.runs_out == command.runs_out:
        return ()
    return (
        BudgetForecastChanged(
            budget_id=command.budget_id,
            window_start=command.window_start,
            revision=told.revision + 1,
            runs_out=command.runs_out,
            exhausted_p50=command.exhausted_p50,
            exhausted_p10=command.exhausted_p10,
            posted=command.posted,
            limit=command.limit,
            made_at=command.at,
        ),
    )
