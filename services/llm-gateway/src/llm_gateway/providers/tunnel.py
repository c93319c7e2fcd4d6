"""A connection through an HTTP proxy that hands on what it does not read: CONNECT (RFC 9110, section 9.3.6)."""

import asyncio
import socket
from typing import Final

from llm_gateway.providers.proxies import Proxy

_HEAD_BYTES_MAX: Final = 16 * 1024
_ENDS: Final = b"\r\n\r\n"


async def dig(wire: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Have the proxy, to which `wire` is connected, connect it to host and port. Raises OSError with what it said instead."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(wire, _question(proxy, host, port))
    head = b""
    while _ENDS not in head:
        said = await loop.sock_recv(wire, 4096)
        head += said
        if not said or len(head) > _HEAD_BYTES_MAX:
            raise ConnectionError(f"{_named(proxy)} did not answer as a proxy does")
    _check(head, proxy)


def _question(proxy: Proxy, host: str, port: int) -> bytes:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    who = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
    return f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n{who}\r\n".encode()


def _check(head: bytes, proxy: Proxy) -> None:
    line = head.partition(b"\r\n")[0]
    version, _, status = line.partition(b" ")
    if not version.startswith(b"HTTP/1.") or not status[:3].isdigit():
        raise ConnectionError(f"{_named(proxy)} did not answer as a proxy does")
    if not status.startswith(b"2"):
        raise ConnectionError(f"{_named(proxy)} refused: {status[:100].decode('latin-1')}")
    if not head.endswith(_ENDS):
        raise ConnectionError(f"{_named(proxy)} spoke before the provider was asked anything")


def _named(proxy: Proxy) -> str:
    return f"the proxy at {proxy.host}:{proxy.port}"
