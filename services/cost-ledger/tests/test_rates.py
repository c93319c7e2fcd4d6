"""Rate cards: units, tiers, bounds.

Failure group 14: cached tokens and the cliff of a context tier. Group 15: rounding.
"""

import pytest
from cost_ledger.prices import load_price_book
from cost_ledger.rates import bound_nano, bound_pico, cost_pico, flat_card, rate_of, scaled, units_of
from hypothesis import example, given
from hypothesis import strategies as st
from synod.common.money import nano_from_pico
from synod.common.values import UsageLine
from synod.cost_ledger.events import UnitRate

CLIFF = (
    UnitRate(unit="input", pico_usd=5_000_000),
    UnitRate(unit="input", pico_usd=10_000_000, above_input_tokens=272_000),
    UnitRate(unit="output", pico_usd=30_000_000),
    UnitRate(unit="output", pico_usd=45_000_000, above_input_tokens=272_000),
)


def tokens(quantity: int, direction: str = "input", **kind: object) -> UsageLine:
    return UsageLine.model_validate({"direction": direction, "quantity": quantity, **kind})


def test_group_14_the_tier_holds_from_the_first_token_above_the_threshold_and_then_for_all() -> None:
    assert cost_pico(CLIFF, [tokens(272_000)]) == 272_000 * 5_000_000
    assert cost_pico(CLIFF, [tokens(272_001)]) == 272_001 * 10_000_000
    assert cost_pico(CLIFF, [tokens(272_001), tokens(1, "output")]) == 272_001 * 10_000_000 + 45_000_000


def test_group_14_cached_tokens_count_towards_the_tier_and_cost_their_own_rate() -> None:
    card = (*CLIFF, UnitRate(unit="cache_read", pico_usd=500_000))
    used = [tokens(272_000, cache="read"), tokens(1)]
    assert cost_pico(card, used) == 272_000 * 500_000 + 10_000_000


def test_cached_tokens_cost_as_input_where_the_card_has_no_rate_for_them() -> None:
    card = (UnitRate(unit="input", pico_usd=7), UnitRate(unit="output", pico_usd=9))
    assert cost_pico(card, [tokens(10, cache="read"), tokens(10, cache="write")]) == 140


def test_group_14_reasoning_costs_as_output_unless_the_card_says_otherwise() -> None:
    card = (UnitRate(unit="output", pico_usd=9),)
    line = tokens(10, "output", reasoning=True)
    assert cost_pico(card, [line]) == 90
    assert cost_pico((*card, UnitRate(unit="output_reasoning", pico_usd=3)), [line]) == 30


def test_a_rate_of_zero_is_free_and_not_missing() -> None:
    assert cost_pico(flat_card(5, 5, 0, 0), [tokens(10, cache="read")]) == 0


@pytest.mark.parametrize(
    ("line", "first"),
    [
        (tokens(1, modality="audio"), "input_audio"),
        (tokens(1, modality="audio", cache="read"), "cache_audio_read"),
        (tokens(1, "output", modality="image"), "output_image"),
        (tokens(1, "output", reasoning=True), "output_reasoning"),
    ],
)
def test_the_most_exact_unit_is_asked_for_first(line: UsageLine, first: str) -> None:
    assert units_of(line)[0] == first


def test_an_unknown_unit_costs_nothing() -> None:
    assert rate_of((), ("input",), 10) == 0


def test_the_bound_takes_the_dearest_way_the_provider_may_bill() -> None:
    card = (*CLIFF, UnitRate(unit="cache_write", pico_usd=6_250_000))
    assert bound_pico(card, 1_000, 100) == 1_000 * 6_250_000 + 100 * 30_000_000
    assert bound_pico(card, 272_001, 100) == 272_001 * 10_000_000 + 100 * 45_000_000


@given(
    rates=st.tuples(*[st.integers(0, 10**8)] * 7),
    fresh=st.integers(0, 10**6),
    read=st.integers(0, 10**6),
    written=st.integers(0, 10**6),
    out=st.integers(0, 10**6),
    thought=st.integers(0, 10**6),
    factor_ppm=st.integers(1, 2_000_000),
)
@example(rates=(1_001,) * 5 + (0,) * 2, fresh=3, read=3, written=994, out=0, thought=0, factor_ppm=500_000)
def test_text_within_the_bounds_never_costs_more_than_was_reserved(
    rates: tuple[int, ...], fresh: int, read: int, written: int, out: int, thought: int, factor_ppm: int
) -> None:
    """Whichever unit is the dearest: a price of one's own may be anything. With a factor each line is rounded."""
    more = zip(("cache_write_1h", "output_reasoning", "requests"), rates[4:], strict=True)
    card = (*flat_card(*rates[:4]), *(UnitRate(unit=unit, pico_usd=rate) for unit, rate in more))
    card = scaled(card, factor_ppm)
    used = [
        tokens(fresh),
        tokens(read, cache="read"),
        tokens(written, cache="write", ttl="1h"),
        tokens(out, "output"),
        tokens(thought, "output", reasoning=True),
    ]
    bound = bound_nano(card, fresh + read + written, out + thought)
    assert nano_from_pico(cost_pico(card, used)) <= bound


@given(rates=st.tuples(*[st.integers(0, 10**8)] * 4), lines=st.integers(1, 64), factor_ppm=st.integers(1, 2_000_000))
def test_group_15_no_number_of_lines_costs_more_than_was_reserved_for_all_their_tokens(
    rates: tuple[int, ...], lines: int, factor_ppm: int
) -> None:
    card = scaled(flat_card(*rates), factor_ppm)
    cost = cost_pico(card, [tokens(1) for _ in range(lines)])
    assert nano_from_pico(cost) <= bound_nano(card, lines, 0)


def test_a_bound_is_rounded_up_and_one_in_whole_nano_dollars_is_as_it_is() -> None:
    assert [bound_nano(flat_card(rate, 0, 0, 0), 64, 0) for rate in (400_000, 1_000, 1_001)] == [25_600, 64, 65]
    halved = scaled(flat_card(800_000, 0, 0, 1_001), 500_000)
    assert bound_nano(halved, 64, 0) == 25_600
    assert bound_pico((UnitRate(unit="input", pico_usd=1, per=3),), 1, 0) == 1


def test_audio_costs_more_than_text_only_where_it_was_said_that_there_may_be_audio() -> None:
    card = (
        *CLIFF,
        UnitRate(unit="input_audio", pico_usd=40_000_000),
        UnitRate(unit="output_audio", pico_usd=80_000_000),
    )
    assert bound_pico(card, 10, 1) == 10 * 5_000_000 + 30_000_000
    assert bound_pico(card, 10, 1, frozenset({"audio"})) == 10 * 40_000_000 + 80_000_000


def test_group_15_a_rate_for_many_units_is_rounded_once_a_line_half_to_even() -> None:
    hour = (UnitRate(unit="input_audio_seconds", pico_usd=40_000_000_000, per=3_600),)
    assert cost_pico(hour, [tokens(3_600, unit="audio_seconds")]) == 40_000_000_000
    assert cost_pico(hour, [tokens(1, unit="audio_seconds")]) == 11_111_111
    halves = (UnitRate(unit="input", pico_usd=1, per=2),)
    assert [cost_pico(halves, [tokens(quantity)]) for quantity in (1, 3, 5)] == [0, 2, 2]


@given(rate=st.integers(0, 10**7), quantity=st.integers(0, 10**6))
def test_group_15_rounding_is_off_by_half_a_nano_at_most(rate: int, quantity: int) -> None:
    exact = cost_pico(flat_card(rate, 0, 0, 0), [tokens(quantity)])
    assert abs(nano_from_pico(exact) * 1_000 - exact) <= 500


def test_group_15_a_million_calls_of_one_token_cost_what_one_of_a_million_does_within_half_a_nano_each() -> None:
    rates = [rate for model in load_price_book().models.values() for _, card in model.cards for rate in card]
    cheapest = min(rate.pico_usd for rate in rates if rate.unit == "input" and rate.per == 1 and rate.pico_usd)
    card, calls = flat_card(cheapest, 0, 0, 0), 1_000_000
    one_by_one = calls * nano_from_pico(cost_pico(card, [tokens(1)]))
    at_once = nano_from_pico(cost_pico(card, [tokens(calls)]))
    assert 2 * abs(one_by_one - at_once) <= calls
