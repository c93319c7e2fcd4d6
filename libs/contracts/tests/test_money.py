import pytest
from synod.common.money import format_usd, nano_from_pico, parse_usd


@pytest.mark.parametrize(("pico", "nano"), [(0, 0), (499, 0), (500, 0), (501, 1), (1500, 2), (2500, 2), (-1500, -2)])
def test_rounds_half_to_even(pico: int, nano: int) -> None:
    assert nano_from_pico(pico) == nano


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (1_500_000_000, "$1.50"),
        (-250_000_000, "-$0.25"),
        (1_234_000_000_000, "$1,234.00"),
    ],
)
def test_formats_without_losing_a_nano(nano: int, text: str) -> None:
    assert format_usd(nano) == text


@pytest.mark.parametrize(
    ("text", "nano"), [("0.25", 250_000_000), ("$1,000", 10**12), (".5", 500_000_000), ("3", 3 * 10**9)]
)
def test_parses_dollars(text: str, nano: int) -> None:
    assert parse_usd(text) == nano


@pytest.mark.parametrize("text", ["", "-1", "1.0000000001", "free", "1e3", ".", "0,10", "1,5", "1,0000", "²"])
def test_refuses_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount in US dollars"):
        parse_usd(text)


def test_refuses_what_64_bits_cannot_count() -> None:
    assert parse_usd("9223372036.854775807") == 2**63 - 1
    with pytest.raises(ValueError, match="is more than can be counted"):
        parse_usd("9223372036.854775808")
