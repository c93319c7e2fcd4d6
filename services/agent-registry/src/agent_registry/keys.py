"""API keys as text: ``syn_<key id>_<secret>``. A key id has no underscore, a secret may have any.

Only SHA-256 of the whole text is kept. A slow password hash would add nothing: a secret is 256 random bits, not a word
that somebody could guess.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from agent_registry.errors import KeyMalformed

SECRET_BYTES = 32
NO_HASH = "0" * 64
"""What an unknown key is compared with, so that it costs as much time as a known one."""

_KEY = re.compile(r"syn_([A-Za-z0-9-]{1,96})_([A-Za-z0-9_-]{16,256})")


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A key as somebody showed it: its public id, and the hash of all of it (hexadecimal)."""

    id: str
    sha256: str = field(repr=False)


def compose(key_id: str, secret: str) -> str:
    return f"syn_{key_id}_{secret}"


def parse(text: str) -> PresentedKey:
    """Raises KeyMalformed, which does not repeat the text."""
    found = _KEY.fullmatch(text.strip())
    if found is None:
        raise KeyMalformed
    return PresentedKey(found[1], sha256(found[0]))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Takes as long for a near miss as for a wild guess, so that time tells nothing."""
    return hmac.compare_digest(one, other)
