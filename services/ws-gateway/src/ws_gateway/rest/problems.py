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

import math
from http import HTTPStatus
from typing import Final

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
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
    from_rpc_error,
)
from servicekit.telemetry import Logger
from starlette.exceptions import HTTPException
from starlette.responses import Response
from synod.common.ids import new_id

from ws_gateway.clients import refusal
from ws_gateway.errors import GatewayError
from ws_gateway.mistakes import mistake

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_S: Final = 1.0
_ANSWERS: Final[tuple[tuple[type[ServiceError], int, str], ...]] = (
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


def known(error: Exception) -> ServiceError | None:
    """The error as a service would have answered it; None for a defect."""
    return from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else refusal(error)


def add_handlers(app: FastAPI, log: Logger) -> None:
    """Answer every error of the application as a problem."""

    async def refused(request: Request, error: Exception) -> Response:
        found = known(error)
        return respond(request, found if found is not None else defect(error, log))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(request, _invalid(error))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _of_http(request, error)

    for kind in (ServiceError, GatewayError, grpc.aio.AioRpcError, Exception):
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _invalid(error: RequestValidationError) -> InvalidArgument:
    """A part of the request (path, query, header, body) and what is wrong in it."""
    found = error.errors()
    part: str = found[0]["loc"][0]
    if part == "body":
        return mistake(found, error.body if found[0]["type"] == "json_invalid" else {"body": error.body})
    _, name, *_ = found[0]["loc"]
    return mistake([{**found[0], "loc": (part, name)}], {part: {name: None}})


def defect(error: Exception, log: Logger) -> Internal:
    """An error that nobody expected, recorded; the caller gets only its id."""
    error_id = new_id("err")
    log.error("request_failed", error=error, error_id=error_id)
    return Internal(error_id, "ws-gateway")


def respond(request: Request, error: ServiceError) -> Response:
    problem = problem_of(error, request.url.path)
    headers: dict[str, str] = {}
    if problem.status in (429, 503):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="synod"'
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)


def too_large(path: str, bytes_max: int) -> Response:
    problem = Problem(
        type="urn:synod:problem:body_too_large",
        title=HTTPStatus(413).phrase,
        status=413,
        detail=f"the body is too large: at most {bytes_max} bytes",
        instance=path,
        reason="BODY_TOO_LARGE",
        remedy="send less, or put files into the run's workspace by gRPC (ToolExecutor.PutFile)",
    )
    return Response(problem.model_dump_json(), 413, {"Connection": "close"}, MEDIA_TYPE)


def _of_http(request: Request, error: HTTPException) -> Response:
    """What the router itself refuses: an unknown path or method, a body that is no text."""
    if error.status_code == 400:
        return respond(request, InvalidArgument("body", None, "is not JSON in UTF-8"))
    reason = "METHOD_NOT_ALLOWED" if error.status_code == 405 else "NOT_FOUND"
    problem = Problem(
        type=f"urn:synod:problem:{reason.lower()}",
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=f"{request.method} {request.url.path}: {error.detail}",
        instance=request.url.path,
        reason=reason,
        remedy="see /docs for the paths and methods there are",
    )
    return Response(problem.model_dump_json(), error.status_code, error.headers, MEDIA_TYPE)
