"""The head of a request, made once for all that go to one address with the same headers. Pure.

Standard: RFC 9112, sections 3 and 5. Nothing that a caller says gets into a head unescaped.
"""

import base64
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from llm_gateway.providers.pool import Origin
from llm_gateway.providers.proxies import Proxies

_PORTS: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_MAY_STAND_IN_A_PATH: Final = "/:?#[]@!$&'()*+,;=-._~%"
_OURS: Final[Mapping[str, str]] = {
    "accept": "*/*",
    # An answer is a few kilobytes and a stream is wanted piece by piece: unpacking costs more than it saves.
    "accept-encoding": "identity",
    "user-agent": "synod-llm-gateway",
}


class RequestHead(NamedTuple):
    """`head` ends before the length of what is posted, or, of what has no content, where all of it ends."""

    origin: Origin
    head: bytes
    headers: Mapping[str, str]

    def posting(self, body: bytes) -> bytes:
        return b"%b%d\r\n\r\n%b" % (self.head, len(body), body)


def request_head(method: str, url: str, headers: Mapping[str, str], proxies: Proxies | None = None) -> RequestHead:
    """Raises ValueError for an address or a header that cannot be sent. `headers` may replace what is sent always.

    A proxy that reads what it hands on is told the whole address (RFC 9112, section 3.2.2).
    """
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError("no address of a server that speaks HTTP")
    host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    port = parts.port or _PORTS[parts.scheme]
    origin, authority = Origin(parts.scheme == "https", host, port), _authority(host, _told(parts.scheme, port))
    proxy = None if origin.tls or proxies is None else proxies.of(origin)
    sent = {
        "host": authority,
        **({"proxy-authorization": proxy.authorization} if proxy and proxy.authorization else {}),
        **_OURS,
        **_credentials(parts.username, parts.password),
        **{name.lower(): value for name, value in headers.items()},
    }
    target = quote(parts.path or "/", safe=_MAY_STAND_IN_A_PATH)
    query = f"?{quote(parts.query, safe=_MAY_STAND_IN_A_PATH)}" if parts.query else ""
    whole = f"http://{authority}{target}" if proxy else target
    lines = [f"{method} {whole}{query} HTTP/1.1", *(_line(name, value) for name, value in sent.items())]
    lines.append("content-length: " if method == "POST" else "\r\n")
    return RequestHead(origin, "\r\n".join(lines).encode(), dict(headers))


def _told(scheme: str, port: int) -> int | None:
    return None if port == _PORTS[scheme] else port


def _authority(host: str, port: int | None) -> str:
    named = f"[{host}]" if ":" in host else host
    return named if port is None else f"{named}:{port}"


def _credentials(name: str | None, password: str | None) -> dict[str, str]:
    if name is None:
        return {}
    pair = f"{unquote(name)}:{unquote(password or '')}"
    return {"authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _line(name: str, value: str) -> str:
    """A line break in either would let a value speak for itself."""
    if any(mark in name + value for mark in "\r\n\0"):
        raise ValueError(f"the header {name!r} has a value that cannot be sent")
    return f"{name}: {value}"
