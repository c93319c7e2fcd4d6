"""Providers behind a corporate proxy: who is reached through it, how it is asked, and what becomes of its refusals."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launcher import certificates
from llm_gateway.errors import ProviderTimedOut, ProviderUnreachable
from llm_gateway.providers.pool import Origin
from llm_gateway.providers.proxies import Proxies, Proxy, read_proxies
from llm_gateway.providers.transport import Transport, TransportLimits, open_session

from .wire import Peer, always, once, serving, soon

HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
PROXY = Proxy("proxy.corp", 3128)
PROVIDER = "cost-ledger"
"""A name that the certificates of tests are good for, and that is not this machine's."""


def tls(host: str, port: int = 443) -> Origin:
    return Origin(True, host, port)


@pytest.mark.parametrize(
    ("no_proxy", "host", "port"),
    [
        ("example.com", "example.com", 443),
        ("Example.com", "api.EXAMPLE.com", 443),
        (".example.com", "api.example.com", 443),
        ("*.example.com", "api.example.com", 443),
        ("other.org, example.com", "example.com", 443),
        ("example.com:8443", "example.com", 8443),
        ("10.1.2.3", "10.1.2.3", 443),
        ("10.0.0.0/8", "10.1.2.3", 443),
        ("[fd00::1]:443", "fd00::1", 443),
        ("fd00::/8", "fd00::1", 443),
        ("*", "api.openai.com", 443),
        ("", "localhost", 443),
        ("", "127.0.0.9", 443),
        ("", "::1", 443),
    ],
)
def test_what_is_reached_without_a_proxy(no_proxy: str, host: str, port: int) -> None:
    assert read_proxies("http://proxy.corp:3128", "", no_proxy).of(tls(host, port)) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "port"),
    [
        ("", "api.openai.com", 443),
        ("ample.com", "example.com", 443),
        (".example.com", "example.com", 443),
        ("example.com:8443", "example.com", 443),
        ("10.0.0.0/8", "11.1.2.3", 443),
        ("10.0.0.0/8", "example.com", 443),
        ("no network at all/99", "10.1.2.3", 443),
        ("*openai.com", "api.openai.org", 443),
        ("", "10.0.0.1", 443),
    ],
)
def test_what_is_reached_through_it(no_proxy: str, host: str, port: int) -> None:
    assert read_proxies("http://proxy.corp:3128", "", no_proxy).of(tls(host, port)) == PROXY


def test_each_kind_of_address_has_a_proxy_of_its_own() -> None:
    proxies = read_proxies("one:1", "two:2", "")
    assert proxies.of(tls("example.com")) == Proxy("one", 1)
    assert proxies.of(Origin(False, "example.com", 80)) == Proxy("two", 2)


def test_a_password_is_told_to_the_proxy_and_to_nobody_who_reads_along() -> None:
    proxy = read_proxies("http://ann:se%3Acret@proxy.corp", "", "").for_https
    assert proxy == Proxy("proxy.corp", 80, "Basic YW5uOnNlOmNyZXQ=")
    assert "YW5" not in repr(proxy)


@pytest.mark.parametrize(
    "address", ["socks5://proxy.corp:1080", "https://proxy.corp", "http://proxy.corp:many", "http://"]
)
def test_a_proxy_that_is_not_understood_is_refused_by_the_name_of_its_variable(address: str) -> None:
    with pytest.raises(ValueError, match=r"HTTPS_PROXY must be http://host:port .* NO_PROXY=\*"):
        read_proxies(address, "", "")
    assert read_proxies(address, "", "*") == Proxies()


@dataclass
class Tunnels:
    """A proxy that connects whoever asks to one server, whatever the name, and remembers what it was told."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)

    @property
    def https(self) -> Proxies:
        return Proxies(for_https=Proxy("127.0.0.1", self.port, "Basic YTpi"))


@asynccontextmanager
async def tunnelling(target_port: int) -> AsyncIterator[Tunnels]:
    tunnels = Tunnels()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tunnels.heads.append(await reader.readuntil(b"\r\n\r\n"))
        far, to_far = await asyncio.open_connection("127.0.0.1", target_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\nProxy-Agent: test\r\n\r\n")
        tasks.update(asyncio.create_task(pump(*ends)) for ends in ((reader, to_far), (far, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as listener:
        tunnels.port = listener.sockets[0].getsockname()[1]
        yield tunnels
        await asyncio.gather(*tasks)


@dataclass
class Believed:
    """A server's certificate, and a client's belief in who signed it."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture
def believed(tmp_path: Path) -> Believed:
    certificates.ensure(tmp_path, datetime.now(UTC))
    files = certificates.files_of(tmp_path, PROVIDER)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(files.certificate, files.key)
    return Believed(server, ssl.create_default_context(cafile=files.ca))


async def asked(transport: Transport, url: str) -> bytes:
    async with transport.post(url, {"x-api-key": "secret"}, b"{}", soon()) as reply:
        return await reply.body()


async def test_a_provider_is_asked_through_a_tunnel_and_the_proxy_sees_neither_question_nor_key(
    believed: Believed,
) -> None:
    async with serving(always(HI), believed.server) as server:
        port = int(server.origin.rpartition(":")[2])
        async with (
            tunnelling(port) as tunnels,
            open_session(tls=believed.client, proxies=tunnels.https) as session,
        ):
            transport = Transport(session)
            answers = [await asked(transport, f"https://{PROVIDER}:{port}/v1/chat") for _ in range(2)]
    where = f"{PROVIDER}:{port}"
    told = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\nProxy-Authorization: Basic YTpi\r\n\r\n"
    assert answers == [b"hi", b"hi"]
    assert tunnels.heads == [told.encode()]  # one tunnel for both
    assert server.requests[0].startswith(b"POST /v1/chat HTTP/1.1\r\nhost: cost-ledger:")
    assert b"roxy" not in server.requests[0]


async def test_who_answers_through_a_tunnel_has_to_prove_its_name(believed: Believed) -> None:
    async with serving(always(HI), believed.server) as server:
        port = int(server.origin.rpartition(":")[2])
        async with (
            tunnelling(port) as tunnels,
            open_session(tls=believed.client, proxies=tunnels.https) as session,
        ):
            with pytest.raises(ProviderUnreachable, match="Hostname mismatch"):
                await asked(Transport(session), f"https://api.openai.com:{port}/v1/chat")
    assert server.requests == []


async def test_an_address_without_tls_is_told_to_the_proxy_whole() -> None:
    async with serving(always(HI)) as proxy:
        port = int(proxy.origin.rpartition(":")[2])
        through = Proxies(for_http=Proxy("127.0.0.1", port, "Basic YTpi"))
        async with open_session(proxies=through) as session:
            assert await asked(Transport(session), "http://models.corp:8000/v1/chat?a=b") == b"hi"
    head = proxy.requests[0]
    assert head.startswith(b"POST http://models.corp:8000/v1/chat?a=b HTTP/1.1\r\nhost: models.corp:8000\r\n")
    assert b"\r\nproxy-authorization: Basic YTpi\r\n" in head


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 4\r\n\r\nwho?", "refused: 407 Proxy Auth"),
        (b"HTTP/1.0 503 \r\n\r\n", "refused: 503"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "did not answer as a proxy does"),
        (b"", "did not answer as a proxy does"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "did not answer as a proxy does"),
        (b"HTTP/1.1 200 OK\r\n\r\nalready", "spoke before"),
    ],
)
async def test_what_a_proxy_says_instead_is_told_and_nothing_was_sent(answer: bytes, says: str) -> None:
    async with serving(once(answer)) as proxy:
        port = int(proxy.origin.rpartition(":")[2])
        async with open_session(proxies=Proxies(for_https=Proxy("127.0.0.1", port))) as session:
            with pytest.raises(ProviderUnreachable, match=f"the proxy at 127.0.0.1:{port} {says}") as caught:
                await asked(Transport(session), "https://api.openai.com/v1/chat")
    assert not caught.value.dispatched


async def test_a_proxy_that_cannot_be_reached_is_named() -> None:
    async with open_session(proxies=Proxies(for_https=Proxy("127.0.0.1", 9))) as session:
        with pytest.raises(ProviderUnreachable, match=r"the proxy at 127\.0\.0\.1:9 cannot be reached") as caught:
            await asked(Transport(session), "https://api.openai.com/v1/chat")
    assert not caught.value.dispatched


async def test_a_proxy_that_does_not_answer_is_given_up_with_the_time_to_connect() -> None:
    async def silent(peer: Peer) -> None:
        await peer.gone()

    async with serving(silent) as proxy:
        port = int(proxy.origin.rpartition(":")[2])
        async with open_session(proxies=Proxies(for_https=Proxy("127.0.0.1", port))) as session:
            transport = Transport(session, TransportLimits(connect_s=0.05))
            with pytest.raises(ProviderTimedOut, match="no connection"):
                await asked(transport, "https://api.openai.com/v1/chat")
