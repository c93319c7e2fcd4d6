"""Keys as the simulator sees them: any will do, but for those that say of themselves that they do not."""

from collections.abc import Mapping

REVOKED = "-revoked"
"""A key that ends so is refused with status 401, in every dialect."""


def api_key(headers: Mapping[str, str]) -> str:
    """The key of a request, by whichever header its dialect uses; `headers` must be case-insensitive."""
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    return bearer or headers.get("x-api-key") or headers.get("x-goog-api-key") or ""


def is_refused(headers: Mapping[str, str]) -> bool:
    return api_key(headers).endswith(REVOKED)
