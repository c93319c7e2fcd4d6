"""Given events, when a command, then events."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cost_ledger import snapshots
from cost_ledger.book import CLOSED_MAX, EMPTY, SCOPE_FIELDS, Book
from cost_ledger.commands import (
    CLEARING_EVENTS_MAX,
    Charge,
    Cleared,
    ClearSuspense,
    Command,
    Doubt,
    Expire,
    ImportInvoice,
    InvoiceLine,
    Price,
    Release,
    Renew,
    Rerate,
    Reserve,
    ResumeBudget,
    SetBudget,
    SetPrice,
    SetPriceFactor,
    Settle,
    SuspendBudget,
    Unreserved,
)
from cost_ledger.domain import decide
from cost_ledger.errors import (
    BudgetFixed,
    BudgetNotFound,
    InvoiceOverlaps,
    InvoiceOvertaken,
    ModelUnpriced,
    RequestInvalid,
    ReservationConflict,
    ReservationNotFound,
    ReservationSettled,
    SettlementNotPriced,
)
from cost_ledger.folding import evolve, fold
from cost_ledger.rates import UNPRICED, flat_card, scaled
from cost_ledger.windows import window_start
from synod.common.event import Event
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import (
    BudgetResumed,
    BudgetSuspended,
    BudgetThresholdReached,
    ChargeRerated,
    CostCharged,
    CostReserved,
    CostSettled,
    FuzzyPriceUsed,
    Hold,
    ReservationDenied,
    ReservationExpired,
    ReservationReleased,
)

NOW = datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC)
LATER = NOW + timedelta(seconds=20)
MODEL = "openai/gpt-5.5"
# One thousand pico-USD per token is one nano-USD.
BOOK_PRICE = Price(flat_card(1_000, 2_000, 100, 1_250), "book 1", "book")
USED = (UsageLine(direction="input", quantity=10),)
NO_PRICE = Price(UNPRICED, "book 1", "unpriced", ("openai/gpt-5.5",))


def budget(budget_id: str = "team", limit: int = 1_000, *, hard: bool = True, **scope: str) -> SetBudget:
    return SetBudget(budget_id, Attribution(**scope), limit, hard, "lifetime", NOW)


def reserve(reservation_id: str = "r1", amount: int = 100, **given: object) -> Reserve:
    wanted: dict[str, object] = {
        "reservation_id": reservation_id,
        "request_sha256": f"sha {amount}",
        "attribution": Attribution(tenant_id="acme", agent="writer", root_run_id="run_1", model=MODEL),
        "model": MODEL,
        "input_tokens_max": 0,
        "output_tokens_max": 0,
        "fixed": amount,
        "book_price": BOOK_PRICE,
        "at": NOW,
        "expires_at": NOW + timedelta(minutes=10),
    }
    return Reserve(**(wanted | given))  # type: ignore[arg-type]


def settle(reservation_id: str = "r1", amount: int | None = 60, **given: object) -> Settle:
    wanted: dict[str, object] = {"usage": (), "usage_source": "provider_final", "at": LATER}
    return Settle(reservation_id=reservation_id, amount=amount, **(wanted | given))  # type: ignore[arg-type]


def after(*commands: Command, book: Book = EMPTY) -> Book:
    for command in commands:
        book = fold(book, decide(book, command))
    return book


def only(events: tuple[Event, ...]) -> Event:
    (event,) = events
    return event


def lifetime(budget_id: str = "team") -> Hold:
    return Hold(budget_id=budget_id, window_start="lifetime")


class TestReserving:
    def test_a_reservation_holds_its_bound_in_every_matching_budget(self) -> None:
        book = after(budget("all"), budget("writer", agent="writer"), budget("other", agent="analyst"), reserve())
        assert [book.pending(lifetime(name)) for name in ("all", "writer", "other")] == [100, 100, 0]
        assert book.available(lifetime("all")) == 900

    def test_the_bound_is_priced_by_tokens_and_the_rates_are_pinned(self) -> None:
        event = only(decide(EMPTY, reserve(fixed=None, input_tokens_max=10, output_tokens_max=5)))
        assert isinstance(event, CostReserved)
        # The dearest input is a cache write, 1.25 nano-USD: 22.5, rounded up.
        assert event.amount_nano_usd == 23
        assert event.rates == BOOK_PRICE.rates
        assert (event.price_version, event.price_source) == ("book 1", "book")

    def test_a_call_that_no_call_can_cost_is_refused_at_its_price_before_it_is_held(self) -> None:
        dear = replace(BOOK_PRICE, rates=flat_card(10**12, 10**12, 10**12, 10**12))  # a dollar for a token
        most = reserve(fixed=None, input_tokens_max=10**6, book_price=dear)
        assert isinstance(only(decide(EMPTY, most)), CostReserved)
        with pytest.raises(RequestInvalid, match=r"1000001000000000 nano-USD.*costs more than one call may"):
            decide(EMPTY, replace(most, input_tokens_max=10**6 + 1))

    def test_neither_a_settlement_nor_a_correction_posts_what_no_call_can_cost(self) -> None:
        book = after(reserve(fixed=None, input_tokens_max=10))
        for quantity in (10**15 + 1, 10**18):
            with pytest.raises(RequestInvalid, match="usage"):
                decide(book, settle(amount=None, usage=(UsageLine(direction="input", quantity=quantity),)))
        book = after(settle(), book=book)
        correction = Rerate(
            "r1", 1, Attribution(), MODEL, 60, 10**18 + 1_000, BOOK_PRICE, (lifetime(),), NOW, "a price was set"
        )
        with pytest.raises(RequestInvalid, match="price"):
            decide(book, correction)

    def test_a_hard_budget_refuses_what_it_cannot_cover_and_nothing_is_held_anywhere(self) -> None:
        book = after(budget("all", 1_000), budget("small", 99, agent="writer"))
        event = only(decide(book, reserve(amount=100)))
        assert isinstance(event, ReservationDenied)
        assert (event.budget_id, event.available_nano_usd, event.required_nano_usd) == ("small", 99, 100)
        assert evolve(book, event) == book

    def test_the_last_nano_may_be_reserved(self) -> None:
        assert isinstance(decide(after(budget(limit=100)), reserve(amount=100))[0], CostReserved)

    def test_a_soft_budget_only_warns(self) -> None:
        book = after(budget(limit=10, hard=False), reserve(amount=100))
        assert book.available(lifetime()) == -90

    def test_pending_counts_against_the_next_reservation(self) -> None:
        book = after(budget(limit=150), reserve("r1"))
        assert isinstance(only(decide(book, reserve("r2"))), ReservationDenied)

    def test_group_18_the_same_request_again_changes_nothing(self) -> None:
        book = after(reserve())
        assert decide(book, reserve()) == ()

    def test_group_18_the_same_id_with_other_content_is_refused(self) -> None:
        book = after(reserve(amount=100))
        with pytest.raises(ReservationConflict):
            decide(book, reserve(amount=101))

    def test_the_same_request_after_settlement_changes_nothing(self) -> None:
        book = after(reserve(), settle())
        assert decide(book, reserve()) == ()

    def test_group_14_an_unpriced_model_is_refused_under_a_hard_budget(self) -> None:
        book = after(budget())
        with pytest.raises(ModelUnpriced) as refused:
            decide(book, reserve(book_price=NO_PRICE, fixed=None))
        assert "openai/gpt-5.5" in str(refused.value)

    @pytest.mark.parametrize(
        ("model", "said"),
        [("ollama/qwen3", "ollama/qwen3"), ("ollama/my model; x", "'ollama/my model; x'"), ("qwen3", "PROVIDER/MODEL")],
    )
    def test_the_refusal_of_an_unpriced_model_names_the_command_that_gives_it_a_price(
        self, model: str, said: str
    ) -> None:
        assert f"synod prices set {said} IN OUT (SetPrice)" in str(ModelUnpriced(model, "b"))

    def test_an_unpriced_model_is_reserved_at_zero_and_flagged_under_soft_budgets(self) -> None:
        event = only(decide(after(budget(hard=False)), reserve(book_price=NO_PRICE, fixed=None, input_tokens_max=9)))
        assert isinstance(event, CostReserved)
        assert (event.amount_nano_usd, event.price_source) == (0, "unpriced")

    def test_a_tenants_own_price_wins(self) -> None:
        book = after(SetPrice("openai", "gpt-5.5", 5_000, 7_000, 5_000, 5_000))
        event = only(decide(book, reserve(fixed=None, input_tokens_max=10, output_tokens_max=1)))
        assert isinstance(event, CostReserved)
        assert (event.amount_nano_usd, event.price_source) == (57, "override")

    def test_a_fixed_amount_without_a_model_needs_no_price(self) -> None:
        event = only(decide(after(budget()), reserve(model="", amount=5, book_price=NO_PRICE)))
        assert isinstance(event, CostReserved)
        assert (event.amount_nano_usd, event.price_source) == (5, "fixed")

    def test_the_budget_of_a_team_run_covers_its_members(self) -> None:
        book = after(budget("run:run_1", root_run_id="run_1"))
        member = Attribution(run_id="run_2", root_run_id="run_1")
        stranger = Attribution(run_id="run_3", root_run_id="run_9")
        assert [found.budget_id for found in book.matching(member)] == ["run:run_1"]
        assert book.matching(stranger) == ()

    @pytest.mark.parametrize("field", SCOPE_FIELDS)
    def test_a_budget_may_be_for_one_value_of_any_attribution(self, field: str) -> None:
        mine, other = (Attribution(tenant_id="acme", **{field: value}) for value in ("mine", "other"))
        book = after(budget(limit=150, **{field: "mine"}))
        book = after(reserve("r1", attribution=other), reserve("r2", attribution=mine), book=book)
        assert book.pending(lifetime()) == 100
        assert isinstance(decide(book, reserve("r3", attribution=mine))[0], ReservationDenied)
        assert isinstance(decide(book, reserve("r4", attribution=other))[0], CostReserved)

    @pytest.mark.parametrize("field", SCOPE_FIELDS)
    def test_a_budget_may_give_each_value_of_any_attribution_a_limit_of_its_own(self, field: str) -> None:
        one, two = (Attribution(tenant_id="acme", **{field: value}) for value in ("one", "two"))
        book = after(SetBudget("team", Attribution(), 150, True, "lifetime", NOW, per=field))
        book = after(reserve("r1", attribution=one), reserve("r2", attribution=two), book=book)
        assert isinstance(decide(book, reserve("r3", attribution=one))[0], ReservationDenied)

    def test_a_budget_may_be_for_all_models_of_a_provider(self) -> None:
        book = after(budget(limit=150, model="openai/*"), reserve("r1"))
        assert isinstance(decide(book, reserve("r2"))[0], ReservationDenied)
        others = [Attribution(tenant_id="acme", model=model) for model in ("openai-eu/gpt-5.5", "anthropic/opus", "")]
        for other in others:
            assert isinstance(decide(book, reserve("r3", attribution=other))[0], CostReserved)

    def test_every_set_field_of_a_scope_must_match(self) -> None:
        book = after(budget("both", agent="writer", model=MODEL))
        assert book.matching(Attribution(agent="writer", model=MODEL))
        assert not book.matching(Attribution(agent="writer", model="openai/other"))

    @pytest.mark.parametrize("model", ["openai/GPT-5.5", "OPENAI/gpt-5.5-2026-04-01"])
    def test_group_01_a_budget_of_a_model_holds_it_in_whatever_case_it_is_called(self, model: str) -> None:
        owner = Attribution(tenant_id="acme", model=model)
        for scope in (MODEL, "openai/GPT-5.5", "openai/*"):
            denied = only(decide(after(budget(limit=99, model=scope)), reserve(model=model, attribution=owner)))
            assert isinstance(denied, ReservationDenied)


STOPPED = SuspendBudget("team", "a leaked key")


GUESS = Price(BOOK_PRICE.rates, "book 1", "book_fuzzy", ("openai/gpt-5.4",))
TOLD = FuzzyPriceUsed(model=MODEL, price_version="book 1", priced_as="openai/gpt-5.4")


class TestGuessedPrices:
    def test_group_14_a_price_that_is_a_guess_is_told_at_its_first_use_only(self) -> None:
        first = decide(EMPTY, reserve("r1", book_price=GUESS))
        assert first[1:] == (TOLD,)
        assert [type(event) for event in decide(fold(EMPTY, first), reserve("r2", book_price=GUESS))] == [CostReserved]
        assert TOLD not in decide(fold(EMPTY, first), settle("r1", None, usage=USED))

    def test_another_version_of_the_price_book_is_told_again(self) -> None:
        newer = Price(GUESS.rates, "book 2", "book_fuzzy", GUESS.near)
        events = decide(after(reserve("r1", book_price=GUESS)), reserve("r2", book_price=newer))
        assert [event.price_version for event in events if isinstance(event, FuzzyPriceUsed)] == ["book 2"]

    def test_a_use_that_was_never_reserved_tells_it_too(self) -> None:
        use = Unreserved(Attribution(tenant_id="acme", model=MODEL), MODEL, GUESS, NOW)
        assert decide(EMPTY, settle("r9", None, usage=USED, unreserved=use))[1:] == (TOLD,)

    def test_a_price_of_ones_own_is_no_guess(self) -> None:
        own = SetPrice("openai", "gpt-5.5", 1_000, 2_000, 100, 1_250)
        assert len(decide(after(own), reserve(book_price=GUESS))) == 1

    def test_what_is_refused_is_not_told_of(self) -> None:
        assert isinstance(only(decide(after(budget(limit=10)), reserve(book_price=GUESS))), ReservationDenied)

    def test_group_14_billed_terms_without_a_price_cost_the_pinned_rates_as_a_guess(self) -> None:
        book = after(budget(), reserve(fixed=None, input_tokens_max=100))
        bill = settle(amount=None, usage=USED, billed=NO_PRICE, price_context="service_tier=priority")
        settled, told = decide(book, bill)
        assert isinstance(settled, CostSettled)
        assert (settled.amount_nano_usd, settled.price_source, settled.price_version) == (10, "book_fuzzy", "book 1")
        assert settled.price_context == "service_tier=priority"
        assert told == FuzzyPriceUsed(model=MODEL, price_version="book 1", priced_as=MODEL)
        assert fold(book, (settled, told)).posted(lifetime()) == 10

    def test_terms_of_which_neither_those_reserved_nor_those_billed_have_a_price_stay_unpriced(self) -> None:
        book = after(reserve(book_price=NO_PRICE, fixed=None, input_tokens_max=100))
        settled = only(decide(book, settle(amount=None, usage=USED, billed=NO_PRICE)))
        assert isinstance(settled, CostSettled)
        assert (settled.amount_nano_usd, settled.price_source) == (0, "unpriced")

    def test_a_snapshot_keeps_what_was_told(self) -> None:
        book = snapshots.load(snapshots.dump(after(reserve("r1", book_price=GUESS))))
        assert len(decide(book, reserve("r2", book_price=GUESS))) == 1


class TestSuspending:
    def test_a_suspended_budget_refuses_what_it_would_cover_and_says_why(self) -> None:
        book = after(budget("team", agent="writer"), STOPPED)
        event = only(decide(book, reserve()))
        assert isinstance(event, ReservationDenied)
        assert (event.budget_id, event.suspended_for) == ("team", "a leaked key")
        assert (event.available_nano_usd, event.required_nano_usd) == (1_000, 100)
        assert evolve(book, event) == book

    def test_a_soft_budget_refuses_too_while_it_is_suspended(self) -> None:
        assert isinstance(only(decide(after(budget(hard=False), STOPPED), reserve())), ReservationDenied)

    def test_a_tool_that_needs_nothing_of_it_is_refused_too(self) -> None:
        tool = reserve(model="", attribution=Attribution(tool="sql"), amount=0)
        assert isinstance(only(decide(after(budget(), STOPPED), tool)), ReservationDenied)

    def test_suspension_is_told_before_a_lack_of_money(self) -> None:
        book = after(budget("empty", 0), budget("team"), STOPPED)
        event = only(decide(book, reserve()))
        assert isinstance(event, ReservationDenied)
        assert event.budget_id == "team"

    def test_suspension_is_told_before_a_lack_of_a_price(self) -> None:
        event = only(decide(after(budget(), STOPPED), reserve(book_price=NO_PRICE, fixed=None)))
        assert isinstance(event, ReservationDenied)
        assert event.suspended_for == "a leaked key"

    def test_what_does_not_count_against_it_is_admitted(self) -> None:
        book = after(budget("team", agent="analyst"), STOPPED)
        assert isinstance(decide(book, reserve())[0], CostReserved)

    def test_what_is_held_is_renewed_repeated_settled_and_released_as_ever(self) -> None:
        book = after(budget(), reserve("r1"), reserve("r2"), STOPPED)
        assert decide(book, reserve("r1")) == ()
        assert len(decide(book, Renew("r1", NOW, LATER + timedelta(hours=1)))) == 1
        book = after(settle("r1", 60), Release("r2", "never sent"), book=book)
        assert (book.posted(lifetime()), book.pending(lifetime())) == (60, 0)

    def test_use_that_was_never_reserved_is_recorded_all_the_same(self) -> None:
        tool = Charge("t1", Attribution(tenant_id="acme", tool="sql"), 5, NOW, 1)
        assert after(budget(), STOPPED, tool).posted(lifetime()) == 5

    def test_a_new_limit_does_not_resume_it(self) -> None:
        book = after(budget(), STOPPED, budget(limit=9_000))
        assert (book.budget("team").limit, book.budget("team").suspended_for) == (9_000, "a leaked key")
        assert decide(book, budget(limit=9_000)) == ()

    def test_resumed_it_decides_by_its_limit_again(self) -> None:
        book = after(budget(limit=100), STOPPED, ResumeBudget("team"))
        assert isinstance(decide(book, reserve(amount=100))[0], CostReserved)
        assert isinstance(only(decide(book, reserve(amount=101))), ReservationDenied)

    def test_a_repetition_changes_nothing_and_another_reason_is_told(self) -> None:
        book = after(budget(), STOPPED)
        assert decide(book, STOPPED) == ()
        assert decide(book, SuspendBudget("team", "audit")) == (BudgetSuspended(budget_id="team", reason="audit"),)
        assert decide(book, ResumeBudget("team")) == (BudgetResumed(budget_id="team"),)
        assert decide(after(budget()), ResumeBudget("team")) == ()

    def test_an_unknown_budget_is_refused(self) -> None:
        for command in (STOPPED, ResumeBudget("team")):
            with pytest.raises(BudgetNotFound):
                decide(EMPTY, command)

    def test_a_snapshot_keeps_it(self) -> None:
        book = after(budget(), STOPPED)
        assert snapshots.load(snapshots.dump(book)).budget("team") == book.budget("team")


class TestSettling:
    def test_a_settlement_posts_what_was_used_and_frees_the_rest(self) -> None:
        book = after(budget(), reserve(), settle(amount=60))
        assert (book.posted(lifetime()), book.pending(lifetime()), book.available(lifetime())) == (60, 0, 940)

    def test_usage_is_priced_by_the_pinned_rates_whatever_the_price_is_now(self) -> None:
        used = (UsageLine(direction="input", quantity=7), UsageLine(direction="output", quantity=2))
        book = after(reserve(), SetPrice("openai", "gpt-5.5", 10**9, 10**9, 0, 0))
        event = decide(book, settle(amount=None, usage=used))[0]
        assert isinstance(event, CostSettled)
        assert (event.amount_nano_usd, event.amount_pico_usd) == (11, 11_000)

    def test_group_15_an_amount_is_rounded_half_to_even_once(self) -> None:
        price = Price(flat_card(500, 500, 500, 500), "book 1", "book")
        one, three = (UsageLine(direction="input", quantity=quantity) for quantity in (1, 3))
        book = after(reserve("a", book_price=price), reserve("b", book_price=price))
        amounts = [
            decide(book, settle("a", None, usage=(one,)))[0],
            decide(book, settle("b", None, usage=(three,)))[0],
        ]
        assert [event.amount_nano_usd for event in amounts if isinstance(event, CostSettled)] == [0, 2]

    def test_an_overrun_is_accepted_and_recorded(self) -> None:
        book = after(budget(limit=100), reserve(amount=100))
        event = decide(book, settle(amount=130))[0]
        assert isinstance(event, CostSettled)
        assert event.overrun_nano_usd == 30
        assert evolve(book, event).available(lifetime()) == -30

    def test_group_03_a_second_settlement_changes_nothing(self) -> None:
        book = after(budget(), reserve(), settle(amount=60))
        assert decide(book, settle(amount=70)) == ()

    def test_a_settlement_of_nothing_known_is_not_found(self) -> None:
        with pytest.raises(ReservationNotFound):
            decide(EMPTY, settle("nowhere"))

    def test_group_03_a_use_that_was_never_reserved_is_recorded_all_the_same(self) -> None:
        use = Unreserved(Attribution(agent="writer", model=MODEL), MODEL, BOOK_PRICE, NOW)
        used = (UsageLine(direction="output", quantity=50),)
        book = after(budget(limit=90), settle("r9", None, usage=used, unreserved=use))
        known = book.reservation("r9")
        assert known is not None
        assert (known.settled, known.overrun, book.posted(lifetime())) == (100, 100, 100)

    def test_group_03_a_reservation_after_its_settlement_holds_nothing(self) -> None:
        use = Unreserved(Attribution(agent="writer", model=MODEL), MODEL, BOOK_PRICE, NOW)
        book = after(budget(), settle("r1", 60, unreserved=use))
        assert decide(book, reserve("r1")) == ()

    def test_tokens_cannot_settle_a_fixed_amount(self) -> None:
        book = after(reserve(model="", book_price=NO_PRICE))
        with pytest.raises(SettlementNotPriced):
            decide(book, settle(amount=None, usage=(UsageLine(direction="input", quantity=1),)))

    @pytest.mark.parametrize("price", [BOOK_PRICE, NO_PRICE], ids=["priced", "unpriced"])
    def test_what_is_told_as_an_amount_is_recorded_at_no_price(self, price: Price) -> None:
        told = decide(after(reserve(book_price=price)), settle(amount=60))[0]
        assert isinstance(told, CostSettled)
        assert (told.price_source, told.price_version, told.amount_nano_usd) == ("fixed", "", 60)

    def test_group_14_what_is_owed_for_a_model_stands_in_one_account_in_whatever_case_it_is_called(self) -> None:
        book = after(reserve("r1"), settle("r1", 60), reserve("r2", model="OpenAI/gpt-5.5"), settle("r2", 40))
        assert book.balances["payable:openai"] == -100

    def test_what_is_spent_stands_against_what_is_owed(self) -> None:
        book = after(budget(), reserve(), settle(amount=60))
        assert book.balances[f"expense:{MODEL}"] == 60
        assert book.balances["payable:openai"] == -60


class TestReleasing:
    def test_a_release_frees_the_hold(self) -> None:
        book = after(budget(), reserve(), Release("r1", "never dispatched"))
        assert (book.pending(lifetime()), book.posted(lifetime())) == (0, 0)

    def test_a_second_release_changes_nothing(self) -> None:
        assert decide(after(reserve(), Release("r1", "")), Release("r1", "")) == ()

    def test_what_is_settled_cannot_be_released(self) -> None:
        with pytest.raises(ReservationSettled):
            decide(after(reserve(), settle()), Release("r1", ""))

    def test_group_03_a_settlement_after_release_is_accepted_as_an_overrun(self) -> None:
        book = after(budget(), reserve(), Release("r1", "refused"), settle(amount=60))
        known = book.reservation("r1")
        assert known is not None
        assert (known.state, known.settled, known.overrun, book.posted(lifetime())) == ("settled", 60, 60, 60)


class TestExpiring:
    def test_an_expired_hold_moves_to_suspense_and_stays_held(self) -> None:
        book = after(budget(), reserve())
        event = only(decide(book, Expire("r1", NOW + timedelta(minutes=10))))
        assert isinstance(event, ReservationExpired)
        book = evolve(book, event)
        assert book.pending(lifetime()) == 100
        assert book.balances["suspense:team:lifetime"] == 100

    def test_nothing_expires_before_its_time(self) -> None:
        assert decide(after(reserve()), Expire("r1", NOW + timedelta(minutes=9))) == ()

    def test_what_has_an_outcome_does_not_expire(self) -> None:
        assert decide(after(reserve(), settle()), Expire("r1", NOW + timedelta(days=1))) == ()

    def test_group_03_a_late_settlement_goes_into_the_window_of_the_reservation(self) -> None:
        monthly = SetBudget("team", Attribution(), 1_000, True, "month", NOW)
        expiry = Expire("r1", NOW + timedelta(hours=1))
        book = after(monthly, reserve(), expiry, settle(amount=60, at=NOW + timedelta(hours=2)))
        assert book.posted(Hold(budget_id="team", window_start="2026-11")) == 60
        assert book.pending(Hold(budget_id="team", window_start="2026-11")) == 0
        assert book.posted(Hold(budget_id="team", window_start="2026-12")) == 0

    def test_a_hold_in_suspense_can_be_released(self) -> None:
        book = after(budget(), reserve(), Expire("r1", NOW + timedelta(hours=1)))
        event = only(decide(book, Release("r1", "the provider rejected it")))
        assert isinstance(event, ReservationReleased)
        assert evolve(book, event).pending(lifetime()) == 0


class TestCharging:
    def test_a_charge_is_posted_once(self) -> None:
        charge = Charge("call_1", Attribution(tool="sql"), 40, NOW, 7)
        book = after(budget(), charge)
        assert (book.posted(lifetime()), book.balances["expense:tool/sql"]) == (40, 40)
        assert decide(book, charge) == ()

    def test_a_charge_is_accepted_beyond_the_limit(self) -> None:
        event = decide(after(budget(limit=10)), Charge("call_1", Attribution(), 40, NOW, 7))[0]
        assert isinstance(event, CostCharged)


class TestBudgets:
    def test_the_same_budget_again_changes_nothing(self) -> None:
        assert decide(after(budget()), budget()) == ()

    @pytest.mark.parametrize(("given", "field"), [({"agent": "writer"}, "scope")])
    def test_the_scope_of_a_budget_is_fixed(self, given: dict[str, str], field: str) -> None:
        with pytest.raises(BudgetFixed) as refused:
            decide(after(budget()), budget(**given))  # type: ignore[arg-type]
        assert refused.value.field == field

    def test_the_window_of_a_budget_is_fixed(self) -> None:
        with pytest.raises(BudgetFixed):
            decide(after(budget()), SetBudget("team", Attribution(), 1_000, True, "day", NOW))

    def test_group_16_a_limit_lowered_below_what_is_posted_refuses_everything_new(self) -> None:
        book = after(budget(), reserve(), settle(amount=60), budget(limit=50))
        assert book.available(lifetime()) == -10
        assert isinstance(only(decide(book, reserve("r2", amount=0))), ReservationDenied)

    def test_group_17_each_threshold_is_told_once(self) -> None:
        book = after(budget(limit=100), reserve("a", 60), reserve("b", 40))
        first = decide(book, settle("a", 60))
        book = fold(book, first)
        second = decide(book, settle("b", 36))
        told = [event.threshold_percent for event in (*first, *second) if isinstance(event, BudgetThresholdReached)]
        assert told == [50, 80, 95]

    def test_group_17_lowering_a_limit_may_reach_thresholds(self) -> None:
        book = after(budget(limit=1_000), reserve(), settle(amount=60))
        told = [event for event in decide(book, budget(limit=100)) if isinstance(event, BudgetThresholdReached)]
        assert [event.threshold_percent for event in told] == [50]

    @pytest.mark.parametrize(
        ("window", "at", "name"),
        [
            ("lifetime", NOW, "lifetime"),
            ("day", NOW, "2026-11-30"),
            ("day", LATER, "2026-12-01"),
            ("month", NOW, "2026-11"),
            ("month", datetime(2028, 2, 29, tzinfo=UTC), "2028-02"),
        ],
    )
    def test_group_16_windows_are_calendar_periods_in_utc(self, window: str, at: datetime, name: str) -> None:
        assert window_start(window, at) == name  # type: ignore[arg-type]

    def test_group_16_a_new_window_starts_with_the_whole_limit(self) -> None:
        daily = SetBudget("team", Attribution(), 100, True, "day", NOW)
        book = after(daily, reserve(amount=100), settle(amount=100))
        assert isinstance(only(decide(book, reserve("r2", at=NOW))), ReservationDenied)
        assert isinstance(decide(book, reserve("r2", at=LATER))[0], CostReserved)


class TestCorrections:
    def rerate(self, before: int, after_nano: int, revision: int = 1) -> Rerate:
        owner = Attribution(tenant_id="acme", agent="writer", model=MODEL)
        holds = (lifetime(),)
        return Rerate("r1", revision, owner, MODEL, before, after_nano * 1_000, BOOK_PRICE, holds, NOW, "dearer")

    def test_a_correction_posts_the_difference_in_both_directions(self) -> None:
        book = after(budget(), reserve(), settle(amount=60), self.rerate(60, 75))
        assert (book.posted(lifetime()), book.balances[f"expense:{MODEL}"], book.balances["payable:openai"]) == (
            75,
            75,
            -75,
        )
        book = after(self.rerate(75, 20, revision=2), book=book)
        assert (book.posted(lifetime()), book.balances["payable:openai"]) == (20, -20)
        assert book.reservation("r1") is not None

    def test_a_correction_made_from_an_older_amount_is_left_out(self) -> None:
        book = after(budget(), reserve(), settle(amount=60), self.rerate(60, 75))
        assert decide(book, self.rerate(60, 80)) == ()

    def test_a_cost_without_a_price_that_turns_out_to_be_free_gets_its_price_once(self) -> None:
        book = after(budget(hard=False), reserve(book_price=NO_PRICE, fixed=None), settle(amount=None, usage=USED))
        free = only(decide(book, self.rerate(0, 0)))
        assert isinstance(free, ChargeRerated)
        assert (free.price_source, free.postings) == ("book", ())
        assert decide(fold(book, (free,)), self.rerate(0, 0, revision=2)) == ()

    def test_a_correction_may_reach_a_threshold(self) -> None:
        book = after(budget(limit=100), reserve(amount=40), settle(amount=40))
        reached = [each for each in decide(book, self.rerate(40, 85)) if isinstance(each, BudgetThresholdReached)]
        assert [each.threshold_percent for each in reached] == [50, 80]


def test_a_book_forgets_the_oldest_outcomes_and_no_balance() -> None:
    book = after(budget(limit=10**9))
    for number in range(CLOSED_MAX + 1):
        book = after(reserve(f"r{number}", 1), settle(f"r{number}", 1), book=book)
    assert book.reservation("r0") is None
    assert book.reservation("r1") is not None
    assert book.posted(lifetime()) == CLOSED_MAX + 1


class TestDoubt:
    def test_a_hold_in_doubt_is_held_in_suspense_at_once(self) -> None:
        book = after(budget(), reserve(), Doubt("r1"))
        assert book.open["r1"].state == "suspense"
        assert (book.pending(lifetime()), book.available(lifetime())) == (100, 900)

    @pytest.mark.parametrize(
        "before", [(), (reserve(), settle()), (reserve(), Release("r1", "no")), (reserve(), Doubt("r1"))]
    )
    def test_nothing_is_in_doubt_but_what_is_held(self, before: tuple[Command, ...]) -> None:
        assert decide(after(budget(), *before), Doubt("r1")) == ()


class TestInvoices:
    def clearing(self, *cleared: Cleared) -> ClearSuspense:
        return ClearSuspense(self.invoice(), cleared)

    def invoice(self) -> ImportInvoice:
        return ImportInvoice("inv_1", "openai", "sha", (InvoiceLine(MODEL, NOW, LATER, 160, 160),))

    def test_an_invoice_settles_what_was_billed_of_suspense_and_releases_the_rest(self) -> None:
        book = after(budget(), reserve("a"), reserve("b"), Doubt("a"), Doubt("b"))
        book = after(self.clearing(Cleared("a", 60), Cleared("b", 0)), book=book)
        assert (book.posted(lifetime()), book.pending(lifetime())) == (60, 0)
        assert [book.closed.get(name).state for name in ("a", "b")] == ["settled", "released"]  # type: ignore[union-attr]
        assert sum(book.balances.values()) == 0

    def test_the_thresholds_that_it_reaches_are_told_once(self) -> None:
        book = after(budget(limit=110), reserve("a"), Doubt("a"), reserve("b", 1), Doubt("b"))
        found = decide(book, self.clearing(Cleared("a", 60), Cleared("b", 1)))
        told = [event.threshold_percent for event in found if isinstance(event, BudgetThresholdReached)]
        assert told == [50]

    def test_nothing_is_cleared_for_an_invoice_that_is_imported_or_cannot_be(self) -> None:
        book = after(budget(), reserve("a"), Doubt("a"), self.invoice())
        assert decide(book, self.clearing(Cleared("a", 60))) == ()
        other = replace(self.invoice(), invoice_id="inv_2")
        with pytest.raises(InvoiceOverlaps):
            decide(book, ClearSuspense(other, (Cleared("a", 60),)))

    def test_what_has_no_room_in_a_command_is_left_to_the_next(self) -> None:
        names = [f"r{number}" for number in range(CLEARING_EVENTS_MAX)]
        book = after(budget(), *(reserve(name, 1) for name in names), *map(Doubt, names), budget(limit=2))
        cleared = tuple(Cleared(name, 1) for name in names)
        first = decide(book, self.clearing(*cleared))
        # The first two reach four thresholds.
        assert len(first) == CLEARING_EVENTS_MAX
        second = decide(fold(book, first), self.clearing(*cleared[-4:]))
        assert [event.reservation_id for event in second if isinstance(event, CostSettled)] == names[-4:]

    def test_an_invoice_whose_hold_was_settled_meanwhile_is_to_be_compared_anew(self) -> None:
        book = after(budget(), reserve("a"), Doubt("a"), settle("a"))
        for name in ("a", "forgotten"):
            with pytest.raises(InvoiceOvertaken):
                decide(book, self.clearing(Cleared(name, 60)))


class TestFactors:
    def discounted(self, book: Book, model: str = MODEL) -> Price:
        return book.price_of(model, BOOK_PRICE)

    def test_a_discount_lowers_every_rate_of_the_book_exactly_and_is_named_in_the_version(self) -> None:
        found = self.discounted(after(SetPriceFactor("openai", "gpt-5.5", 333_333)))
        (rate,) = [rate for rate in found.rates if rate.unit == "cache_read"]
        assert (rate.pico_usd * 1_000_000, found.source) == (333_333 * 100 * rate.per, "book")
        assert found.version == "book 1 at 333333 ppm"

    def test_a_reservation_and_its_settlement_are_at_the_tenants_factor(self) -> None:
        book = after(budget(), SetPriceFactor("openai", "", 1_500_000))
        book = after(reserve(fixed=None, input_tokens_max=100, output_tokens_max=10), book=book)
        assert book.pending(lifetime()) == 218  # 100 cache writes of 1.875 and 10 of 3, rounded to even
        used = (UsageLine(direction="input", quantity=100), UsageLine(direction="output", quantity=10))
        assert after(settle(amount=None, usage=used), book=book).posted(lifetime()) == 180

    def test_what_was_billed_on_other_terms_is_discounted_too(self) -> None:
        book = after(budget(), SetPriceFactor("openai", "", 500_000))
        book = after(reserve(fixed=None, input_tokens_max=100), book=book)
        dearer = Price(flat_card(3_000, 3_000, 0, 0), "book 1", "book")
        used = (UsageLine(direction="input", quantity=100),)
        book = after(settle(amount=None, usage=used, billed=dearer, price_context="tier=fast"), book=book)
        assert book.posted(lifetime()) == 150

    @pytest.mark.parametrize(("before", "factor"), [((), 1), ((SetPriceFactor("openai", "", 2_000_000),), 2)])
    def test_group_14_other_terms_are_billed_at_the_factor_of_the_reservation_and_not_of_later(
        self, before: tuple[Command, ...], factor: int
    ) -> None:
        book = after(*before, reserve(fixed=None, input_tokens_max=10), SetPriceFactor("openai", "", 3_000_000))
        dearer = Price(flat_card(3_000, 3_000, 0, 0), "book 1", "book")
        bill = settle(amount=None, usage=USED, billed=dearer, price_context="tier=fast")
        settled = only(decide(book, bill))
        assert isinstance(settled, CostSettled)
        assert settled.amount_nano_usd == 30 * factor
        assert settled.price_version == ("book 1 at 2000000 ppm" if before else "book 1")

    def test_other_terms_of_what_had_no_price_are_billed_at_the_factor_of_now(self) -> None:
        book = after(reserve(book_price=NO_PRICE, fixed=None, input_tokens_max=10))
        book = after(SetPriceFactor("openai", "", 3_000_000), book=book)
        settled = only(decide(book, settle(amount=None, usage=USED, billed=BOOK_PRICE, price_context="tier=fast")))
        assert isinstance(settled, CostSettled)
        assert (settled.amount_nano_usd, settled.price_source) == (30, "book")

    def test_an_own_price_is_that_of_whatever_terms_are_billed(self) -> None:
        own = SetPrice("openai", "gpt-5.5", 7_000, 7_000, 7_000, 7_000)
        book = after(own, reserve(fixed=None, input_tokens_max=10), SetPriceFactor("openai", "", 3_000_000))
        settled = only(decide(book, settle(amount=None, usage=USED, billed=BOOK_PRICE, price_context="tier=fast")))
        assert isinstance(settled, CostSettled)
        assert (settled.amount_nano_usd, settled.price_source) == (70, "override")

    def test_a_factor_of_the_model_stands_before_that_of_its_provider_and_a_price_before_both(self) -> None:
        book = after(SetPriceFactor("openai", "", 500_000), SetPriceFactor("openai", "gpt-5.5", 1_000_000))
        assert self.discounted(book) == BOOK_PRICE
        assert self.discounted(book, "openai/other").version.endswith("500000 ppm")
        assert self.discounted(book, "anthropic/opus") == BOOK_PRICE
        book = after(SetPrice("openai", "gpt-5.5", 7, 7, 7, 7), book=book)
        assert self.discounted(book).source == "override"

    @pytest.mark.parametrize("name", ["openai/gpt-5.5-2026-04-01", "openai/GPT-5.5", "OpenAI/Gpt-5.5-20260401"])
    def test_group_14_an_own_price_and_a_factor_hold_for_snapshots_and_other_spellings(self, name: str) -> None:
        book = after(SetPriceFactor("openai", "gpt-5.5", 2_000_000), SetPriceFactor("OpenAI", "", 500_000))
        assert self.discounted(book, name).version.endswith("2000000 ppm")
        assert self.discounted(book, "openai/gpt-5.5-mini").version.endswith("500000 ppm")
        book = after(SetPrice("openai", "GPT-5.5", 7, 7, 7, 7), book=book)
        assert self.discounted(book, name).rates == flat_card(7, 7, 7, 7)
        assert self.discounted(book, "openai/gpt-5.5-mini").source == "book"
        assert snapshots.load(snapshots.dump(book)) == book

    def test_a_price_of_a_snapshots_own_stands_before_that_of_its_model(self) -> None:
        book = after(
            SetPrice("openai", "gpt-5.5-2026-04-01", 9, 9, 9, 9),
            SetPrice("openai", "gpt-5.5", 7, 7, 7, 7),
            SetPriceFactor("openai", "gpt-5.5-2026-04-01", 1_000_000),
        )
        prices = [self.discounted(book, f"openai/gpt-5.5{date}").rates for date in ("", "-2026-04-01", "-2026-08-01")]
        assert prices == [flat_card(7, 7, 7, 7), flat_card(9, 9, 9, 9), flat_card(7, 7, 7, 7)]

    @pytest.mark.parametrize(
        "own",
        [SetPrice("openai", "gpt-5.5", 7, 7, 7, 7), SetPriceFactor("openai", "", 500_000)],
        ids=["price", "factor"],
    )
    def test_group_14_what_was_set_later_is_for_older_costs_only_without_a_sure_price(
        self, own: SetPrice | SetPriceFactor
    ) -> None:
        book = after(replace(own, at=NOW))
        now, before = NOW, NOW - timedelta(seconds=1)
        assert book.price_then(MODEL, BOOK_PRICE, now, "book", "book 0") == self.discounted(book) != BOOK_PRICE
        assert book.price_then(MODEL, BOOK_PRICE, before, "override", "override") is None
        late = replace(self.discounted(book), version=f"{self.discounted(book).version} set later")
        for unsure in ("unpriced", "book_fuzzy"):
            assert book.price_then(MODEL, BOOK_PRICE, before, unsure, "book 0") == late
        # Of an event that does not say when.
        assert after(own).price_then(MODEL, BOOK_PRICE, before, "book", "book 0") == self.discounted(book)
        assert snapshots.load(snapshots.dump(book)) == book

    @pytest.mark.parametrize(
        "own",
        [SetPrice("openai", "gpt-5.5", 7, 7, 7, 7), SetPriceFactor("openai", "gpt-5.5", 900_000)],
        ids=["price", "factor"],
    )
    def test_group_14_a_correction_of_the_book_is_for_costs_from_before_what_was_set_later(
        self, own: SetPrice | SetPriceFactor
    ) -> None:
        book = after(SetPriceFactor("openai", "", 500_000), replace(own, at=NOW))
        before, corrected = NOW - timedelta(seconds=1), replace(BOOK_PRICE, version="book 2")
        assert book.price_then(MODEL, corrected, before, "book", "book 1") == corrected
        assert book.price_then(MODEL, corrected, before, "book", "") == corrected
        # It is corrected at the factor that it was priced with, and stays so.
        for version in ("book 1 at 500000 ppm", "book 2 at 500000 ppm"):
            then = book.price_then(MODEL, corrected, before, "book", version)
            assert then == Price(scaled(corrected.rates, 500_000), "book 2 at 500000 ppm", "book")
        # The book has no price for it any more.
        assert book.price_then(MODEL, NO_PRICE, before, "book", "book 1 at 500000 ppm") == NO_PRICE

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            (SetPrice("openai", "gpt-5.5", 7_000, 7, 7, 7), SetPrice("openai", "gpt-5.5", 7, 7, 7, 7)),
            (SetPriceFactor("openai", "", 5_000_000), SetPriceFactor("openai", "", 500_000)),
        ],
        ids=["price", "factor"],
    )
    def test_group_14_what_was_set_wrong_after_a_cost_without_a_price_can_be_set_right(
        self, wrong: SetPrice | SetPriceFactor, right: SetPrice | SetPriceFactor
    ) -> None:
        before = NOW - timedelta(seconds=1)
        book = after(replace(wrong, at=NOW))
        first = book.price_then(MODEL, BOOK_PRICE, before, "unpriced", "book 1")
        assert first is not None
        book = after(replace(right, at=LATER), book=book)
        second = book.price_then(MODEL, BOOK_PRICE, before, first.source, first.version)
        assert second is not None
        assert (second.rates, second.source) == (self.discounted(book).rates, first.source)
        # What was priced by the wrong one in its time stays so.
        now = self.discounted(after(replace(wrong, at=NOW)))
        then = book.price_then(MODEL, BOOK_PRICE, NOW, now.source, now.version)
        assert then is None or then == now

    def test_what_has_no_price_has_none_with_a_factor_either(self) -> None:
        assert after(SetPriceFactor("openai", "", 500_000)).price_of(MODEL, NO_PRICE) == NO_PRICE

    def test_the_same_factor_again_changes_nothing_and_a_snapshot_keeps_it(self) -> None:
        book = after(SetPriceFactor("openai", "", 500_000))
        assert decide(book, SetPriceFactor("openai", "", 500_000)) == ()
        assert snapshots.load(snapshots.dump(book)) == book
