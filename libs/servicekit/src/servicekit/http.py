"""The HTTP side of every service: /live, /ready, /health and /metrics, and the routes a service adds."""

import socket
from collections.abc import Sequence

from aiohttp import web
from aiohttp.web_routedef import AbstractRouteDef
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from servicekit.dependencies import PortTaken
from servicekit.health import Health


class HttpServer:
    """Listens from the first phase of a start on, so that a probe can ask what a start is waiting for.

    aiohttp freezes an application when it starts to serve; `add_routes` therefore starts the server anew on its port.
    """

    def __init__(self, service: str, health: Health, registry: CollectorRegistry, body_bytes_max: int) -> None:
        self._service = service
        self._health = health
        self._registry = registry
        self._body_bytes_max = body_bytes_max
        self._routes: list[AbstractRouteDef] = []
        self._runner: web.AppRunner | None = None
        self._address = ("", 0)

    @property
    def port(self) -> int:
        return self._address[1]

    async def start(self, host: str, port: int) -> None:
        """Raises PortTaken."""
        try:
            listener = socket.create_server((host, port), backlog=1024)
        except OSError as error:
            raise PortTaken("SYNOD_HTTP_PORT", host, port, error.strerror) from error
        self._address = (host, listener.getsockname()[1])
        self._runner = web.AppRunner(self._application(), access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def add_routes(self, routes: Sequence[AbstractRouteDef]) -> None:
        self._routes.extend(routes)
        await self.stop()
        await self.start(*self._address)

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=self._body_bytes_max)
        application.add_routes(
            [
                web.get("/live", self._live),
                web.get("/ready", self._ready),
                web.get("/health", self._report),
                web.get("/metrics", self._metrics),
                *self._routes,
            ]
        )
        return application

    async def _live(self, _request: web.Request) -> web.Response:
        return web.json_response({"service": self._service, "live": True})

    async def _ready(self, _request: web.Request) -> web.Response:
        return self._answer(200 if self._health.ready else 503)

    async def _report(self, _request: web.Request) -> web.Response:
        return self._answer(200)

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _answer(self, status: int) -> web.Response:
        health = self._health
        body = {
            "service": self._service,
            "status": health.status,
            "ready": health.ready,
            "phase": health.phase,
            "problems": health.problems,
        }
        return web.json_response(body, status=status)
