"""The public side: the HTTP application, and the server that runs it inside this process."""

import asyncio
import mimetypes
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from typing import Final

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from opentelemetry.trace import Span, SpanKind
from servicekit.dependencies import PortTaken
from servicekit.health import Health
from servicekit.telemetry import TRACEPARENT, Tracing
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ws_gateway import asyncapi
from ws_gateway.certificate import EdgeCertificate
from ws_gateway.compatible.endpoints import PREFIX, Compatible
from ws_gateway.dialogue import Backstage
from ws_gateway.http import DRAIN_BYTES_MAX, BodyTooLarge, Straight, straightened
from ws_gateway.rest import agents, catalogue, conversations, events, money, problems, proposals, runs, system
from ws_gateway.rest.requests import BEARER, KEY, known_query
from ws_gateway.security import SECURITY
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
    """What is under /v1."""
    return Straight(PREFIX, Compatible(back, meters))


def _framed(back: Backstage, settings: Settings) -> FastAPI:
    """REST under /api/v1, the protocol at /ws, the page, and the two documents that describe them."""
    app = FastAPI(title="Synod", version=VERSION, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.backstage = back
    api = APIRouter(prefix="/api/v1", dependencies=[Depends(BEARER), Depends(KEY), Depends(known_query)])
    for router in ROUTERS:
        api.include_router(router, responses={"default": {"model": problems.Problem}})
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
        await problems.too_large(scope["path"], bytes_max)(scope, receive, send)


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


class _Server(uvicorn.Server):
    """Signals are the host's: it stops this server as one of its tasks."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(slots=True)
class Edge:
    """Listens from the moment it is made, so that a port that is taken ends the start with a clear word."""

    app: ASGIApp
    straight: Straight
    back: Backstage
    settings: Settings
    certificate: EdgeCertificate | None = None
    listener: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        host, port = self.settings.edge_host, self.settings.edge_port
        try:
            self.listener = socket.create_server((host, port), backlog=4096)
        except OSError as error:
            raise PortTaken("SYNOD_EDGE_PORT", host, port, error.strerror) from error

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.certificate else 'http'}://{self.settings.edge_host}:{self.port}"

    async def run(self) -> None:
        """Serve until cancelled; then say goodbye to every client and let requests finish."""
        server = _Server(self._config())
        serving = asyncio.create_task(server.serve([self.listener.dup()]))
        try:
            await asyncio.shield(serving)
        finally:
            await _to_its_end(self._goodbye(server, serving))

    async def close(self) -> None:
        self.listener.close()

    async def _goodbye(self, server: "_Server", serving: "asyncio.Task[None]") -> None:
        """Connections first, with our code: the server ends those that are left with its own, 1012."""
        text = "the gateway stops; connect again with your offsets"
        await self.back.register.end_all(GOING_AWAY, text, self.settings.shutdown_grace_s / 2)
        server.should_exit = True
        await asyncio.wait([serving])

    def _config(self) -> uvicorn.Config:
        certificate = self.certificate
        return uvicorn.Config(
            self.app,
            http=straightened(self.straight),
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=self.settings.edge.frame_bytes_fatal,
            ws_ping_interval=self.settings.edge.heartbeat_s,
            ws_ping_timeout=self.settings.edge.pong_wait_s,
            ssl_context_factory=(lambda _config, _make: certificate.context) if certificate else None,
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, int(self.settings.shutdown_grace_s / 2)),
        )


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Await the work of stopping, however often it is told meanwhile to stop."""
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
