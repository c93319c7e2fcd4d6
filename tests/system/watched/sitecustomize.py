"""Python loads this before a service's first line, because its folder stands in PYTHONPATH.

Whoever speaks to anybody but this machine, or asks for a name to be looked up, is refused as by a machine without a network,
and written down in the file SYNOD_OUTBOUND_FILE (tests/system/outbound.py reads it). Audit hooks see what Python's sockets do,
not what C libraries do with their own: gRPC and libpq, which are told addresses of this machine.
"""

import json
import os
import sys
from ipaddress import ip_address
from pathlib import Path

CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
LOOKING_UP = {"socket.getaddrinfo", "socket.gethostbyname"}


def host_of(event, arguments):
    """Whom the event is about; empty for a socket without a host, as one of the file system."""
    if event in LOOKING_UP:
        return arguments[0] or ""
    if event in CONNECTING and isinstance(arguments[1], tuple):
        return arguments[1][0] or ""
    return ""


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


def watch(event, arguments):
    if event in CONNECTING | LOOKING_UP and not is_here(host := host_of(event, arguments)):
        write(event=event, host=str(host))
        raise OSError(f"no network: {event} {host}")


write(event="watched", host="")
sys.addaudithook(watch)
