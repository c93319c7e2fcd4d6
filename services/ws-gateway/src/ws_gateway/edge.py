"""The public side: the HTTP application, and the server that runs it inside this process."""

import mimetypes
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Final

from fastapi import APIRouter, Depends, FastAPI, WebSocket
from httpedge.certificate import EdgeCertificate
from httpedge.compatible.endpoints import PREFIX, Compatible, CompatibleLimits, Stage
from httpedge.http import DRAIN_BYTES_MAX, BodyTooLarge, Straight
from httpedge.problems import Problem
from httpedge.security import SECURITY
from httpedge.server import EdgeServer
from opentelemetry.trace import Span, SpanKind
from servicekit.health import Health
from servicekit.telemetry import TRACEPARENT, Tracing
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ws_gateway import asyncapi
from ws_gateway.clients import OWN, ModelsOverGrpc
from ws_gateway.dialogue import Backstage
from ws_gateway.rest import agents, catalogue, conversations, events, money, problems, proposals, runs, system
from ws_gateway.rest.requests import BEARER, KEY, known_query
from ws_gateway.sessions import Meters
from ws_gateway.settings import EdgeLimits, Settings
from ws_gateway.ws import GOING_AWAY, WebSockets

ROUTERS: Final = (
    agents.router,
    runs.router,
    conversations.router,
    events.router,
    money.router,
    catalogue.router,
    proposals.router,
    system.router,
)
PAGES: Final = {"/": "index.html", "/docs": "docs.html"} | {
    f"/pages/{name}": name for name in ("app.js", "style.css", "docs.js")
}
RawHeader = tuple[bytes, bytes]
_SECURITY: Final = tuple((name.encode(), value.encode()) for name, value in SECURITY.items())
_CLOSE: Final = (b"connection", b"close")
VERSION: Final = version("synod-ws-gateway")


def application(back: Backstage, settings: Settings, meters: Meters) -> ASGIApp:
    """All that the edge answers but /v1, which never comes to the framework, whose layers each call would pay for."""
    return Outer(_framed(back, settings), meters, back.tracing, settings.edge, back.monitoring.health)


def compatible(back: Backstage, meters: Meters) -> Straight:
    """What is under /v1, each call of it a call of llm-gateway by gRPC."""
    models = ModelsOverGrpc(back.services.models)
    limits = CompatibleLimits(back.limits.model_body_bytes_max, back.limits.model_call_s)
    stage = Stage(
        OWN,
        back.callers,
        models,
        limits,
        back.monitoring.health,
        back.tracing,
        back.log_,
        back.clock,
        meters.requests,
    )
    return Straight(PREFIX, Compatible(stage))


def _framed(back: Backstage, settings: Settings) -> FastAPI:
    """REST under /api/v1, the protocol at /ws, the page, and the two documents that describe them."""
    app = FastAPI(title="Synod", version=VERSION, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.backstage = back
    api = APIRouter(prefix="/api/v1", dependencies=[Depends(BEARER), Depends(KEY), Depends(known_query)])
    for router in ROUTERS:
        api.include_router(router, responses={"default": {"model": Problem}})
    app.include_router(api)
    sockets = WebSockets(back, frozenset(settings.edge_origins))

    @app.websocket("/ws")
    async def websocket(socket: WebSocket) -> None:
        await sockets.serve(socket)

    _add_pages(app, back.monitoring.health)
    problems.add_handlers(app, back.log_)
    return app


def _add_pages(app: FastAPI, health: Health) -> None:
    described = asyncapi.document(VERSION)

    @app.get("/ready", include_in_schema=False)
    async def ready() -> Response:
        """For a balancer before many gateways: whether to send requests here."""
        return JSONResponse({"status": health.status}, status_code=200 if health.ready else 503)

    @app.get("/asyncapi.json", include_in_schema=False)
    async def asyncapi_document() -> Response:
        return JSONResponse(described)

    for path, name in PAGES.items():
        app.add_api_route(path, _page(name), include_in_schema=False)


def _page(name: str) -> Callable[[], Awaitable[Response]]:
    content = files("ws_gateway").joinpath("pages", name).read_bytes()
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"

    async def page() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return page


@dataclass(frozen=True, slots=True)
class Outer:
    """Around every request of the framework: a span, headers that keep browsers safe, a limit on bodies, and a count."""

    app: ASGIApp
    meters: Meters
    tracing: Tracing
    limits: EdgeLimits
    health: Health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self.tracing.span(scope["method"], Headers(scope=scope).get(TRACEPARENT, ""), SpanKind.SERVER) as span:
            try:
                await self._serve(scope, receive, _Guarded(self.meters, self.health, scope["method"], span, send))
            finally:
                _name(span, scope)

    async def _serve(self, scope: Scope, receive: Receive, answer: Send) -> None:
        bytes_max = self.limits.body_bytes_max
        if int(Headers(scope=scope).get("content-length", "0")) > bytes_max:
            await self._refuse(scope, receive, answer, bytes_max)
            return
        try:
            await self.app(scope, _Body(receive, bytes_max), answer)
        except BodyTooLarge:
            await self._refuse(scope, receive, answer, bytes_max)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, bytes_max: int) -> None:
        """Reads on for a while before it answers: a client that is cut off while it sends does not see the answer."""
        read, more = 0, True
        while more and read < DRAIN_BYTES_MAX:
            message = await receive()
            read += len(message.get("body", b""))
            more = bool(message.get("more_body", False))
        await problems.respond_too_large(scope["path"], bytes_max)(scope, receive, send)


@dataclass(slots=True)
class _Body:
    """Counts what arrives."""

    receive: Receive
    bytes_max: int
    bytes: int = 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.bytes += len(message.get("body", b""))
        if self.bytes > self.bytes_max:
            raise BodyTooLarge
        return message


def _name(span: Span, scope: Scope) -> None:
    """By the route, which is known once it was taken: a span's name has no ids in it."""
    span.set_attribute("http.request.method", scope["method"])
    if "route" in scope:
        route = _route(scope["path"], scope.get("path_params", {}))
        span.set_attribute("http.route", route)
        span.update_name(f"{scope['method']} {route}")


def _route(path: str, parameters: Mapping[str, object]) -> str:
    # The framework keeps no whole template of a route that was included by another.
    names = {value: f"{{{name}}}" for name, value in parameters.items()}
    return "/".join(names.get(part, part) for part in path.split("/"))


@dataclass(frozen=True, slots=True)
class _Guarded:
    """Adds the headers to an answer, and counts it."""

    meters: Meters
    health: Health
    method: str
    span: Span
    send: Send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.meters.requests.labels(self.method, str(message["status"])).inc()
            self.span.set_attribute("http.response.status_code", message["status"])
            message["headers"] = [*_safe(message["headers"]), *self._parting()]
        await self.send(message)

    def _parting(self) -> Iterable[RawHeader]:
        """A request that came by a connection as it is closed would be lost."""
        return (_CLOSE,) if self.health.phase == "stopping" else ()


def _safe(headers: Iterable[RawHeader]) -> Iterator[RawHeader]:
    """The headers, and those of SECURITY that are not among them."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    yield from given
    yield from (header for header in _SECURITY if header[0] not in names)


def edge_of(back: Backstage, settings: Settings, meters: Meters, certificate: EdgeCertificate | None) -> EdgeServer:
    """The server of all that is public. Raises PortTaken."""

    async def goodbye() -> None:
        """Connections first, with our code: the server ends those that are left with its own, 1012."""
        text = "the gateway stops; connect again with your offsets"
        await back.register.end_all(GOING_AWAY, text, settings.shutdown_grace_s / 2)

    return EdgeServer(
        settings.edge_host,
        settings.edge_port,
        compatible(back, meters),
        settings.shutdown_grace_s / 2,
        certificate,
        application(back, settings, meters),
        goodbye,
        _websockets(settings.edge),
    )


def _websockets(limits: EdgeLimits) -> Mapping[str, object]:
    return {
        "ws": "websockets-sansio",
        "ws_per_message_deflate": False,
        "ws_max_size": limits.frame_bytes_fatal,
        "ws_ping_interval": limits.heartbeat_s,
        "ws_ping_timeout": limits.pong_wait_s,
    }
