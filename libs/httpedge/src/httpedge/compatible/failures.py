"""Refusals in the forms that the SDKs read. Pure.

Both SDKs repeat 408, 409, 429 and 5xx by themselves, and obey `x-should-retry`. What cannot succeed later says
"false": an exhausted or suspended budget above all (402), which only its owner can change.
"""

import math
from collections.abc import Mapping
from typing import Final

from servicekit.errors import BudgetSuspended, FailedPrecondition, ServiceError, Unavailable
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.problems import RETRY_AFTER_S, status_of

OVERLOADED: Final = 529
BAD_GATEWAY: Final = 502
_ACCOUNT: Final = "PROVIDER_ACCOUNT_REFUSED"
"""The provider refused the key, the payment or the access: what is wrong is behind this door, not in the request."""
_OPENAI_TYPES: Final[Mapping[int, str]] = {
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}
_OPENAI_CODES: Final[Mapping[str, str]] = {
    "UNKNOWN_MODEL": "model_not_found",
    "UNAUTHENTICATED": "invalid_api_key",
    "KEY_UNKNOWN": "invalid_api_key",
    "RATE_LIMITED": "rate_limit_exceeded",
    "BUDGET_EXHAUSTED": "budget_exhausted",
}
_ANTHROPIC_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def status(error: ServiceError) -> int:
    """As REST answers, but that a request which can never succeed is 400: the SDKs would repeat a 409."""
    if error.reason == _ACCOUNT:
        return BAD_GATEWAY
    never = isinstance(error, FailedPrecondition) and not isinstance(error, BudgetSuspended)
    return 400 if never else status_of(error)


def headers(error: ServiceError) -> dict[str, str]:
    """When to come back, or that there is no use in it."""
    if not error.retryable:
        return {"x-should-retry": "false"}
    after_s = error.retry_after_s or RETRY_AFTER_S
    return {"retry-after": str(math.ceil(after_s)), "retry-after-ms": str(math.ceil(after_s * 1000))}


def openai(error: ServiceError) -> tuple[int, Mapping[str, object]]:
    found = status(error)
    return found, _openai_body(found, error.message, error.reason, error.metadata.get("field"))


def openai_broken(broken: pb.StreamError) -> Mapping[str, object]:
    """An error after content, inside a stream with status 200."""
    return _openai_body(500, broken.message, broken.reason, None)


def anthropic(error: ServiceError) -> tuple[int, Mapping[str, object]]:
    found = OVERLOADED if isinstance(error, Unavailable) else status(error)
    return found, _anthropic_body(found, error.message, error.reason)


def anthropic_broken(broken: pb.StreamError) -> Mapping[str, object]:
    return _anthropic_body(OVERLOADED if broken.retryable else 500, broken.message, broken.reason)


def _openai_body(status: int, message: str, reason: str, field: str | None) -> Mapping[str, object]:
    kind = _OPENAI_TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    code = _OPENAI_CODES.get(reason, reason.lower())
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def _anthropic_body(status: int, message: str, reason: str) -> Mapping[str, object]:
    kind = _ANTHROPIC_TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    details = {"error_code": reason.lower()}
    return {"type": "error", "error": {"type": kind, "message": message, "details": details}, "request_id": None}
