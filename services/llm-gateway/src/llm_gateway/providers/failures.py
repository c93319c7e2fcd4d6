"""From a provider's status, code and headers to the error that says what may be done. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from llm_gateway.errors import (
    AuthenticationRejected,
    ModelNotFound,
    PaymentRequired,
    PermissionRejected,
    ProviderConflict,
    ProviderError,
    ProviderFailed,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderTimedOut,
    RequestRejected,
)

MESSAGE_CHARACTERS_MAX = 1000
WAIT_S_MAX: Final = 86_400.0
"""No limit of a provider is filled for longer than a day; and what a header says may be more than a duration can hold."""

_BY_STATUS: Mapping[int, type[ProviderError]] = {
    401: AuthenticationRejected,
    402: PaymentRequired,
    403: PermissionRejected,
    404: ModelNotFound,
    408: ProviderTimedOut,
    409: ProviderConflict,
    429: ProviderRateLimited,
    503: ProviderOverloaded,
    529: ProviderOverloaded,
}
_UNITS_S: Mapping[str, float] = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+")
# Some providers say with status 429 that the money is gone; waiting does not help.
_EXHAUSTED_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "credit_balance_too_low"})
# An error inside an answer with status 200 has a type or code only; this is the status it would have had.
_STATUS_BY_TYPE: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "insufficient_quota": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def failure(
    status: int,
    message: str,
    *,
    code: str | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> ProviderError:
    """The error for an HTTP status other than 200."""
    kind = PaymentRequired if code in _EXHAUSTED_CODES else _BY_STATUS.get(status) or _by_class(status)
    return kind(
        message[:MESSAGE_CHARACTERS_MAX], status=status, code=code, request_id=request_id, retry_after_s=retry_after_s
    )


def failure_inside_answer(kind: str, code: str | None, message: str) -> ProviderError:
    """The error for one that was reported inside an answer with status 200."""
    status = _STATUS_BY_TYPE.get(code or "") or _STATUS_BY_TYPE.get(kind) or 500
    return inside_answer(failure(status, message, code=code or kind or None))


def inside_answer(error: ProviderError) -> ProviderError:
    """The error, as one that an answer with status 200 told of."""
    error.inside_answer = True
    return error


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """How long the provider asks to wait, in seconds: `retry-after-ms`, `Retry-After` in seconds or as an HTTP date, or
    until the limit that is used up is filled again; WAIT_S_MAX at most.

    `headers` must be case-insensitive. A value that is negative, in the past or unreadable counts as none.
    """
    asked_s = _asked_s(headers, now)
    return None if asked_s is None else min(asked_s, WAIT_S_MAX)


def _asked_s(headers: Mapping[str, str], now: datetime) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return seconds
    return _reset_s(headers, now) if value is None else _seconds_until(value, now)


def _reset_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """The latest reset of a limit of which nothing remains; OpenAI gives a duration, Anthropic a time."""
    resets: list[float] = []
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        if headers.get(f"x-ratelimit-remaining-{name}") == "0":
            resets.append(duration_s(headers.get(f"x-ratelimit-reset-{name}", "")))
        if headers.get(f"anthropic-ratelimit-{name}-remaining") == "0":
            resets.append(seconds_until_time(headers.get(f"anthropic-ratelimit-{name}-reset", ""), now))
    return max(resets, default=0.0) or None


def duration_s(text: str) -> float:
    """Seconds of a duration as "1h2m3.5s" or "120ms", WAIT_S_MAX at most; 0 for anything else."""
    if not _DURATION.fullmatch(text):
        return 0.0
    return min(sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(text)), WAIT_S_MAX)


def seconds_until_time(text: str, now: datetime) -> float:
    """Seconds to a time as "2026-11-21T20:30:00Z", WAIT_S_MAX at most; 0 for one that is past, and for anything else."""
    try:
        return min(max(0.0, (datetime.fromisoformat(text) - now).total_seconds()), WAIT_S_MAX)
    except (ValueError, TypeError):
        return 0.0


def _by_class(status: int) -> type[ProviderError]:
    return ProviderFailed if status >= 500 else RequestRejected


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < float("inf") else None


def _seconds_until(date: str, now: datetime) -> float | None:
    """In any of the three forms that RFC 9110 (5.6.7) has a recipient read."""
    try:
        told = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError):
        return None
    # The form of asctime names no zone, because it is always UTC.
    seconds = ((told if told.tzinfo else told.replace(tzinfo=UTC)) - now).total_seconds()
    return seconds if seconds >= 0 else None
