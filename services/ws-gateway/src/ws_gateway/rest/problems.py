"""Every refusal of REST as problem details, whichever service it comes from; see httpedge.problems."""

import math
from http import HTTPStatus

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from httpedge.mistakes import mistake
from httpedge.problems import MEDIA_TYPE, RETRY_AFTER_S, Problem, TooLarge, defect, problem_of
from servicekit.errors import InvalidArgument, ServiceError
from servicekit.telemetry import Logger
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ws_gateway.clients import OWN, refusal
from ws_gateway.errors import GatewayError


def add_handlers(app: FastAPI, log: Logger) -> None:
    """Answer every error of the application as a problem."""

    async def refused(request: Request, error: Exception) -> Response:
        found = refusal(error)
        return respond(request, found if found is not None else defect(error, log, OWN))

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


def respond(request: Request, error: ServiceError) -> Response:
    problem = problem_of(error, request.url.path)
    headers: dict[str, str] = {}
    if problem.status in (429, 503):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="synod"'
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)


def respond_too_large(path: str, bytes_max: int) -> Response:
    problem = problem_of(TooLarge(bytes_max), path)
    return Response(problem.model_dump_json(), problem.status, {"Connection": "close"}, MEDIA_TYPE)


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
