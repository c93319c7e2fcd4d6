"""Python loads this before a service's first line, because its folder stands in PYTHONPATH.

Whoever speaks to anybody but this machine, or asks for a name to be looked up, is refused as by a machine without a network,
and written down in the file SYNOD_OUTBOUND_FILE (tests/system/outbound.py reads it). Audit hooks see what Python's sockets
do. The services' event loop, uvloop, looks names up and connects by a library of its own that raises no audit event, so its
methods are wrapped. What other C libraries do with sockets of their own stays unseen: gRPC and libpq, which are told
addresses of this machine.
"""

import functools
import json
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
LOOKING_UP = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
LOOKING_BACK = {"socket.getnameinfo"}


def host_of(event, arguments):
    """Whom the event is about; empty for a socket without a host, as one of the file system."""
    if event in LOOKING_UP:
        return arguments[0] or ""
    if event in CONNECTING:
        return host_in(arguments[1])
    if event in LOOKING_BACK:
        return host_in(arguments[0])
    return ""


def host_in(address):
    return (address[0] or "") if isinstance(address, tuple) else ""


def is_here(host):
    name = host.decode() if isinstance(host, bytes) else host
    try:
        address = ip_address(name)
    except ValueError:
        return name in {"", "localhost"}
    return address.is_loopback or address.is_unspecified


def write(**line):
    told = {"pid": os.getpid(), "program": sys.orig_argv[1:], **line}
    with Path(os.environ["SYNOD_OUTBOUND_FILE"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(told) + "\n")


def check(event, host):
    if not is_here(host):
        write(event=event, host=str(host))
        raise OSError(f"no network: {event} {host}")


def watch(event, arguments):
    if event in CONNECTING | LOOKING_UP | LOOKING_BACK:
        check(event, host_of(event, arguments))


# --- uvloop ---


def of_create_datagram_endpoint(protocol_factory, local_addr=None, remote_addr=None, **more):
    # Whom a socket without a peer sends to is not seen.
    return host_in(remote_addr) if remote_addr else "anybody"


WRAPPED = {
    "getaddrinfo": lambda host, port, **more: host or "",
    "getnameinfo": lambda sockaddr, flags=0: host_in(sockaddr),
    "create_connection": lambda protocol_factory, host=None, port=None, **more: host or "",
    "create_datagram_endpoint": of_create_datagram_endpoint,
    "sock_connect": lambda sock, address: host_in(address),
    "sock_sendto": lambda sock, data, address: host_in(address),
}
"""The loop's methods that speak to others, each with whom its arguments name."""


def wrapped(name, method, named):
    @functools.wraps(method)
    async def checked(loop, *arguments, **more):
        check(f"uvloop.{name}", named(*arguments, **more))
        return await method(loop, *arguments, **more)

    return checked


class WatchedLoader(Loader):
    """Loads uvloop, and wraps the methods of its loop before anybody has one."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        for name, named in WRAPPED.items():
            setattr(module.Loop, name, wrapped(name, getattr(module.Loop, name), named))


class WatchedFinder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "uvloop":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None:
            spec.loader = WatchedLoader(spec.loader)
        return spec


write(event="watched", host="")
sys.addaudithook(watch)
sys.meta_path.insert(0, WatchedFinder())
