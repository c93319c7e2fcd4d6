"""Through which HTTP proxy a provider is reached, by the variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY. Pure.

There is no standard; where programs differ this reads them as Go's net/http does: this machine itself is never reached
through a proxy, a domain stands for its subdomains too, and an address may be one of a network in CIDR notation.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from llm_gateway.providers.pool import Origin


class Proxy(NamedTuple):
    """`authorization` is what it is told of who asks: the value of Proxy-Authorization, none if empty."""

    host: str
    port: int
    authorization: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class Proxies:
    """`for_https` is asked for a tunnel, through which the provider's certificate is seen; `for_http` reads what it hands on.

    `without` holds the patterns of NO_PROXY.
    """

    for_https: Proxy | None = None
    for_http: Proxy | None = None
    without: tuple[str, ...] = ()

    def of(self, origin: Origin) -> Proxy | None:
        """The proxy on the way there, if one is."""
        proxy = self.for_https if origin.tls else self.for_http
        if proxy is None or _is_own_machine(origin.host) or self._is_reached_without(origin):
            return None
        return proxy

    def _is_reached_without(self, origin: Origin) -> bool:
        return any(_matches(pattern, origin.host.lower(), origin.port) for pattern in self.without)


def read_proxies(https: str, http: str, no: str) -> Proxies:
    """From the values of the three variables. Raises ValueError that names the variable."""
    without = tuple(pattern.strip().lower() for pattern in no.split(",") if pattern.strip())
    if "*" in without:
        return Proxies()
    return Proxies(_proxy("HTTPS_PROXY", https), _proxy("HTTP_PROXY", http), without)


def _proxy(variable: str, address: str) -> Proxy | None:
    """host:port alone is understood, as by curl."""
    if not address:
        return None
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme != "http":
        raise ValueError(
            f"{variable} must be http://host:port (a proxy that is itself spoken to by TLS or SOCKS is not supported); "
            "correct it, or set NO_PROXY=* to reach providers without a proxy"
        )
    return Proxy(host, port, _authorization(parts.username, parts.password))


def _authorization(name: str | None, password: str | None) -> str:
    if name is None:
        return ""
    return "Basic " + base64.b64encode(f"{unquote(name)}:{unquote(password or '')}".encode()).decode()


def _matches(pattern: str, host: str, port: int) -> bool:
    name, colon, wanted = pattern.rpartition(":")
    if colon and wanted.isdecimal() and (":" not in name or name.endswith("]")):
        if int(wanted) != port:
            return False
        pattern = name
    pattern = pattern.strip("[]")
    address = _address(host)
    if address is not None:
        return _holds(pattern, address)
    domain = pattern.removeprefix("*").removeprefix(".")
    return host.endswith(f".{domain}") or (host == domain and not pattern.startswith((".", "*.")))


def _holds(network: str, address: IPv4Address | IPv6Address) -> bool:
    try:
        return address in ip_network(network, strict=False)
    except ValueError:
        return False


def _is_own_machine(host: str) -> bool:
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
