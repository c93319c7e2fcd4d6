"""Money: amounts are integer nano-USD, rates integer pico-USD per unit. Never float."""

import re
from typing import Final, NewType

NanoUsd = NewType("NanoUsd", int)
PicoUsd = NewType("PicoUsd", int)

NANO_PER_USD: Final = 1_000_000_000
PICO_PER_NANO: Final = 1_000
NANO_USD_MAX: Final = 2**63 - 1
_AMOUNT: Final = re.compile(r"\$?(?P<whole>[1-9][0-9]{0,2}(,[0-9]{3})+|[0-9]{0,20})(\.(?P<fraction>[0-9]{0,9}))?")


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
    """``"0.25"`` or ``"$1,000"`` as nano-USD; raises ValueError when it is no amount, finer than a nano-USD, or more than
    64 bits count. A comma stands between thousands only: elsewhere in the world "0,10" is ten cents, here it is nothing.
    """
    found = _AMOUNT.fullmatch(text.strip())
    if found is None or not (found["whole"] or found["fraction"]):
        raise ValueError(f"'{text}' is not an amount in US dollars with at most nine decimals, such as 0.25")
    amount = int(found["whole"].replace(",", "") or "0") * NANO_PER_USD + int((found["fraction"] or "").ljust(9, "0"))
    if amount > NANO_USD_MAX:
        raise ValueError(f"'{text}' is more than can be counted, which is {format_usd(NANO_USD_MAX)}")
    return NanoUsd(amount)
