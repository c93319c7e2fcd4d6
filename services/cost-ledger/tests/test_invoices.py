"""Invoices and what they correct: whatever is accepted, what is payable is what is invoiced."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from cost_ledger import snapshots
from cost_ledger.book import EMPTY, Book, Reservation
from cost_ledger.commands import Charge, ImportInvoice, InvoiceLine
from cost_ledger.domain import decide
from cost_ledger.errors import InvoiceConflict, InvoiceOverlaps, LedgerError, RequestInvalid
from cost_ledger.folding import fold
from cost_ledger.invoices import Part, clear, first_overlap, parts
from cost_ledger.naming import family_of
from cost_ledger.rates import UNPRICED
from hypothesis import given
from hypothesis import strategies as st
from synod.common.values import Attribution

START = datetime(2026, 11, 1, tzinfo=UTC)
MODELS = ("openai/a", "openai/b", "openai/a-2026-11-01")
"""The last one is a snapshot of the first."""
DAYS = 4
COSTS = {(model, day): 10 * number for number, (model, day) in enumerate((m, d) for m in MODELS for d in range(DAYS))}


def line(model: str, invoiced: int, first: int = 0, days: int = DAYS) -> InvoiceLine:
    since, until = START + timedelta(days=first), START + timedelta(days=first + days)
    return InvoiceLine(model, since, until, invoiced, 0)


def covered(billed: InvoiceLine) -> set[tuple[str, int]]:
    """The costs that a line may be about, if no other is nearer; a credit is about none."""
    return {
        (model, day)
        for model, day in COSTS
        if not billed.is_credit
        and (not billed.model or family_of(billed.model) == family_of(model))
        and billed.since <= START + timedelta(days=day) < billed.until
    }


def cost_of(part: Part) -> int:
    return sum(
        cost
        for (model, day), cost in COSTS.items()
        if part.model in ("", model) and part.since <= START + timedelta(days=day) < part.until
    )


def invoice(name: str, *lines: InvoiceLine, replaces: str = "") -> ImportInvoice:
    """With the ledger's figures, as the use case finds them."""
    ledger = [0] * len(lines)
    for part in parts(lines, MODELS):
        ledger[part.line] += cost_of(part)
    found = tuple(replace(line, ledger=cost) for line, cost in zip(lines, ledger, strict=True))
    return ImportInvoice(name, "openai", f"{lines} {replaces}", found, replaces)


def after(book: Book, *commands: ImportInvoice | Charge) -> Book:
    for command in commands:
        book = fold(book, decide(book, command))
    return book


def with_costs() -> Book:
    owners = {key: Attribution(tenant_id="acme", model=key[0]) for key in COSTS}
    charges = (Charge(f"{key}", owners[key], cost, START, 0) for key, cost in COSTS.items())
    return after(EMPTY, *charges)


def payable(book: Book) -> int:
    return -book.balances.get("payable:openai", 0)


A_COST = sum(cost for (model, _), cost in COSTS.items() if model.startswith("openai/a"))
B_COST = sum(COSTS.values()) - A_COST


class TestOverlaps:
    @pytest.mark.parametrize(
        "second",
        [line("openai/a", 5), line("", 5), line("openai/a", 5, 3, 1), line("openai/a-2026-10-01", 5, 3, 1)],
        ids=["same", "all models", "a day of it", "by another name"],
    )
    def test_what_an_invoice_bills_no_other_may_bill(self, second: InvoiceLine) -> None:
        book = after(with_costs(), invoice("one", line("openai/a", A_COST + 10)))
        with pytest.raises(InvoiceOverlaps, match="replaces one"):
            decide(book, invoice("two", second))

    @pytest.mark.parametrize("second", ["openai", "OpenAI"])
    def test_a_provider_is_the_same_in_whatever_case_it_is_written(self, second: str) -> None:
        book = after(with_costs(), replace(invoice("one", line("openai/a", A_COST + 10)), provider="OPENAI"))
        again = replace(invoice("two", line(f"{second}/A", A_COST + 15)), provider=second)
        with pytest.raises(InvoiceOverlaps, match="replaces one"):
            decide(book, again)
        book = after(book, replace(again, replaces="one"))
        assert payable(book) == A_COST + 15 + B_COST
        assert (book.balances["adjustment:openai"], book.balances.get("payable:OPENAI", 0)) == (15, 0)

    def test_an_invoice_corrects_one_that_was_posted_to_another_spelling_of_its_provider(self) -> None:
        first = decide(with_costs(), invoice("one", line("openai/a", A_COST + 10)))
        spelled = [each.model_copy(update={"provider": "OpenAI"}) for each in first]
        book = after(fold(with_costs(), spelled), invoice("two", line("openai/A", A_COST + 15), replaces="one"))
        assert payable(book) == A_COST + 15 + B_COST

    def test_another_model_or_time_may_be_billed(self) -> None:
        book = after(with_costs(), invoice("one", line("openai/a", 5, 0, 2)))
        book = after(book, invoice("two", line("openai/a", 7, 2, 2)), invoice("three", line("openai/b", B_COST)))
        assert payable(book) == 5 + 7 + B_COST

    @pytest.mark.parametrize(
        ("lines", "expected"),
        [
            ((line("openai/a", 1), line("openai/a", 1)), (0, 1)),
            ((line("openai/a", 1), line("openai/A", 1, 1, 1)), (0, 1)),
            ((line("openai/a", 1, 2, 2), line("", 1, 0, 3)), (1, 0)),
            ((line("", 1, 0, 1), line("openai/b", 1, 1, 1), line("openai/b", 1, 0, 1)), (0, 2)),
            ((line("openai/a", 1, 0, 3), line("openai/b", 1, 0, 1), line("", 1, 2, 1)), (0, 2)),
            ((line("openai/a", 1), line("openai/b", 1), line("", -1), line("openai/a", -1)), None),
            ((line("", 1, 0, 2), line("", 1, 2, 2)), None),
        ],
    )
    def test_lines_of_one_invoice_that_bill_the_same_are_found(
        self, lines: tuple[InvoiceLine, ...], expected: tuple[int, int] | None
    ) -> None:
        assert first_overlap(lines) == expected


class TestNames:
    CALLED = ("openai/a", "openai/a-2026-11-01", "openai/b")

    def found(self, *lines: InvoiceLine) -> list[tuple[int, str, int]]:
        """Line, model and first day of each part."""
        return [(part.line, part.model, (part.since - START).days) for part in parts(lines, self.CALLED)]

    def test_a_line_about_a_model_is_about_its_snapshots_and_the_other_way_round(self) -> None:
        for name in self.CALLED[:2]:
            assert self.found(line(name, 1)) == [(0, "openai/a", 0), (0, "openai/a-2026-11-01", 0)]
        assert self.found(line("openai/a-2026-10-01", 1)) == [(0, "openai/a", 0)]

    def test_a_line_of_the_very_name_stands_before_one_of_the_family(self) -> None:
        lines = line("openai/a", 1), line("openai/a-2026-11-01", 1, 1, 2)
        assert self.found(*lines) == [
            (0, "openai/a", 0),
            (1, "openai/a-2026-11-01", 1),
            (0, "openai/a-2026-11-01", 0),
            (0, "openai/a-2026-11-01", 3),
        ]

    @pytest.mark.parametrize(
        ("first", "days", "left"),
        [(0, 4, []), (0, 1, [1, 2]), (1, 1, [2]), (2, 1, [1]), (0, 2, [2]), (3, 1, [1, 2]), (0, 3, [])],
    )
    def test_a_line_has_of_its_time_what_a_nearer_one_has_not(self, first: int, days: int, left: list[int]) -> None:
        lines = line("openai/a", 1, 1, 2), line("openai/a-2026-11-01", 1, first, days)
        found = [part for part in parts(lines, ["openai/a-2026-11-01"]) if part.line == 0]
        covered = [
            day for day in range(DAYS) for part in found if part.since <= START + timedelta(days=day) < part.until
        ]
        assert covered == left

    def test_of_two_snapshots_the_first_line_has_what_was_called_by_neither_name(self) -> None:
        lines = line("openai/a-2026-11-01", 1, 0, 2), line("openai/a-2026-10-01", 1)
        assert self.found(*lines) == [(0, "openai/a", 0), (1, "openai/a", 2), (0, "openai/a-2026-11-01", 0)]

    def test_a_line_about_all_models_is_one_part_and_a_credit_none(self) -> None:
        assert self.found(line("", 1), line("openai/a", -1)) == [(0, "", 0)]

    def test_a_hold_is_cleared_by_the_line_that_its_cost_would_be_about(self) -> None:
        lines = line("openai/a", 9), line("openai/a-2026-11-01", 4)
        found = clear(lines, [9, 4], [hold(model) for model in MODELS])
        assert [(each.reservation_id, each.amount) for each in found] == [("openai/a", 5), ("openai/a-2026-11-01", 4)]

    def test_a_hold_of_a_tool_is_cleared_by_the_line_of_its_name_or_of_all_tools(self) -> None:
        holds = [hold("", tool) for tool in ("search", "sql", "")]
        for lines, expected in (
            ((line("tool/Search", 9),), [("search", 5)]),
            ((line("tool/other", 9),), [("", 5)]),
            ((line("", 12),), [("search", 5), ("sql", 5), ("", 2)]),
        ):
            found = clear(lines, [each.invoiced for each in lines], holds)
            assert [(each.reservation_id, each.amount) for each in found] == expected

    def test_an_invoice_says_nothing_of_a_tool_that_holds_time_and_no_money(self) -> None:
        free, billed = hold("", "free", reserved=0), hold("openai/a", reserved=0)
        assert clear((line("", 9),), [9], [free]) == ()
        assert [each.amount for each in clear((line("openai/a", 9),), [9], [billed])] == [0]


def hold(model: str, tool: str = "", reserved: int = 5) -> Reservation:
    """In nano-USD."""
    owner = Attribution(tenant_id="acme", model=model, tool=tool)
    return Reservation(model or tool, "sha", owner, model, reserved, "book 1", "book", UNPRICED, (), START, START)


class TestCorrections:
    def test_a_correction_posts_only_the_difference_to_what_was_posted(self) -> None:
        book = after(with_costs(), invoice("one", line("openai/a", A_COST + 10)))
        book = after(book, invoice("two", line("openai/a", A_COST + 15), replaces="one"))
        assert payable(book) == A_COST + 15 + B_COST
        assert book.balances["adjustment:openai"] == 15

    def test_what_a_correction_no_longer_bills_is_taken_back_and_may_be_billed_anew(self) -> None:
        book = after(with_costs(), invoice("one", line("", A_COST + B_COST + 10)))
        book = after(book, invoice("two", line("openai/a", A_COST + 3), replaces="one"))
        assert payable(book) == A_COST + 3 + B_COST
        assert payable(after(book, invoice("three", line("openai/b", 1)))) == A_COST + 3 + 1

    def test_an_invoice_is_taken_back_by_a_line_of_0_for_a_time_before_all_calls(self) -> None:
        book = after(with_costs(), invoice("one", line("", A_COST + B_COST + 10)))
        book = after(book, invoice("two", line("", 0, -9, 1), replaces="one"))
        assert payable(book) == A_COST + B_COST
        assert payable(after(book, invoice("three", line("", 7)))) == 7

    def test_a_repetition_posts_nothing_and_other_content_is_refused(self) -> None:
        first = invoice("one", line("openai/a", 5))
        book = after(with_costs(), first)
        assert decide(book, first) == ()
        with pytest.raises(InvoiceConflict):
            decide(book, invoice("one", line("openai/a", 6)))

    @pytest.mark.parametrize(("replaces", "problem"), [("none", "no imported invoice"), ("one", "replace that one")])
    def test_only_an_invoice_in_force_can_be_replaced(self, replaces: str, problem: str) -> None:
        book = after(with_costs(), invoice("one", line("openai/a", 5)), invoice("two", replaces="one"))
        with pytest.raises(RequestInvalid, match=problem):
            decide(book, invoice("three", line("openai/a", 6), replaces=replaces))

    def test_credits_lower_what_is_payable_beside_the_lines_that_bill(self) -> None:
        book = after(with_costs(), invoice("one", line("openai/a", A_COST + 10), line("openai/a", -4), line("", -3)))
        assert payable(book) == A_COST + 10 - 4 - 3 + B_COST


@dataclass(frozen=True)
class Step:
    lines: tuple[InvoiceLine, ...]
    replaces: int | None


_LINES = st.builds(
    lambda model, invoiced, first, days: line(model, invoiced, first, min(days, DAYS - first)),
    st.sampled_from(("", *MODELS)),
    st.integers(-40, 200),
    st.integers(0, DAYS - 1),
    st.integers(1, DAYS),
)
_STEPS = st.builds(Step, st.lists(_LINES, max_size=3).map(tuple), st.none() | st.integers(0, 5))


@given(steps=st.lists(_STEPS, max_size=8))
def test_whatever_is_accepted_what_is_payable_is_what_is_invoiced(steps: list[Step]) -> None:
    """And for what no invoice bills, what it cost."""
    book, in_force = with_costs(), dict[str, tuple[InvoiceLine, ...]]()
    for number, step in zip(count(), steps, strict=False):
        name, replaces = f"inv_{number}", "" if step.replaces is None else f"inv_{step.replaces}"
        try:
            book = after(book, invoice(name, *step.lines, replaces=replaces))
        except LedgerError:
            continue
        in_force.pop(replaces, None)
        in_force[name] = step.lines
        billed = [each for lines in in_force.values() for each in lines]
        invoiced = sum(each.invoiced for each in billed)
        unbilled = COSTS.keys() - {key for each in billed for key in covered(each)}
        assert payable(book) == invoiced + sum(COSTS[key] for key in unbilled)
        assert sum(book.balances.values()) == 0
        assert snapshots.load(snapshots.dump(book)) == book
