"""The only way out: HTTP whose every connection is checked at the moment it is made.

A name is resolved once, all its addresses are checked, and the connection goes to a checked address, so that no second
look-up can be turned to another host (DNS rebinding). Redirects connect like everything else, and so are checked too.
"""

import asyncio
import fnmatch
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import httpcore2
import httpx2

from tool_executor.errors import ToolError

CONNECTIONS_MAX = 4
STEP_TIMEOUT_S = 10.0
USER_AGENT = "Synod/0.1 (agent tool http_fetch)"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[tuple[str, ...]]]
TRANSLATION_PREFIX = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address follows
LOCAL_TRANSLATION_PREFIX = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215: leads into the operator's own network


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """What the operator allows. Patterns are those of fnmatch ("*.example.org").

    `private_endpoints` are the (host, port) pairs that may be reached although they are not public addresses.
    """

    allowed_hosts: tuple[str, ...] = ("*",)
    ports: frozenset[int] = frozenset({80, 443})
    private_endpoints: frozenset[tuple[str, int]] = field(default_factory=frozenset)


async def resolve_by_system(host: str, port: int) -> tuple[str, ...]:
    """All addresses of a host as the system's resolver gives them, in its order of preference."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


class Network:
    """Hands out HTTP clients that obey the policy. The caller closes each client."""

    def __init__(self, policy: NetworkPolicy = NetworkPolicy(), resolve: Resolve = resolve_by_system) -> None:
        self._backend = GuardedBackend(policy, resolve)
        self._tls = ssl.create_default_context()

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            transport=GuardedTransport(self._backend, self._tls),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"},
            follow_redirects=False,  # httpx2 would first read what stands beside a redirect, however much that is
            timeout=STEP_TIMEOUT_S,
            trust_env=False,  # a proxy from the environment would connect where we did not look
        )


def refusal(host: str, port: int, addresses: Iterable[str], policy: NetworkPolicy) -> str:
    """Why this connection must not be made, or nothing."""
    if not any(fnmatch.fnmatchcase(host.lower(), pattern.lower()) for pattern in policy.allowed_hosts):
        return f"host {host!r} is not on the operator's list"
    if (host, port) in policy.private_endpoints:
        return ""
    if port not in policy.ports:
        return f"port {port} is not open to tools; use {', '.join(map(str, sorted(policy.ports)))}"
    refused = next((address for address in addresses if not is_public(address)), None)
    return f"{host!r} is at {refused}, which is not a public address" if refused else ""


def is_public(text: str) -> bool:
    """Whether an address is one that anybody on the Internet could reach. IPv4 inside IPv6 is judged as IPv4."""
    try:
        address = _embedded(ipaddress.ip_address(text))
    except ValueError:
        return False
    special = address.is_multicast or address.is_reserved
    return address.is_global and not special and not (address.version == 6 and _is_local_v6(address))


def _embedded(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in TRANSLATION_PREFIX:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_local_v6(address: ipaddress.IPv6Address) -> bool:
    tunnelled = address.teredo is not None or address in LOCAL_TRANSLATION_PREFIX
    return address.is_site_local or address.scope_id is not None or tunnelled


class GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens TCP connections for httpcore2 after the check; raises ToolError ADDRESS_REFUSED or HOST_NOT_FOUND."""

    def __init__(self, policy: NetworkPolicy, resolve: Resolve) -> None:
        self._policy = policy
        self._resolve = resolve
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._addresses(host, port)
        if reason := refusal(host, port, addresses, self._policy):
            raise ToolError("ADDRESS_REFUSED", f"url: {reason}; fetch a public page, or ask the operator to allow it")
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise ToolError("ADDRESS_REFUSED", f"url: {path!r} is a socket of this machine; fetch a public page")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> tuple[str, ...]:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError):
            addresses = ()
        if not addresses:
            raise ToolError("HOST_NOT_FOUND", f"url: no address is known for {host!r}; check the name", retryable=True)
        return addresses


class GuardedTransport(httpx2.AsyncBaseTransport):
    """httpx2 over a connection pool whose connections the guarded backend makes."""

    def __init__(self, backend: GuardedBackend, tls: ssl.SSLContext) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=tls, max_connections=CONNECTIONS_MAX, network_backend=backend
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        url = httpcore2.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        response = await self._pool.handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=url,
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        assert isinstance(response.stream, AsyncIterable)
        return httpx2.Response(
            status_code=response.status,
            headers=response.headers,
            stream=_Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._response.aiter_stream():
            yield part

    async def aclose(self) -> None:
        await self._response.aclose()
