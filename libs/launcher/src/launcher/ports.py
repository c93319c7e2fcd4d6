"""Ports that must be free before anything starts, and who holds one that is not."""

import errno
import socket
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import PortInUse, SettingInvalid
from launcher.layout import PORT_BASE_MAX

LISTENING = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def check_ports(port_base: int, ports: Mapping[str, int]) -> None:
    """Raises SettingInvalid if the base cannot work, PortInUse for the first port that something listens on."""
    if not 1024 <= port_base <= PORT_BASE_MAX:
        problem = f"must be from 1024 to {PORT_BASE_MAX}"
        raise SettingInvalid("port-base", port_base, problem, "The default is 7100.")
    for name, port in ports.items():
        if not _is_free(port):
            problem = f"{_holder(port)} listens there already"
            raise PortInUse(f"port of {name}", port, problem, "Stop it, or choose other ports with --port-base.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose last connections are only closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _holder(port: int) -> str:
    inode = _listening_inode(port)
    for process in Path("/proc").glob("[0-9]*") if inode else ():
        if _has_socket(process, f"socket:[{inode}]"):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return f"process {process.name} ({command[:120]})"
    return "another program"


def _listening_inode(port: int) -> str | None:
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                return fields[9]
    return None


def _has_socket(process: Path, link: str) -> bool:
    try:
        return any(str(descriptor.readlink()) == link for descriptor in (process / "fd").iterdir())
    except OSError:
        # Another user's process, or one that ended just now: it cannot be asked.
        return False
