from datetime import date

from llm_gateway.prices import Price, book_price

TODAY = date(2026, 11, 21)


def test_a_hosted_model_has_the_price_of_the_book() -> None:
    price = book_price("openai", "gpt-4o-mini", TODAY)
    assert price == Price(input_pico=150_000, output_pico=600_000)
    assert price.cost_nano(1_000_000, 1_000_000) == 750_000_000


def test_a_bound_is_rounded_up() -> None:
    assert Price(1, 0).cost_nano(1, 0) == 1


def test_of_tiers_the_dearest_counts() -> None:
    tiered = book_price("openai", "gpt-5.5", TODAY)
    assert tiered is not None
    assert tiered.input_pico == 10_000_000


def test_what_the_book_does_not_have_has_no_price() -> None:
    assert book_price("openai", "no-such-model", TODAY) is None
    assert book_price("no-such-provider", "m", TODAY) is None
