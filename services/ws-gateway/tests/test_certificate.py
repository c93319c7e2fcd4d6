"""The edge by TLS: served by the certificate it is given, renewed while it serves."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import aiohttp
import edge_fakes as fakes
import pytest
from edge_world import running, until
from httpedge.certificate import EdgeCertificate
from launcher import certificates
from servicekit.health import Health
from servicekit.telemetry import Logger, Metrics
from servicekit.tls import TlsFiles, TlsInvalid
from websockets.asyncio.client import connect

HEADERS = {"X-API-Key": fakes.API_KEY}
EDGE = "ws-gateway"


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpedge.certificate.CHECK_S", 0.02)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    certificates.ensure(tmp_path / "tls", certificates.utc_now())
    return tmp_path / "tls"


@pytest.fixture
def files(directory: Path) -> TlsFiles:
    return certificates.files_of(directory, EDGE)


async def test_the_edge_serves_rest_and_websockets_by_the_newest_certificate(
    postgres_dsn: str, nats_url: str, directory: Path, files: TlsFiles
) -> None:
    named = {"edge_tls_certificate_file": files.certificate, "edge_tls_key_file": files.key}
    browser = ssl.create_default_context(cafile=str(files.ca))
    async with (
        running(postgres_dsn, nats_url, **named) as system,
        aiohttp.ClientSession(system.url.replace("http", "https"), headers=HEADERS) as http,
    ):
        address = system.url.removeprefix("http://")

        async def shown() -> int:
            _, writer = await asyncio.open_connection(*address.split(":"), ssl=browser)
            serial = int(str(writer.get_extra_info("peercert")["serialNumber"]), 16)
            writer.transport.abort()
            return serial

        async def renewed() -> bool:
            return await shown() != first

        async with connect(f"wss://{address}/ws", additional_headers=HEADERS, ssl=browser) as socket:
            first = await shown()
            certificates.renew(directory, certificates.utc_now())
            await until(renewed)
            assert "authenticated" in str(await socket.recv())
        async with http.get("/api/v1/agents", ssl=browser) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientError):
            await system.http.get("/api/v1/agents")


async def test_a_pair_that_does_not_fit_is_reported_and_the_former_goes_on(files: TlsFiles, directory: Path) -> None:
    certificate, health = EdgeCertificate(files.certificate, files.key), Health(Metrics().ready, Metrics().problem)
    context = certificate.context
    watching = asyncio.create_task(certificate.follow(health, Logger("x"))())
    files.key.write_bytes(certificates.files_of(directory, "consensus").key.read_bytes())
    await until(lambda: "edge certificate" in health.problems)
    problem = health.problems["edge certificate"]
    certificates.renew(directory, certificates.utc_now())
    await until(lambda: "edge certificate" not in health.problems)
    watching.cancel()
    assert problem.startswith(f"SYNOD_EDGE_TLS_CERTIFICATE_FILE={files.certificate}")
    assert "KEY_VALUES_MISMATCH" in problem
    assert certificate.context is context


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda files: EdgeCertificate.named(files.certificate, None), "SYNOD_EDGE_TLS_KEY_FILE must be set too"),
        (lambda files: EdgeCertificate.named(None, files.key), "SYNOD_EDGE_TLS_CERTIFICATE_FILE must be set too"),
        (lambda files: EdgeCertificate.named(files.key / "x", files.key), "cannot be used .*give a certificate chain"),
    ],
)
def test_what_is_missing_is_named(
    files: TlsFiles, make: Callable[[TlsFiles], EdgeCertificate | None], words: str
) -> None:
    with pytest.raises(TlsInvalid, match=words):
        make(files)


def test_without_files_the_edge_speaks_http() -> None:
    assert EdgeCertificate.named(None, None) is None
