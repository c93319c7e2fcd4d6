"""Money: amounts are integer nano-USD, rates integer pico-USD per unit. Never float."""

from typing import Final, NewType

NanoUsd = NewType("NanoUsd", int)
PicoUsd = NewType("PicoUsd", int)

NANO_PER_USD: Final = 1_000_000_000
PICO_PER_NANO: Final = 1_000


def nano_from_pico(amount: int) -> NanoUsd:
    """Round pico-USD to nano-USD once, half to even, so that sums of charges carry no bias."""
    quotient, remainder = divmod(amount, PICO_PER_NANO)
    half = PICO_PER_NANO // 2
    up = remainder > half or (remainder == half and quotient % 2 == 1)
    return NanoUsd(quotient + up)


def format_usd(amount: int) -> str:
    """``$1.50`` or ``$0.000012345``: at least two decimals, at most nine, nothing lost."""
    sign = "-" if amount < 0 else ""
    whole, nano = divmod(abs(amount), NANO_PER_USD)
    digits = f"{nano:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}${whole:,}.{digits}"


def parse_usd(text: str) -> NanoUsd:
    """``"0.25"`` or ``"$1,000"`` as nano-USD; raises ValueError when it is no amount or finer than a nano-USD."""
    cleaned = text.strip().removeprefix("$").replace(",", "")
    whole, _, fraction = cleaned.partition(".")
    if not (whole or fraction) or not (whole or "0").isdigit() or not (fraction or "0").isdigit() or len(fraction) > 9:
        raise ValueError(f"'{text}' is not an amount in US dollars with at most nine decimals, such as 0.25")
    return NanoUsd(int(whole or "0") * NANO_PER_USD + int(fraction.ljust(9, "0")))
