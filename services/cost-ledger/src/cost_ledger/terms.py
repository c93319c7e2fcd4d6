"""Terms of a call that its price depends on, such as processing=batch or service_tier=flex."""

from collections.abc import Mapping
from typing import Final

Terms = tuple[tuple[str, str], ...]
"""Sorted by name; empty for the standard terms."""

STANDARD: Final[Terms] = ()
_STANDARD_VALUES: Final = frozenset({"", "auto", "default", "standard", "standard_only"})
"""What providers call the terms that nothing special was agreed on."""


def terms_of(given: Mapping[str, str]) -> Terms:
    return tuple(sorted((name, value) for name, value in given.items() if value not in _STANDARD_VALUES))


def text_of(terms: Terms) -> str:
    """ "processing=batch,service_tier=flex"; empty for the standard terms."""
    return ",".join(f"{name}={value}" for name, value in terms)


def terms_in(text: str) -> Terms:
    """The terms of `text_of`."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return tuple((name, value) for name, _, value in pairs)
