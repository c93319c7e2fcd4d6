"""The worked example of the README is carried out, and comes to what its table says."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cost_ledger.book import EMPTY, Book
from cost_ledger.commands import (
    Command,
    Expire,
    ImportInvoice,
    InvoiceLine,
    Price,
    Rerate,
    Reserve,
    SetBudget,
    Settle,
)
from cost_ledger.domain import decide
from cost_ledger.folding import entries, fold
from cost_ledger.rates import flat_card
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import CostReserved, CostSettled, Hold, ReservationDenied

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOLD = Hold(budget_id="team", window_start="lifetime")
MODEL = "acme/m1"
README = (Path(__file__).parents[1] / "README.md").read_text()


def price(output: int) -> Price:
    return Price(flat_card(1_000, output, 1_000, 1_000), "book 1", "book")


def reserve(name: str, input_tokens: int, output_tokens: int) -> Reserve:
    owner = Attribution(tenant_id="acme", model=MODEL)
    expires_at = NOW + timedelta(minutes=10)
    return Reserve(name, name, owner, MODEL, input_tokens, output_tokens, None, price(4_000), NOW, expires_at)


def settle(name: str, input_tokens: int, output_tokens: int) -> Settle:
    usage = (UsageLine(direction="input", quantity=input_tokens), UsageLine(direction="output", quantity=output_tokens))
    return Settle(name, usage, None, "provider_final", NOW)


def rerate(name: str, before: int, after_nano: int) -> Rerate:
    owner = Attribution(tenant_id="acme", model=MODEL)
    return Rerate(name, 1, owner, MODEL, before, after_nano * 1_000, price(3_000), (HOLD,), NOW, "output is cheaper")


def invoice(amount: int, ledger: int) -> ImportInvoice:
    line = InvoiceLine(MODEL, NOW, NOW + timedelta(days=30), amount, ledger)
    return ImportInvoice("inv_1", "acme", "sha", (line,))


STEPS: list[Command] = [
    reserve("r1", 1_000, 500),
    reserve("r2", 2_000, 1_250),
    reserve("r3", 1, 0),
    settle("r1", 900, 200),
    Expire("r2", NOW + timedelta(minutes=10)),
    settle("r2", 2_000, 1_500),
    rerate("r1", 1_700, 900 + 3 * 200),
    invoice(9_600, 9_500),
]


def balances(book: Book) -> list[int]:
    accounts = ("spent:team:lifetime", "pending:team:lifetime", "suspense:team:lifetime")
    owed = (f"expense:{MODEL}", "payable:acme", "adjustment:acme")
    found = [book.balances.get(name, 0) for name in (*accounts, *owed)]
    return [*found[:3], book.available(HOLD), *found[3:]]


def test_the_worked_example_comes_to_what_its_table_says() -> None:
    rows = [line.strip("| ").split(" | ") for line in README.partition("### A worked example")[2].splitlines()]
    table = [[int(cell.replace(",", "")) for cell in row[1:]] for row in rows if len(row) == 8 and row[1] != "spent"]
    book = fold(EMPTY, decide(EMPTY, SetBudget("team", Attribution(), 10_000, True, "lifetime", NOW)))
    events = []
    for command, expected in zip(STEPS, table, strict=True):
        decided = decide(book, command)
        book = fold(book, decided)
        events += decided
        assert balances(book) == expected, command
        assert sum(book.balances.values()) == 0
    denied = next(event for event in events if isinstance(event, ReservationDenied))
    late = next(event for event in events if isinstance(event, CostSettled) and event.reservation_id == "r2")
    assert (denied.available_nano_usd, denied.required_nano_usd) == (0, 1)
    assert (late.overrun_nano_usd, late.late) == (1_000, True)


def test_the_journal_has_the_postings_of_the_example() -> None:
    table = README.partition("| entry | account")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table]
    written = [(account, _amount(debit) - _amount(credit)) for account, debit, credit in rows]
    book = fold(EMPTY, decide(EMPTY, SetBudget("team", Attribution(), 10_000, True, "lifetime", NOW)))
    posted: list[tuple[str, int]] = []
    for command in (STEPS[0], STEPS[3], STEPS[7]):
        decided = decide(book, command)
        book = fold(book, decided)
        posted += [entry for event in decided for entry in entries(event)]
    assert written == posted


def _amount(cell: str) -> int:
    return int(cell.replace(",", "") or 0)


def test_every_event_and_every_state_of_a_reservation_is_named() -> None:
    assert CostReserved.type_name() in README
    for word in (
        "held",
        "suspense",
        "settled",
        "released",
        "RenewReservation",
        "ChargeRerated",
        "BudgetForecastChanged",
    ):
        assert word in README
