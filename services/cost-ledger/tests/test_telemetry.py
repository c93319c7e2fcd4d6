"""What the ledger counts, as Prometheus reads it."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger.books import Books
from cost_ledger.commands import Charge, Expire, Price, Release, Reserve, SetBudget, Settle
from cost_ledger.ports import Standing
from cost_ledger.rates import flat_card
from cost_ledger.telemetry import Telemetry
from eventlog.memory import MemoryEventLog
from eventlog.records import Context
from prometheus_client import CollectorRegistry
from servicekit.testing import FakeClock
from synod.common.values import Attribution
from synod.cost_ledger.events import Quantity

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
ACME = Context("acme", "usr_1")
PRICE = Price(flat_card(1_000, 1_000, 1_000, 1_000), "book 1", "book")
GUESS = Price(PRICE.rates, "book 1", "book_fuzzy", ("openai/gpt-5.5",))
USD = 1_000_000_000


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def telemetry(registry: CollectorRegistry) -> Telemetry:
    return Telemetry(registry, ("openai/gpt-5.5",))


@pytest.fixture
async def books(telemetry: Telemetry) -> AsyncIterator[Books]:
    books = Books(MemoryEventLog(), FakeClock(NOW), booked=telemetry.booked)
    await books.execute(SetBudget("team", Attribution(), 10 * USD, True, "lifetime", NOW), ACME)
    yield books
    await books.close()


def reserve(reservation_id: str, amount: int, model: str = "openai/gpt-5.5", price: Price = PRICE) -> Reserve:
    return Reserve(
        reservation_id=reservation_id,
        request_sha256=f"sha {amount}",
        attribution=Attribution(tenant_id="acme", model=model),
        model=model,
        input_tokens_max=0,
        output_tokens_max=0,
        fixed=amount,
        book_price=price,
        at=NOW,
        expires_at=NOW + timedelta(minutes=10),
    )


def settle(reservation_id: str, amount: int) -> Settle:
    return Settle(reservation_id, (), amount, "provider_final", NOW)


def spent(registry: CollectorRegistry, provider: str, model: str) -> float | None:
    return registry.get_sample_value("ledger_spent_usd_total", {"provider": provider, "model": model})


async def test_cost_is_counted_once_by_model_however_often_it_is_settled(
    books: Books, registry: CollectorRegistry
) -> None:
    await books.execute(reserve("r1", 3 * USD), ACME)
    await books.execute(settle("r1", 2 * USD), ACME)
    await books.execute(settle("r1", 2 * USD), ACME)
    assert spent(registry, "openai", "openai/gpt-5.5") == pytest.approx(2)
    assert registry.get_sample_value("ledger_overruns_total") == 0


async def test_a_model_that_somebody_made_up_gets_no_label_of_its_own(
    books: Books, registry: CollectorRegistry
) -> None:
    await books.execute(reserve("r1", USD, "acme/secret-project"), ACME)
    await books.execute(settle("r1", USD), ACME)
    assert spent(registry, "other", "other") == pytest.approx(1)


async def test_costs_of_tools_are_counted_apart(books: Books, registry: CollectorRegistry) -> None:
    await books.execute(Charge("call_1", Attribution(tool="search"), USD, NOW, 1), ACME)
    assert spent(registry, "tools", "") == pytest.approx(1)


async def test_what_exceeds_a_quotas_reservation_is_an_overrun_without_money(
    books: Books, registry: CollectorRegistry
) -> None:
    def time(most: int) -> tuple[Quantity, ...]:
        return (Quantity(unit="tool_ms", quantity=most),)

    await books.execute(SetBudget("time", Attribution(), 10_000, True, "lifetime", NOW, unit="tool_ms"), ACME)
    await books.execute(replace(reserve("r1", 0, model=""), quantities=time(100)), ACME)
    await books.execute(replace(settle("r1", 0), quantities=time(5_000)), ACME)
    assert registry.get_sample_value("ledger_overruns_total") == 1
    assert registry.get_sample_value("ledger_overrun_usd_total") == 0


async def test_what_exceeds_a_reservation_is_an_overrun(books: Books, registry: CollectorRegistry) -> None:
    await books.execute(reserve("r1", USD), ACME)
    await books.execute(settle("r1", 3 * USD), ACME)
    assert registry.get_sample_value("ledger_overruns_total") == 1
    assert registry.get_sample_value("ledger_overrun_usd_total") == pytest.approx(2)


async def test_refusals_and_thresholds_are_counted_from_none_on(books: Books, registry: CollectorRegistry) -> None:
    def reached(percent: int) -> float | None:
        return registry.get_sample_value("ledger_budget_thresholds_total", {"percent": str(percent)})

    before = (reached(80), reached(100))
    await books.execute(reserve("r1", 9 * USD), ACME)
    await books.execute(settle("r1", 9 * USD), ACME)
    await books.execute(reserve("r2", 2 * USD), ACME)
    assert registry.get_sample_value("ledger_reservations_denied_total") == 1
    assert (before, reached(80), reached(100)) == ((0, 0), 1, 0)


async def test_a_guessed_price_is_counted_once_however_often_it_is_used(
    books: Books, registry: CollectorRegistry
) -> None:
    before = registry.get_sample_value("ledger_fuzzy_prices_total")
    for name in ("r1", "r2"):
        await books.execute(reserve(name, USD, "openai/gpt-5.5-new", GUESS), ACME)
        await books.execute(settle(name, USD), ACME)
    assert (before, registry.get_sample_value("ledger_fuzzy_prices_total")) == (0, 1)


async def test_what_moved_to_suspense_has_left_it_once_it_is_settled_or_released(
    books: Books, registry: CollectorRegistry
) -> None:
    for name in ("r1", "r2", "r3"):
        await books.execute(reserve(name, USD), ACME)
        await books.execute(Expire(name, LATER), ACME)
    entered, left = registry.get_sample_value("ledger_suspense_entered_total"), "ledger_suspense_left_total"
    before = registry.get_sample_value(left)
    await books.execute(settle("r1", USD), ACME)
    await books.execute(Release("r2", "the provider did not bill it"), ACME)
    assert (entered, before, registry.get_sample_value(left)) == (3, 0, 2)


def test_holds_that_nobody_moved_to_suspense_are_told(telemetry: Telemetry, registry: CollectorRegistry) -> None:
    telemetry.standing(Standing(held=5, overdue=2))
    assert registry.get_sample_value("ledger_reservations_held") == 5
    assert registry.get_sample_value("ledger_reservations_overdue") == 2
