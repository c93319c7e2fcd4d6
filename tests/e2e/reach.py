"""Who can be reached from where: by whom an address answers, not only that something does."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from launcher.layout import PORT_BASE, SERVICES

from .conftest import engine

BEYOND = "198.51.100.1"
"""Of a network that is only for examples (RFC 5737): routed as any address elsewhere."""
PROBE = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
SAYS = {5432: (bytes.fromhex("0000000804d2162f"), (b"N", b"S")), 4222: (b"", (b"INFO",)), 443: (b"", (b"",))}
ASKS = b"GET /ready HTTP/1.0\\r\\n\\r\\n", (b"HTTP/1.0 200", b"HTTP/1.1 200")
def reached(address):
    host, _, port = address.rpartition(":")
    said, answers = SAYS.get(int(port), ASKS)
    try:
        with socket.create_connection((host, int(port)), 2) as connection:
            connection.settimeout(2)
            connection.sendall(said)
            return answers == (b"",) or connection.recv(64).startswith(answers)
    except OSError:
        return False
with ThreadPoolExecutor(64) as pool:
    print(" ".join(a for a, found in zip(sys.argv[1:], pool.map(reached, sys.argv[1:])) if found))
"""
"""Prints which of the addresses in its arguments answer as a server of that port does; at 443 to be connected is enough.

Between a container with a way out and an address that leads nowhere a gateway may stand that answers for everybody.
"""
LISTENING = {
    "postgres": 5432,
    "nats": 4222,
    "provider-simulator": 7199,
    **{service.name: PORT_BASE + 100 + service.number for service in SERVICES},
}
"""Where each is asked whether it is ready."""


def probe(addresses: Iterable[str]) -> tuple[str, ...]:
    """The command that prints those that are reached."""
    return ("python", "-c", PROBE, *addresses)


@contextmanager
def machine_listening() -> Iterator[int]:
    """The port at which this machine answers, under each address that it has."""
    with ThreadingHTTPServer(("0.0.0.0", 0), _Ready) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def machine_addresses() -> set[str]:
    """Of this machine but for loopback: in the networks of the engine, and where it would leave for others."""
    networks = engine("network", "ls", "--quiet", "--filter", "driver=bridge").split()
    gateways = engine("network", "inspect", "--format", "{{range .IPAM.Config}}{{.Gateway}} {{end}}", *networks)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        outward.connect((BEYOND, 9))  # sends nothing
        return {*filter(_is_ours, gateways.split()), str(outward.getsockname()[0])}


def connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        return False
    return True


def _is_ours(address: str) -> bool:
    """A network's gateway may be an address that nobody was given."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.bind((address, 0))
    except OSError:
        return False
    return True


class _Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""
