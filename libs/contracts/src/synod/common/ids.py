"""Identifiers: UUIDv7, written as readable names with a prefix where people see them.

Source: RFC 9562. Text form: ``<prefix>_<26 characters>``, base 32 with digits 0-9 and a-v, which sort as the ids do.
"""

import hashlib
import os
import time
from uuid import UUID

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)
_PAIR_SHIFTS = tuple(range(120, -1, -10))
"""26 digits, two at a time."""
_VARIANT = 0b10 << 62


def uuid7() -> UUID:
    """A new time-ordered UUID: 48 bits of Unix milliseconds, 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    return _with_version(milliseconds << 80 | int.from_bytes(os.urandom(10), "big"), 7)


def derived_uuid(*parts: str) -> UUID:
    """The same UUIDv8 for the same parts, everywhere and always: an idempotency key that needs no storage."""
    joined = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return _with_version(int.from_bytes(hashlib.sha256(joined).digest()[:16], "big"), 8)


def new_id(prefix: str) -> str:
    """A new readable id such as ``run_01k9...``."""
    return f"{prefix}_{_text(uuid7())}"


def derived_id(prefix: str, *parts: str) -> str:
    """A readable id that is a function of its parts (see :func:`derived_uuid`)."""
    return f"{prefix}_{_text(derived_uuid(*parts))}"


def _with_version(value: int, version: int) -> UUID:
    without = value & ~(0xF << 76) & ~(0b11 << 62)
    return UUID(int=without | version << 76 | _VARIANT)


def _text(value: UUID) -> str:
    number = value.int
    return "".join([_PAIRS[number >> shift & 1023] for shift in _PAIR_SHIFTS])
