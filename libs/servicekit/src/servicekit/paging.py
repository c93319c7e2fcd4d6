"""Pages of a list: a size within limits, and a token that carries the last key of the page before.

The token is opaque to callers (AIP-158): its content may change, and one that was not given is refused.
"""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

from servicekit.errors import InvalidArgument

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000
STRANGE_TOKEN: Final = "is not one of ours; pass next_page_token of the last answer, or none to begin"


def page_size(asked: int) -> int:
    """How many rows to read. Raises InvalidArgument beyond the limits."""
    if not 0 <= asked <= PAGE_MAX:
        raise InvalidArgument("page_size", asked, f"must be from 1 to {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
    return asked or PAGE_DEFAULT


def page_key(token: str) -> str:
    """The key after which the page begins; empty for the first page. Raises InvalidArgument for a strange token."""
    try:
        key = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidArgument("page_token", token, STRANGE_TOKEN) from None
    if "\0" in key:  # which no name has, and PostgreSQL does not take
        raise InvalidArgument("page_token", token, STRANGE_TOKEN)
    return key


def next_page_token(keys: Sequence[str], size: int) -> str:
    """The token of the page after the one with these keys; empty when it was the last, because it is not full."""
    if not keys or len(keys) < size:
        return ""
    return base64.urlsafe_b64encode(keys[-1].encode()).decode()
