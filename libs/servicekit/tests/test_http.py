"""Probes and metrics over HTTP, and the routes a service adds."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from servicekit.health import Health
from servicekit.http import HttpServer
from servicekit.telemetry import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics) -> Health:
    return Health(metrics.ready, metrics.problem)


@pytest.fixture
async def server(metrics: Metrics, health: Health) -> AsyncIterator[HttpServer]:
    server = HttpServer("cost-ledger", health, metrics.registry, 1024)
    await server.start("127.0.0.1", 0)
    yield server
    await server.stop()


@pytest.fixture
async def client(server: HttpServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
        yield session


async def test_a_starting_service_lives_and_says_what_it_waits_for(
    client: aiohttp.ClientSession, health: Health
) -> None:
    health.enter("postgres")
    health.degrade("postgres", "PostgreSQL at 127.0.0.1:7132/ledger does not answer")
    async with client.get("/live") as live, client.get("/ready") as ready:
        assert (live.status, ready.status) == (200, 503)
        assert await ready.json() == {
            "service": "cost-ledger",
            "status": "starting",
            "ready": False,
            "phase": "postgres",
            "problems": {"postgres": "PostgreSQL at 127.0.0.1:7132/ledger does not answer"},
        }


async def test_a_ready_service_with_a_problem_is_ready_and_degraded(
    client: aiohttp.ClientSession, health: Health
) -> None:
    health.enter("ready")
    health.degrade("nats", "reconnecting")
    async with client.get("/ready") as ready, client.get("/health") as report:
        assert (ready.status, report.status) == (200, 200)
        assert (await report.json())["status"] == "degraded"


async def test_a_stopping_service_takes_no_more_work(client: aiohttp.ClientSession, health: Health) -> None:
    health.enter("ready")
    health.enter("stopping")
    async with client.get("/ready") as ready:
        assert (ready.status, (await ready.json())["status"]) == (503, "stopping")


async def test_metrics_are_in_prometheus_form(client: aiohttp.ClientSession, metrics: Metrics, health: Health) -> None:
    metrics.rpc_requests.labels("/synod.x.v1.X/Get", "OK").inc()
    health.enter("ready")
    async with client.get("/metrics") as response:
        text = await response.text()
    assert 'rpc_requests_total{code="OK",method="/synod.x.v1.X/Get"} 1.0' in text
    assert "service_ready 1.0" in text


async def test_a_component_that_does_not_work_is_a_metric_until_it_does(metrics: Metrics, health: Health) -> None:
    def problem() -> float | None:
        return metrics.registry.get_sample_value("service_problem", {"component": "nats"})

    health.recover("nats")
    well = problem()
    health.degrade("nats", "reconnecting")
    degraded = problem()
    health.recover("nats")
    assert (well, degraded, problem()) == (None, 1, 0)


async def test_added_routes_are_served_on_the_same_port(server: HttpServer) -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    port = server.port
    await server.add_routes([web.get("/hello", hello)])
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        session.get("/hello") as added,
        session.get("/live") as live,
    ):
        assert (await added.text(), live.status) == ("hello", 200)
