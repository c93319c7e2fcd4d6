"""The health check of a container says what /ready says."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry
from servicekit.health import Health
from servicekit.healthcheck import check
from servicekit.http import HttpServer
from servicekit.telemetry import Metrics


@pytest.mark.parametrize(("phase", "status"), [("ready", 0), ("postgres", 1)])
async def test_a_service_is_healthy_once_it_is_ready(
    phase: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics()
    health = Health(metrics.ready, metrics.problem)
    health.enter(phase)
    server = HttpServer("guest-book", health, CollectorRegistry(), body_bytes_max=1024)
    await server.start("127.0.0.1", 0)
    try:
        assert await asyncio.to_thread(check, server.port) == status
    finally:
        await server.stop()
    assert f'"phase": "{phase}"' in capsys.readouterr().out


def test_a_service_that_does_not_listen_is_unhealthy(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(1) == 1
    assert "port 1: " in capsys.readouterr().out
