"""The price book compiled from genai-prices."""

import socket
from datetime import UTC, datetime
from typing import NoReturn

import pytest
from cost_ledger.prices import PriceBook, load_price_book
from cost_ledger.rates import cost_pico
from genai_prices import Usage, calc_price
from genai_prices.data import providers
from synod.common.values import UsageLine

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FEES_PER_REQUEST = "requests_kcount"


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return load_price_book()


def test_every_model_costs_what_genai_prices_says(book: PriceBook) -> None:
    compared = 0
    for provider in providers:
        for model in provider.models:
            name = f"{provider.id}/{model.id}"
            if name not in book.models or provider.find_model(model.id) is not model:
                continue
            if getattr(model.get_prices(NOW), FEES_PER_REQUEST, None) is not None:
                continue
            wanted = calc_price(
                Usage(input_tokens=300_000, output_tokens=1_000),
                model.id,
                provider_id=provider.id,
                genai_request_timestamp=NOW,
            ).total_price
            used = (UsageLine(direction="input", quantity=300_000), UsageLine(direction="output", quantity=1_000))
            # Rates with float noise are rounded to one pico-USD, half of which may be lost per token.
            assert abs(cost_pico(book.price(name, NOW).rates, used) - wanted * 10**12) <= 301_000 // 2
            compared += 1
    assert compared > 2_000


def test_an_alias_has_the_price_of_its_model(book: PriceBook) -> None:
    assert book.price("openai/gpt-5.5-2026-04-23", NOW) == book.price("openai/gpt-5.5", NOW)


def test_names_are_found_whatever_their_case(book: PriceBook) -> None:
    assert book.price("OpenAI/GPT-5.5", NOW).source == "book"


def test_a_model_matched_by_pattern_only_is_marked_as_such(book: PriceBook) -> None:
    found = book.price("anthropic/claude-sonnet-4-5-20991231", NOW)
    assert found.source == "book_fuzzy"
    assert found.rates


def test_an_unknown_model_is_unpriced_and_similar_names_are_told(book: PriceBook) -> None:
    price = book.price("openai/gpt-4o-nope", NOW)
    assert price.source == "unpriced"
    assert price.rates == ()
    assert "openai/gpt-4o" in price.near


def test_the_simulator_has_no_price_of_its_own(book: PriceBook) -> None:
    assert book.price("simulator/sim-1", NOW).source == "unpriced"


def test_a_price_changes_at_midnight_utc_of_its_day(book: PriceBook) -> None:
    model = next(
        model for model in book.models.values() if len(model.cards) == 2 and model.cards[1][0].since is not None
    )
    since = model.cards[1][0].since
    assert since is not None
    midnight = datetime(since.year, since.month, since.day, tzinfo=UTC)
    assert model.card_at(midnight) == model.cards[1][1]
    assert model.card_at(midnight.replace(year=midnight.year - 1)) == model.cards[0][1]


def test_a_price_by_time_of_day_holds_within_its_hours(book: PriceBook) -> None:
    model = next(model for model in book.models.values() if any(period.daily for period, _ in model.cards))
    period, card = next((period, card) for period, card in model.cards if period.daily)
    assert period.daily is not None
    start, end = period.daily
    assert model.card_at(datetime.combine(NOW, start, UTC)) == card
    assert not period.holds_at(datetime.combine(NOW, end, UTC))


def test_the_version_names_the_source(book: PriceBook) -> None:
    assert book.version.startswith("genai-prices ")


def test_loading_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the price book opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_price_book.cache_clear()
    assert load_price_book().models
