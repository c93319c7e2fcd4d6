"""What the executor and a zygote say to each other: one JSON object per datagram on a private socket pair.

The streams of a call travel beside its Order as file descriptors (stdout, stderr).
"""

import json
from dataclasses import asdict, dataclass
from enum import IntEnum

from tool_executor.sandboxes.jail import Bounds

MESSAGE_BYTES_MAX = 16 * 1024
REQUEST_FILE, RESULT_FILE = "request", "result"


class ExitCode(IntEnum):
    """How the child's own code ended; whatever else ends a process is the kernel's word."""

    DONE = 0
    RAISED = 81
    OUT_OF_MEMORY = 82
    DENIED = 83
    NOT_CONFINED = 84


@dataclass(frozen=True, slots=True)
class Order:
    """Fork a child for this call. `call_directory` holds the request to read and the empty result file to fill."""

    call: str
    entry: str
    call_directory: str
    workspace: str | None
    access: str
    jailed: bool
    readable: tuple[str, ...]
    bounds: Bounds

    def encode(self) -> bytes:
        return json.dumps({"order": asdict(self)}).encode()


@dataclass(frozen=True, slots=True)
class Kill:
    call: str

    def encode(self) -> bytes:
        return json.dumps({"kill": asdict(self)}).encode()


@dataclass(frozen=True, slots=True)
class Ready:
    """The zygote has imported its modules and takes orders."""

    def encode(self) -> bytes:
        return json.dumps({"ready": {}}).encode()


@dataclass(frozen=True, slots=True)
class Exited:
    """A child ended; `status` is the wait status of waitpid(2), the rest its resource usage."""

    call: str
    status: int
    cpu_user_s: float
    cpu_system_s: float
    memory_peak_bytes: int

    def encode(self) -> bytes:
        return json.dumps({"exited": asdict(self)}).encode()


Message = Order | Kill | Ready | Exited


class MalformedMessage(Exception):
    """A datagram that none of the four messages explains: the two ends are not of one version."""


def decode(datagram: bytes) -> Message:
    message = json.loads(datagram)
    match message:
        case {"order": order}:
            return Order(**order | {"bounds": Bounds(**order["bounds"]), "readable": tuple(order["readable"])})
        case {"kill": kill}:
            return Kill(**kill)
        case {"ready": _}:
            return Ready()
        case {"exited": exited}:
            return Exited(**exited)
        case _:
            raise MalformedMessage(repr(message)[:200])
