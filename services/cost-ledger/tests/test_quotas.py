"""Budgets in other units than money, with a limit for each conversation, and in rolling windows: the same rules hold."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger.book import EMPTY, Book
from cost_ledger.commands import Charge, Command, Expire, Price, Release, Renew, Reserve, SetBudget, Settle
from cost_ledger.domain import decide
from cost_ledger.errors import BudgetFixed, ReservationClosed
from cost_ledger.folding import fold
from cost_ledger.rates import UNPRICED, flat_card
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import (
    BudgetCommitmentReached,
    BudgetThresholdReached,
    CostCharged,
    CostReserved,
    CostSettled,
    Hold,
    Quantity,
    ReservationDenied,
    ReservationRenewed,
    Unit,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MODEL = "openai/gpt-5.5"
PRICE = Price(flat_card(1_000, 2_000, 100, 1_250), "book 1", "book")
TTL = timedelta(minutes=10)


def quota(unit: Unit, limit: int, budget_id: str = "quota", **more: object) -> SetBudget:
    given: dict[str, object] = {"scope": Attribution(), "hard": True, "window": "lifetime", "at": NOW}
    return SetBudget(budget_id=budget_id, limit=limit, unit=unit, **(given | more))  # type: ignore[arg-type]


def call(name: str = "r1", input_tokens: int = 10, output_tokens: int = 5, **more: object) -> Reserve:
    given: dict[str, object] = {
        "attribution": Attribution(tenant_id="acme", agent="writer", conversation_id="c1", model=MODEL),
        "at": NOW,
        "fixed": None,
        "book_price": PRICE,
    }
    wanted = given | more
    at = wanted["at"]
    assert isinstance(at, datetime)
    return Reserve(
        reservation_id=name,
        request_sha256=name,
        model=MODEL,
        input_tokens_max=input_tokens,
        output_tokens_max=output_tokens,
        expires_at=at + TTL,
        **wanted,  # type: ignore[arg-type]
    )


def tool(name: str, tool_ms: int, amount: int = 0, at: datetime = NOW) -> Charge:
    owner = Attribution(tenant_id="acme", agent="writer", tool="python")
    return Charge(name, owner, amount, at, 1, (Quantity(unit="tool_ms", quantity=tool_ms),))


def settled(name: str, input_tokens: int, output_tokens: int) -> Settle:
    usage = (
        UsageLine(direction="input", quantity=input_tokens),
        UsageLine(direction="output", quantity=output_tokens),
        UsageLine(direction="input", unit="web_searches", quantity=3),
    )
    return Settle(name, usage, None, "provider_final", NOW)


def after(*commands: Command, book: Book = EMPTY) -> Book:
    for command in commands:
        book = fold(book, decide(book, command))
    return book


def hold(budget_id: str = "quota", window: str = "lifetime", share: str = "") -> Hold:
    return Hold(budget_id=budget_id, window_start=window, share=share)


def first(events: tuple[Event, ...]) -> Event:
    return events[0]


class TestUnits:
    @pytest.mark.parametrize(
        ("unit", "held", "used"), [("tokens", 15, 6), ("input_tokens", 10, 4), ("output_tokens", 5, 2), ("calls", 1, 1)]
    )
    def test_a_quota_holds_the_bound_and_posts_what_was_used(self, unit: Unit, held: int, used: int) -> None:
        book = after(quota(unit, 100), call())
        assert (book.pending(hold()), book.posted(hold())) == (held, 0)
        book = after(settled("r1", 4, 2), book=book)
        assert (book.pending(hold()), book.posted(hold())) == (0, used)

    def test_a_hard_quota_refuses_in_its_own_unit(self) -> None:
        denied = first(decide(after(quota("tokens", 14)), call()))
        assert isinstance(denied, ReservationDenied)
        assert (denied.unit, denied.required_quantity, denied.available_quantity) == ("tokens", 15, 14)
        assert (denied.required_nano_usd, denied.available_nano_usd) == (0, 0)

    def test_money_is_refused_before_a_quota_when_both_lack(self) -> None:
        book = after(quota("tokens", 1), quota("nano_usd", 3, "money"))
        denied = first(decide(book, call()))
        assert isinstance(denied, ReservationDenied)
        assert (denied.budget_id, denied.unit, denied.available_nano_usd) == ("money", "nano_usd", 3)

    def test_an_unpriced_model_may_be_used_under_a_hard_quota(self) -> None:
        unpriced = Price(UNPRICED, "book 1", "unpriced")
        assert isinstance(first(decide(after(quota("tokens", 100)), call(book_price=unpriced))), CostReserved)

    def test_postings_of_a_quota_sum_to_zero_and_are_not_money(self) -> None:
        reserved = first(decide(after(quota("tokens", 100)), call()))
        assert isinstance(reserved, CostReserved)
        assert reserved.postings == ()
        assert [(each.account, each.unit, each.quantity) for each in reserved.quota_postings] == [
            ("pending:quota:lifetime", "tokens", 15),
            ("budget:quota:lifetime", "tokens", -15),
        ]

    def test_a_released_and_an_expired_call_free_and_keep_their_quota(self) -> None:
        book = after(quota("calls", 10), call("r1"), call("r2"), Release("r1", "refused"))
        assert book.pending(hold()) == 1
        book = after(Expire("r2", NOW + TTL), book=book)
        assert (book.balances.get("suspense:quota:lifetime"), book.available(hold())) == (1, 9)
        book = after(settled("r2", 1, 1), book=book)
        assert (book.posted(hold()), book.pending(hold())) == (1, 0)

    def test_a_unit_that_settlement_does_not_tell_is_taken_as_reserved(self) -> None:
        bound = (Quantity(unit="tool_ms", quantity=3_000),)
        book = after(quota("tool_ms", 10_000), call(fixed=5, quantities=bound))
        silent = Settle("r1", (), 5, "provider_final", NOW)
        told = Settle("r1", (), 5, "provider_final", NOW, quantities=(Quantity(unit="tool_ms", quantity=800),))
        assert after(silent, book=book).posted(hold()) == 3_000
        assert after(told, book=book).posted(hold()) == 800

    def test_what_exceeds_the_reservation_of_a_quota_is_told_in_its_unit(self) -> None:
        bound = (Quantity(unit="tool_ms", quantity=100),)
        book = after(quota("tool_ms", 10_000), quota("calls", 10, "calls"), call(fixed=5, quantities=bound))
        (event, *_) = decide(book, tool("r1", 5_000))
        assert isinstance(event, CostSettled)
        assert (event.overrun_nano_usd, event.quota_overruns) == (0, (Quantity(unit="tool_ms", quantity=4_900),))
        (event, *_) = decide(book, tool("r1", 100))
        assert isinstance(event, CostSettled)
        assert event.quota_overruns == ()

    def test_an_alert_of_a_quota_is_in_its_unit(self) -> None:
        events = decide(after(quota("calls", 2), call()), settled("r1", 1, 1))
        (alert,) = [event for event in events if isinstance(event, BudgetThresholdReached)]
        assert (alert.unit, alert.posted_quantity, alert.limit_quantity, alert.posted_nano_usd) == ("calls", 1, 2, 0)


class TestTools:
    def test_the_time_of_a_tool_counts_against_its_quota_even_if_it_costs_no_money(self) -> None:
        book = after(quota("tool_ms", 10_000), tool("c1", 2_500))
        assert (book.posted(hold()), book.available(hold())) == (2_500, 7_500)

    def test_a_free_tool_call_that_no_quota_counts_leaves_no_event(self) -> None:
        assert decide(after(quota("nano_usd", 10, "money")), tool("c1", 2_500)) == ()

    def test_a_tool_call_that_was_reserved_is_settled_by_its_outcome(self) -> None:
        bound = (Quantity(unit="tool_ms", quantity=30_000),)
        book = after(quota("tool_ms", 40_000), call("c1", 0, 0, fixed=100, quantities=bound))
        assert book.available(hold()) == 10_000
        (event,) = decide(book, tool("c1", 1_200, amount=40))
        assert isinstance(event, CostSettled)
        book = fold(book, [event])
        assert (book.posted(hold()), book.pending(hold())) == (1_200, 0)
        assert decide(book, tool("c1", 1_200, amount=40)) == ()

    def test_a_second_call_waits_for_the_time_that_the_first_may_use(self) -> None:
        bound = (Quantity(unit="tool_ms", quantity=30_000),)
        book = after(quota("tool_ms", 40_000), call("c1", 0, 0, fixed=1, quantities=bound))
        denied = first(decide(book, call("c2", 0, 0, fixed=1, quantities=bound)))
        assert isinstance(denied, ReservationDenied)
        assert denied.available_quantity == 10_000

    def test_time_alone_can_be_held_without_any_money(self) -> None:
        bound = (Quantity(unit="tool_ms", quantity=30_000),)
        book = after(quota("tool_ms", 40_000), call("c1", 0, 0, fixed=0, quantities=bound))
        assert (book.available(hold()), book.reservation("c1").reserved) == (10_000, 0)  # type: ignore[union-attr]

    def test_an_overdrawn_budget_refuses_nothing_to_a_tool_that_needs_nothing_of_it(self) -> None:
        bound = (Quantity(unit="tool_ms", quantity=1_000),)
        book = after(quota("nano_usd", 10, "money"), call("c1", 0, 0, fixed=10))
        book = after(Settle("c1", (), 25, "provider_final", NOW), book=book)
        free, priced = (replace(call("c2", 0, 0, fixed=price, quantities=bound), model="") for price in (0, 1))
        assert isinstance(first(decide(book, free)), CostReserved)
        assert isinstance(first(decide(book, priced)), ReservationDenied)

    def test_a_charge_counts_as_a_call(self) -> None:
        (event,) = decide(after(quota("calls", 100)), tool("c1", 5))
        assert isinstance(event, CostCharged)
        assert Quantity(unit="calls", quantity=1) in event.quantities


class TestShares:
    def test_group_16_each_conversation_has_the_limit_for_itself(self) -> None:
        book = after(quota("calls", 1, per="conversation_id"), call("r1"))
        other = Attribution(tenant_id="acme", conversation_id="c2", model=MODEL)
        assert isinstance(first(decide(book, call("r2"))), ReservationDenied)
        book = after(call("r3", attribution=other), book=book)
        assert [book.pending(hold(share=share)) for share in ("c1", "c2", "c3")] == [1, 1, 0]

    def test_spellings_of_a_model_have_one_limit_and_older_holds_keep_their_share(self) -> None:
        spelled = Attribution(tenant_id="acme", model="OpenAI/GPT-5.5")
        book = after(quota("calls", 1, per="model"), call("r1", attribution=spelled))
        assert book.pending(hold(share=MODEL)) == 1
        denied = first(decide(book, call("r2")))
        assert isinstance(denied, ReservationDenied)
        assert denied.share == MODEL
        held = first(decide(after(quota("calls", 1, per="model")), call("r1", attribution=spelled)))
        assert isinstance(held, CostReserved)
        before = held.model_copy(
            update={
                "holds": (hold(share=spelled.model),),
                "postings": tuple(
                    each.model_copy(update={"account": each.account.replace(MODEL, spelled.model)})
                    for each in held.postings
                ),
            }
        )
        book = after(settled("r1", 1, 1), book=fold(after(quota("calls", 1, per="model")), (before,)))
        assert [book.posted(hold(share=share)) for share in (spelled.model, MODEL)] == [1, 0]

    def test_a_refusal_names_the_share(self) -> None:
        denied = first(decide(after(quota("calls", 1, per="agent"), call("r1")), call("r2")))
        assert isinstance(denied, ReservationDenied)
        assert (denied.share, denied.window_start) == ("writer", "lifetime")

    def test_a_cost_without_a_conversation_does_not_count(self) -> None:
        book = after(quota("calls", 0, per="conversation_id"))
        nobody = Attribution(tenant_id="acme", model=MODEL)
        assert isinstance(first(decide(book, call(attribution=nobody))), CostReserved)

    def test_group_17_each_share_is_alerted_once(self) -> None:
        book = after(quota("calls", 2, per="conversation_id"), call("r1"), settled("r1", 1, 1))
        other = Attribution(tenant_id="acme", conversation_id="c2", model=MODEL)
        events = decide(after(call("r2", attribution=other), book=book), settled("r2", 1, 1))
        assert [event.share for event in events if isinstance(event, BudgetThresholdReached)] == ["c2"]

    @pytest.mark.parametrize(("lowered", "refused"), [(3, False), (2, True)])
    def test_group_17_a_share_tells_of_a_lowered_limit_with_its_next_reservation(
        self, lowered: int, refused: bool
    ) -> None:
        book = after(quota("calls", 9, per="conversation_id"), call("r1"), settled("r1", 1, 1))
        book = after(call("r2"), settled("r2", 1, 1), quota("calls", lowered, per="conversation_id"), book=book)
        events = decide(book, call("r3"))
        assert isinstance(events[0], ReservationDenied) is refused
        reached = [each for each in events if isinstance(each, BudgetThresholdReached)]
        percents = [50, 80, 95, 100] if refused else [50]
        assert [(each.share, each.threshold_percent) for each in reached] == [("c1", percent) for percent in percents]
        committed = [each.threshold_percent for each in events if isinstance(each, BudgetCommitmentReached)]
        assert committed == [50, 80, 95, 100]
        assert decide(fold(book, events), call("r4"))[1:] == ()

    def test_a_share_and_a_window_are_never_the_same_account(self) -> None:
        shared = after(quota("calls", 9, "a", per="agent"), call(attribution=Attribution(agent="lifetime")))
        assert "pending:a:lifetime|lifetime" in shared.balances


class TestRolling:
    def test_group_16_what_was_spent_within_the_hour_counts_and_what_is_older_does_not(self) -> None:
        book = after(quota("calls", 1, window="rolling", rolling_s=3_600), call("r1"), settled("r1", 1, 1))
        soon, later = NOW + timedelta(minutes=59), NOW + timedelta(minutes=65)
        assert isinstance(first(decide(book, call("r2", at=soon))), ReservationDenied)
        assert isinstance(first(decide(book, call("r2", at=later))), CostReserved)

    def test_group_16_no_hour_ever_has_more_than_its_limit(self) -> None:
        book, admitted = after(quota("calls", 5, window="rolling", rolling_s=3_600)), []
        for minute in range(0, 300, 2):
            at = NOW + timedelta(minutes=minute)
            event = first(decide(book, call(f"r{minute}", at=at)))
            book = fold(book, [event])
            if isinstance(event, CostReserved):
                admitted.append(at)
        for start in admitted:
            assert sum(start <= at < start + timedelta(hours=1) for at in admitted) <= 5
        assert len(admitted) >= 20

    def test_group_17_a_rolling_budget_alerts_once_in_each_stretch_of_its_length(self) -> None:
        book, told = after(quota("calls", 2, window="rolling", rolling_s=3_600)), []
        for number, minute in enumerate([0, 10, 20, 90, 100]):
            at = NOW + timedelta(minutes=minute)
            events = decide(book, tool(f"c{number}", 1, amount=1, at=at))
            told += [(minute, each.threshold_percent) for each in events if isinstance(each, BudgetThresholdReached)]
            book = fold(book, events)
        assert told == [(0, 50), (10, 80), (10, 95), (10, 100), (90, 50), (100, 80), (100, 95), (100, 100)]


class TestRenewal:
    def test_a_renewed_hold_lives_longer(self) -> None:
        later = NOW + timedelta(minutes=15)
        book = after(call(), Renew("r1", NOW + timedelta(minutes=9), later))
        assert decide(book, Expire("r1", NOW + TTL)) == ()
        assert len(decide(book, Expire("r1", later))) == 1

    def test_a_renewal_that_adds_no_time_changes_nothing(self) -> None:
        book = after(call(), Renew("r1", NOW, NOW + 2 * TTL))
        assert decide(book, Renew("r1", NOW, NOW + 2 * TTL)) == ()
        assert isinstance(first(decide(book, Renew("r1", NOW, NOW + 3 * TTL))), ReservationRenewed)

    def test_a_hold_in_suspense_stays_there(self) -> None:
        book = after(quota("calls", 9), call(), Expire("r1", NOW + TTL))
        assert decide(book, Renew("r1", NOW + TTL, NOW + 2 * TTL)) == ()
        assert book.balances["suspense:quota:lifetime"] == 1

    @pytest.mark.parametrize("end", [Release("r1", "refused"), settled("r1", 1, 1)])
    def test_what_is_closed_cannot_be_renewed(self, end: Command) -> None:
        with pytest.raises(ReservationClosed, match="cannot be renewed"):
            decide(after(call(), end), Renew("r1", NOW, NOW + 2 * TTL))


class TestCommitment:
    def test_group_17_what_is_held_is_alerted_before_it_is_spent_and_once(self) -> None:
        book = after(quota("calls", 2))
        events = decide(book, call("r1"))
        (alert,) = [event for event in events if isinstance(event, BudgetCommitmentReached)]
        assert (alert.threshold_percent, alert.posted, alert.pending, alert.limit) == (50, 0, 1, 2)
        book = after(Release("r1", "refused"), book=fold(book, events))
        assert len(decide(book, call("r2"))) == 1

    def test_group_17_what_was_never_reserved_and_what_exceeds_a_reservation_is_alerted_too(self) -> None:
        book = after(quota("nano_usd", 100), call("r1", fixed=40))
        events = decide(book, tool("c1", 1, amount=25))
        assert committed(events) == [(50, 25, 40)]
        events = decide(fold(book, events), Settle("r1", (), 56, "provider_final", NOW))
        assert committed(events) == [(80, 81, 0)]

    def test_group_17_a_limit_that_is_lowered_to_what_is_held_is_alerted(self) -> None:
        book = after(quota("nano_usd", 1_000), call("r1", fixed=95))
        lowered = quota("nano_usd", 100)
        events = decide(book, lowered)
        assert committed(events) == [(50, 0, 95), (80, 0, 95), (95, 0, 95)]
        assert committed(decide(fold(book, events), replace(lowered, limit=99))) == []


def committed(events: tuple[Event, ...]) -> list[tuple[int, int, int]]:
    told = [event for event in events if isinstance(event, BudgetCommitmentReached)]
    return [(event.threshold_percent, event.posted, event.pending) for event in told]


def test_zone_unit_share_and_length_of_a_budget_are_fixed() -> None:
    book = after(quota("calls", 1, window="rolling", rolling_s=3_600, per="agent"))
    changes = {"time_zone": "Europe/Berlin", "rolling_s": 60, "per": "model", "unit": "tokens"}
    for name, value in changes.items():
        same = {"unit": "calls", "limit": 1, "window": "rolling", "rolling_s": 3_600, "per": "agent"}
        with pytest.raises(BudgetFixed) as caught:
            decide(book, quota(**(same | {name: value})))  # type: ignore[arg-type]
        assert caught.value.field == name.removesuffix("_s")


def test_group_16_a_settlement_of_yesterday_is_posted_to_yesterday_by_the_clock_of_the_place() -> None:
    midnight = datetime(2026, 10, 25, 23, tzinfo=UTC)
    daily = quota("calls", 9, window="day", time_zone="Europe/Berlin")
    book = after(daily, call("r1", at=midnight - timedelta(seconds=1)), Expire("r1", midnight + TTL))
    book = after(Settle("r1", (), 1, "provider_final", midnight + timedelta(hours=5)), book=book)
    assert (book.posted(hold(window="2026-10-25")), book.posted(hold(window="2026-10-26"))) == (1, 0)
