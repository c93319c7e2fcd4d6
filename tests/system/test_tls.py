"""A whole system by mutual TLS: it does the same, takes nobody without a certificate, and is renewed while it works."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from launcher import certificates
from launcher.layout import Layout
from launcher.testing import free_port_base
from servicekit.nats_admin import Unreachable, administrator
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod_client import Endpoints, NotAllowed, Synod, TryAgain

from .conftest import RunningSystem
from .definitions import CALCULATOR

pytestmark = pytest.mark.system
SETTLED_S = 30


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    layout = Layout(tmp_path_factory.mktemp("tls"), free_port_base(), simulator=True, durable=False, tls=True)
    started = RunningSystem(layout)
    try:
        started.call(started.system.up())
        yield started
    finally:
        started.close()


async def work(synod: Synod) -> str:
    run = await synod.wait((await synod.start("calculator", "go")).id)
    return run.output


async def serial(address: str, directory: Path) -> int:
    """Of the certificate that a server shows now."""
    files = certificates.files_of(directory, certificates.CLIENT).read(certificates.utc_now())
    host, port = address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=files.context)
    shown = int(str(writer.get_extra_info("peercert")["serialNumber"]), 16)
    writer.transport.abort()
    return shown


async def test_a_team_works_by_tls_while_every_certificate_is_renewed(secured: RunningSystem) -> None:
    directory = secured.system.layout.certificates
    addresses = [secured.endpoints.address(name) for name in secured.endpoints.services]
    addresses.append(secured.endpoints.nats.removeprefix("nats://"))
    pids = {name: status.pid for name, status in secured.system.services.items()}
    async with Synod.connect(secured.endpoints) as synod:
        await synod.define(CALCULATOR)
        await synod.grant("calculator", "calc")
        before = await work(synod)
        first = [await serial(address, directory) for address in addresses]
        certificates.renew(directory, certificates.utc_now())
        async with asyncio.timeout(SETTLED_S):
            while set(first) & {await serial(address, directory) for address in addresses}:
                assert await work(synod) == before
        assert await work(synod) == before
        await (await synod.connection.nats("observer")).flush()
    assert {name: status.pid for name, status in secured.system.services.items()} == pids
    assert json.loads(before) == {"result": 42.5}


async def test_who_has_no_certificate_gets_no_answer(secured: RunningSystem) -> None:
    endpoints = secured.endpoints
    in_the_clear = Endpoints(endpoints.services, endpoints.nats, endpoints.edge, endpoints.api_key)
    async with Synod.connect(in_the_clear) as synod:
        with pytest.raises(TryAgain, match="set SYNOD_TLS_CA_FILE, SYNOD_TLS_CERTIFICATE_FILE, SYNOD_TLS_KEY_FILE"):
            await synod.runs()
        with pytest.raises(NotAllowed, match="do not agree on TLS"):
            await synod.connection.nats("observer")
    ca = certificates.files_of(secured.system.layout.certificates, certificates.CLIENT).ca.read_bytes()
    credentials = grpc.ssl_channel_credentials(ca)
    for service in endpoints.services:
        async with grpc.aio.secure_channel(endpoints.address(service), credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await AgentRegistryStub(channel).Authenticate(registry_pb.AuthenticateRequest(api_key="x"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        async with administrator(secured.system.administrator_url):
            raise AssertionError("not reached")
