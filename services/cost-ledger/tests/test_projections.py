"""Views against the book: the same money, however they were folded.

Failure group 5: a view equals its replay from zero.
"""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger.books import Books
from cost_ledger.commands import (
    Charge,
    Command,
    Expire,
    Price,
    Release,
    Reserve,
    ResumeBudget,
    SetBudget,
    Settle,
    SuspendBudget,
)
from cost_ledger.errors import LedgerError
from cost_ledger.projections import BudgetsView, ReservationsView, SpendView
from cost_ledger.queries import Queries, SpendQuery
from cost_ledger.rates import flat_card
from cost_ledger.translate import from_budget, from_spend
from eventlog.memory import MemoryEventLog
from eventlog.projections import Projector, ProjectorLimits
from eventlog.records import Context
from eventlog.sources import LogSource
from psycopg_pool import AsyncConnectionPool
from servicekit.testing import FakeClock
from synod.common.values import Attribution, Tag, UsageLine

NOW = datetime(2026, 11, 30, 23, tzinfo=UTC)
ACME = Context("acme", "usr_1")
MODEL = "openai/gpt-5.5"
PRICE = Price(flat_card(1_500, 4_000, 150, 1_875), "book 1", "book")


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


def commands(seed: int, number: int) -> list[Command]:
    """A history with every kind of outcome, the same for the same seed."""
    chance = random.Random(seed)
    found: list[Command] = [
        SetBudget("all", Attribution(), 10**6, True, "month", NOW),
        SetBudget("writer", Attribution(agent="writer"), 10**5, False, "day", NOW),
    ]
    for step in range(number):
        at = NOW + timedelta(minutes=step)
        name = f"r{chance.randrange(number // 3)}"
        usage = (UsageLine(direction="output", quantity=chance.randrange(90)),)
        tags = (Tag(name="team", value=chance.choice(["search", "ads"])),)
        owner = Attribution(tenant_id="acme", agent=chance.choice(["writer", "analyst"]), model=MODEL, tags=tags)
        found.append(
            chance.choice(
                [
                    Reserve(name, "sha", owner, MODEL, 10, 50, None, PRICE, at, at + timedelta(minutes=9)),
                    Reserve(name, "sha", owner, MODEL, 10, 50, None, PRICE, at, at + timedelta(minutes=9)),
                    Settle(name, usage, None, "provider_final", at),
                    Release(name, "refused"),
                    Expire(name, at),
                    Charge(name, owner, chance.randrange(50), at, step),
                    chance.choice(
                        [
                            SuspendBudget("writer", f"at step {step}"),
                            ResumeBudget("writer"),
                            ResumeBudget("writer"),
                            SetBudget("writer", Attribution(agent="writer"), 10**5 + step, False, "day", NOW),
                        ]
                    ),
                ]
            )
        )
    return found


async def fill(log: MemoryEventLog, books: Books, history: list[Command]) -> None:
    for command in history:
        try:
            await books.execute(command, ACME)
        except LedgerError:
            continue


async def test_group_05_views_hold_the_same_money_as_the_book_and_as_their_rebuild(pool: AsyncConnectionPool) -> None:
    log = MemoryEventLog()
    books = Books(log, FakeClock(NOW))
    views = [
        Projector(pool, view, LogSource(log, "cost-ledger"), ProjectorLimits(batch_events=7))
        for view in (SpendView(), BudgetsView(), ReservationsView())
    ]
    queries = Queries(pool)
    history = commands(seed=7, number=150)
    for half in (history[:70], history[70:]):
        await fill(log, books, half)
        for view in views:
            await view.catch_up()
    book = await books.read("acme")
    assert await queries.balances("acme") == dict(book.balances)
    assert sum(book.balances.values()) == 0
    (total,) = await queries.spend("acme", SpendQuery())
    assert total.cost == sum(amount for account, amount in book.balances.items() if account.startswith("expense:"))
    assert total.pending == sum(reservation.reserved for reservation in book.open.values())
    assert {each.budget.budget_id: each.budget for each in await queries.budgets("acme", "", 9, NOW)} == dict(
        book.budgets
    )
    by_team = [await queries.spend("acme", SpendQuery(tags={"team": team})) for team in ("search", "ads")]
    assert [rows[0].cost > 0 for rows in by_team] == [True, True]
    assert sum(rows[0].cost for rows in by_team) == total.cost
    for name in {*book.open, *book.closed.values}:
        found, known = await queries.find("acme", name), book.reservation(name)
        assert found is not None and known is not None
        assert (found.state, found.settled, found.overrun) == (known.state, known.settled, known.overrun)
    for view in views:
        before = await view.checksum()
        assert (await view.verify()).equal
        await view.rebuild()
        assert await view.checksum() == before
    await books.close()


async def test_spend_of_a_month_is_what_its_budget_posted(pool: AsyncConnectionPool) -> None:
    log = MemoryEventLog()
    books = Books(log, FakeClock(NOW))
    await fill(log, books, commands(seed=3, number=150))
    await Projector(pool, SpendView(), LogSource(log, "cost-ledger")).catch_up()
    await Projector(pool, BudgetsView(), LogSource(log, "cost-ledger")).catch_up()
    queries = Queries(pool)
    for month_end, at in ((datetime(2026, 12, 1, tzinfo=UTC), NOW), (None, datetime(2026, 12, 1, 1, tzinfo=UTC))):
        query = SpendQuery(since=None if month_end else datetime(2026, 12, 1, tzinfo=UTC), until=month_end)
        (spent,) = await queries.spend("acme", query)
        listed = await queries.budgets("acme", "", 10, at)
        (monthly,) = [status for status in listed if status.budget.budget_id == "all"]
        assert (monthly.posted, monthly.pending) == (spent.cost, spent.pending)
    await books.close()


async def test_thresholds_are_kept_with_their_time(pool: AsyncConnectionPool) -> None:
    log = MemoryEventLog()
    books = Books(log, FakeClock(NOW))
    await books.execute(SetBudget("all", Attribution(), 100, True, "lifetime", NOW), ACME)
    await books.execute(Charge("c1", Attribution(tool="sql"), 96, NOW, 1), ACME)
    await Projector(pool, BudgetsView(), LogSource(log, "cost-ledger")).catch_up()
    async with pool.connection() as connection:
        cursor = await connection.execute("select basis, percent, posted from view_budgets.threshold order by 1, 2")
        told = [(50, 96), (80, 96), (95, 96)]
        assert await cursor.fetchall() == [(basis, *each) for basis in ("committed", "posted") for each in told]
    await books.close()


async def test_sums_beyond_64_bits_are_told_as_the_largest_that_can_be(pool: AsyncConnectionPool) -> None:
    log = MemoryEventLog()
    books = Books(log, FakeClock(NOW))
    await books.execute(SetBudget("all", Attribution(), 10**18, False, "lifetime", NOW), ACME)
    for number in range(3):
        # A book of before may hold such amounts; each fits into its row, and no sum of them does.
        await books.execute(Charge(f"c{number}", Attribution(tool="sql"), 9 * 10**18, NOW, number), ACME)
    views = [Projector(pool, view, LogSource(log, "cost-ledger")) for view in (SpendView(), BudgetsView())]
    for view in views:
        await view.catch_up()
        assert await view.parked() == []
    queries = Queries(pool)
    spent = await queries.spend("acme", SpendQuery(group_by=("tool",)))
    assert [row.cost for row in spent] == [2**63 - 1]
    assert from_spend([*spent, *spent]).total_nano_usd == 2**63 - 1
    (status,) = await queries.budgets("acme", "", 1, NOW)
    assert status.posted == 27 * 10**18
    told = from_budget(status)
    assert (told.posted_nano_usd, told.available_nano_usd, told.available) == (2**63 - 1, 1 - 2**63, 1 - 2**63)
    await books.close()
