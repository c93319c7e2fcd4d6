"""Identifiers: UUIDv7, written as readable names with a prefix where people see them.

Source: RFC 9562. Text form: ``<prefix>_<26 characters>``, base 32 with digits 0-9 and a-v, which sort as the ids do.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from uuid import UUID, SafeUUID

_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = tuple(high + low for high in _DIGITS for low in _DIGITS)
_PAIR_SHIFTS = tuple(range(120, -1, -10))
"""26 digits, two at a time."""
_VARIANT = 0b10 << 62
_UNVERSIONED = ~(0xF << 76 | 0b11 << 62)


def uuid7() -> UUID:
    """A new time-ordered UUID: 48 bits of Unix milliseconds, 74 random bits."""
    return uuid_of(_number7())


def derived_uuid(*parts: str) -> UUID:
    """The same UUIDv8 for the same parts, everywhere and always: an idempotency key that needs no storage."""
    return uuid_of(_number8(parts))


def uuid_of(number: int) -> UUID:
    """As `UUID(int=number)`, of 128 bits for certain. That looks first which of its seven arguments was given, which takes
    longer than all else; several are made for each event.
    """
    made = object.__new__(UUID)
    object.__setattr__(made, "int", number)
    object.__setattr__(made, "is_safe", SafeUUID.unknown)
    return made


def new_id(prefix: str) -> str:
    """A new readable id such as ``run_01k9...``."""
    return f"{prefix}_{_text(_number7())}"


def derived_id(prefix: str, *parts: str) -> str:
    """A readable id that is a function of its parts (see :func:`derived_uuid`)."""
    return f"{prefix}_{_text(_number8(parts))}"


def _number7() -> int:
    milliseconds = time.time_ns() // 1_000_000
    return _with_version(milliseconds << 80 | int.from_bytes(os.urandom(10), "big"), 7)


def _number8(parts: Iterable[str]) -> int:
    texts = [part.encode() for part in parts]
    joined = b"".join([len(text).to_bytes(4, "big") + text for text in texts])
    return _with_version(int.from_bytes(hashlib.sha256(joined).digest()[:16], "big"), 8)


def _with_version(value: int, version: int) -> int:
    return value & _UNVERSIONED | version << 76 | _VARIANT


def _text(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in _PAIR_SHIFTS])
