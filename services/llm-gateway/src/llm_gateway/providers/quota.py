"""What a provider says in its headers about the limits of a key. Pure.

OpenAI, and most servers of its formats, send x-ratelimit-{limit,remaining,reset}-{requests,tokens} with durations;
Anthropic anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset} with times. A reset is
when the limit is whole again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from llm_gateway.providers.failures import duration_s, seconds_until_time

Meter = Literal["requests", "tokens", "input_tokens", "output_tokens"]
_METERS: Final[Mapping[Meter, str]] = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}
DIGITS_MAX: Final = 12
_MARKS: Final = ("x-ratelimit-limit-requests", "anthropic-ratelimit-requests-limit", "x-ratelimit-limit-tokens")


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of a key: its size, what remains, and after how many seconds it is whole again."""

    meter: Meter
    limit: int
    remaining: int
    reset_s: float


def quotas(headers: Mapping[str, str], now: datetime) -> tuple[Quota, ...]:
    """Those that the headers tell; what cannot be read is left out. `headers` must be case-insensitive."""
    if not any(mark in headers for mark in _MARKS):
        return ()
    return tuple(_quotas(headers, now))


def _quotas(headers: Mapping[str, str], now: datetime) -> Iterator[Quota]:
    for meter, name in _METERS.items():
        openai = _told(headers, f"x-ratelimit-limit-{name}", f"x-ratelimit-remaining-{name}")
        if openai:
            yield Quota(meter, *openai, duration_s(headers.get(f"x-ratelimit-reset-{name}", "")))
        prefix = f"anthropic-ratelimit-{name}"
        anthropic = _told(headers, f"{prefix}-limit", f"{prefix}-remaining")
        if anthropic:
            yield Quota(meter, *anthropic, seconds_until_time(headers.get(f"{prefix}-reset", ""), now))


def _told(headers: Mapping[str, str], limit_name: str, remaining_name: str) -> tuple[int, int] | None:
    """Limit and what remains of it; more digits than any limit has are not read."""
    limit, remaining = headers.get(limit_name, ""), headers.get(remaining_name, "")
    readable = all(text.isdecimal() and len(text) <= DIGITS_MAX for text in (limit, remaining))
    return (int(limit), min(int(limit), int(remaining))) if readable and int(limit) else None
