"""Problem details (RFC 9457): every refusal in one form, whichever service it comes from.

| gRPC | HTTP |
|---|---|
| INVALID_ARGUMENT | 400 |
| UNAUTHENTICATED | 401 |
| RESOURCE_EXHAUSTED with BUDGET_EXHAUSTED, FAILED_PRECONDITION with BUDGET_SUSPENDED | 402 |
| PERMISSION_DENIED | 403 |
| NOT_FOUND | 404 |
| (a body over the limit) | 413 |
| ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED | 409 |
| RESOURCE_EXHAUSTED | 429 with Retry-After |
| INTERNAL | 500 |
| UNIMPLEMENTED | 501 |
| UNAVAILABLE | 503 with Retry-After |
| DEADLINE_EXCEEDED | 504 |
"""

from http import HTTPStatus
from typing import Final

import grpc
from pydantic import BaseModel, ConfigDict, Field
from servicekit.errors import (
    Aborted,
    AlreadyExists,
    BudgetExhausted,
    BudgetSuspended,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from servicekit.telemetry import Logger
from synod.common.ids import new_id

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1.0


class TooLarge(ServiceError):
    """A body over the limit of its path, which the edge refuses before any service sees it."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "BODY_TOO_LARGE"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"the body is too large; send at most {bytes_max} bytes", metadata={"field": "body"})


_ANSWERS: Final[tuple[tuple[type[ServiceError], int, str], ...]] = (
    (TooLarge, 413, "send less, or put files into the run's workspace by gRPC (ToolExecutor.PutFile)"),
    (InvalidArgument, 400, "correct the field and repeat"),
    (
        Unauthenticated,
        401,
        "send the header 'Authorization: Bearer <API key or token>' with a credential that is valid",
    ),
    (BudgetExhausted, 402, "raise the budget, or wait for its next window"),
    (BudgetSuspended, 402, "ask who suspended the budget to resume it"),
    (PermissionDenied, 403, "ask an administrator of the tenant for a role with this permission"),
    (NotFound, 404, "check the name; the list of this resource has those there are"),
    (AlreadyExists, 409, "use what exists, or another name or idempotency key"),
    (FailedPrecondition, 409, "change the state that the message names, then repeat"),
    (Aborted, 409, "read the resource again and repeat"),
    (ResourceExhausted, 429, "repeat after the time in Retry-After"),
    (Unavailable, 503, "repeat after the time in Retry-After"),
    (DeadlineExceeded, 504, "repeat with the same idempotency key, or ask for less"),
    (Unimplemented, 501, "bring the services to one release"),
    (Internal, 500, "report the error id; the log of the service has the cause"),
)


class Problem(BaseModel):
    """RFC 9457, with a stable `reason` for programs and a `remedy` for people."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="urn:synod:problem:<reason in lower case>")
    title: str
    status: int
    detail: str
    instance: str
    reason: str
    remedy: str
    field: str | None = None
    metadata: dict[str, str] = {}


def status_of(error: ServiceError) -> int:
    """The HTTP status of a refusal."""
    return _answer_to(error)[0]


def problem_of(error: ServiceError, instance: str) -> Problem:
    status, remedy = _answer_to(error)
    return Problem(
        type=f"urn:synod:problem:{error.reason.lower()}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        instance=instance,
        reason=error.reason,
        remedy=remedy,
        field=error.metadata.get("field"),
        metadata=error.metadata,
    )


def _answer_to(error: ServiceError) -> tuple[int, str]:
    found = ((status, remedy) for kind, status, remedy in _ANSWERS if isinstance(error, kind))
    return next(found, (502, "repeat later"))


def defect(error: Exception, log: Logger, service: str) -> Internal:
    """An error that nobody expected, recorded; the caller gets only its id."""
    error_id = new_id("err")
    log.error("request_failed", error=error, error_id=error_id)
    return Internal(error_id, service)
