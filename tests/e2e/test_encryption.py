"""The containers encrypted, on the wire and on disk: nothing is taken in the clear or readable on disk, and certificates
are renewed while everything runs.
"""

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import nats
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from launcher import certificates
from launcher.keys import OBSERVER, nats_file
from launcher.layout import NATS_OFFSET, SERVICES
from nats.errors import Error as NatsError
from synod_client import Endpoints, NotAllowed, Synod, TryAgain

from .conftest import ROOT, SECURED, Containers, up
from .disks import where_it_is_readable

PROGRAM = Path(sys.executable).parent / "synod"
DEMO_S, RENEWED_S = 300, 60
pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def secured(port_base: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    folder = tmp_path_factory.mktemp("secured")
    with up(Containers.installed(port_base, folder, encrypt_at_rest=True, files=SECURED)) as started:
        yield started


def addresses(containers: Containers) -> list[str]:
    """Everything that is published: each service, and NATS."""
    found = [containers.endpoints.address(service.name) for service in SERVICES]
    return [*found, f"127.0.0.1:{containers.port_base + NATS_OFFSET}"]


async def serials(containers: Containers) -> set[int]:
    """Of the certificates that are shown to a new connection."""
    context = certificates.files_of(containers.certificates, certificates.CLIENT).read(certificates.utc_now()).context
    return {await serial(address, context) for address in addresses(containers)}


async def serial(address: str, context: ssl.SSLContext) -> int:
    host, port = address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = int(str(writer.get_extra_info("peercert")["serialNumber"]), 16)
    writer.transport.abort()
    return shown


def lives(containers: Containers) -> dict[str, str]:
    """The id of each container and when its program was started."""
    ids = {name: containers.compose("ps", "-q", name).decode().strip() for name in (*_names(), "nats")}
    command = ["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}} {{.RestartCount}}"]
    return {
        name: subprocess.run([*command, id], capture_output=True, text=True, check=True).stdout
        for name, id in ids.items()
    }


def _names() -> list[str]:
    return [service.name for service in SERVICES]


async def demonstrate(containers: Containers, out: Path) -> None:
    """Runs the demo as a person would, who is told where the certificates are."""
    environment = {"SYNOD_PORT_BASE": str(containers.port_base), "PATH": "/usr/bin:/bin", "HOME": str(out)}
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *("demo", "--running", "--data", str(containers.secrets), "--out", str(out)),
        cwd=ROOT,
        env=environment | containers.client_certificate,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(DEMO_S):
        said, _ = await process.communicate()
    assert process.returncode == 0, said[-6000:].decode()
    outcome = json.loads((out / "demo.json").read_text())
    assert (outcome["state"], outcome["replay_equal"]) == ("completed", True)
    assert (outcome["views_equal"], outcome["logs_verified"]) == (True, True)


async def test_who_speaks_in_the_clear_is_refused_by_everybody(secured: Containers) -> None:
    ends = secured.endpoints
    plain = Endpoints(ends.services, ends.nats, ends.edge, ends.api_key)
    for service in SERVICES:
        async with grpc.aio.insecure_channel(ends.address(service.name)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await HealthStub(channel).Check(HealthCheckRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    async with Synod.connect(plain) as synod:
        with pytest.raises(TryAgain, match="does it speak TLS"):
            await synod.runs()
        with pytest.raises(NotAllowed, match="do not agree on TLS"):
            await synod.connection.nats("observer")
    by_tls = certificates.files_of(secured.certificates, certificates.CLIENT).read(certificates.utc_now())
    in_the_clear = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0}
    with pytest.raises((NatsError, OSError)):
        await nats.connect(ends.nats, **in_the_clear)
    client = await nats.connect(ends.nats, **in_the_clear, **by_tls.nats_options())
    await client.close()
    assert OBSERVER in nats_file(secured.secrets / "keys", OBSERVER).read_text()


async def test_encryption_at_rest_leaves_no_payload_readable_on_disk(secured: Containers) -> None:
    """test_compose.py has that the same search finds it without."""
    assert await where_it_is_readable(secured) == set()


async def test_every_certificate_is_renewed_during_a_demo_and_no_container_is_restarted(
    secured: Containers, tmp_path: Path
) -> None:
    before, shown = await asyncio.to_thread(lives, secured), await serials(secured)
    working = asyncio.create_task(demonstrate(secured, tmp_path))
    certificates.renew(secured.certificates, certificates.utc_now())
    await asyncio.to_thread(secured.compose, "kill", "-s", "HUP", "nats")
    async with asyncio.timeout(RENEWED_S):
        while shown & await serials(secured):  # noqa: ASYNC110 - servers are asked what they show
            await asyncio.sleep(0.2)
    await working
    assert await asyncio.to_thread(lives, secured) == before
    # Whoever connects again does so by the certificates of now.
    await asyncio.to_thread(secured.compose, "restart", "nats")
    for name in _names():
        await asyncio.to_thread(secured.wait_ready, name)
    (tmp_path / "again").mkdir()
    await demonstrate(secured, tmp_path / "again")
