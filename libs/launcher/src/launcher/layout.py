"""Where everything of one system is: its programs, ports and files. Nothing here touches the machine."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from synod.common.streams import CommandConsumer

PORT_BASE = 7100
POSTGRES_OFFSET, NATS_OFFSET, SIMULATOR_OFFSET, HTTP_OFFSET, EDGE_OFFSET, MODELS_OFFSET = 32, 42, 99, 100, 980, 981
PORT_BASE_MAX = 65535 - MODELS_OFFSET
MIB = 1024 * 1024
SIMULATOR = "provider-simulator"
EDGE = "ws-gateway"
AUTHORITY = "agent-registry"


@dataclass(frozen=True, slots=True)
class Service:
    """A service: `number` gives its ports, `needs` are ready before it starts. What it may do on NATS follows from the rest.

    `secrets` are prefixes of variables of the caller's environment that this service alone is given.
    """

    name: str
    number: int
    needs: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    """The services whose events it follows."""
    commands: tuple[CommandConsumer, ...] = ()
    """What it takes from its work queue."""
    sends: tuple[str, ...] = ()
    """The services to whose work queues it may send."""
    has_tokens: bool = False
    """It publishes the tokens of runs, and listens to them."""
    monitors: bool = False
    """It may list all streams with their sizes."""

    @property
    def module(self) -> str:
        """The package that `python -m` runs; also the name of its database and of its role."""
        return self.name.replace("-", "_")


PROVIDER_KEYS = ("OPENAI_", "ANTHROPIC_", "GEMINI_", "OLLAMA_")
RUNTIME, TOOLS, MODELS = "agent-runtime", "tool-executor", "llm-gateway"
ALL = (AUTHORITY, "cost-ledger", "consensus", TOOLS, MODELS, RUNTIME, EDGE)
SERVICES = (
    Service(AUTHORITY, 1, reads=(RUNTIME, TOOLS)),
    Service("cost-ledger", 5, needs=(AUTHORITY,), reads=(MODELS, TOOLS)),
    Service("consensus", 6, needs=(AUTHORITY,)),
    Service(TOOLS, 4, needs=("cost-ledger",)),
    Service(MODELS, 3, needs=("cost-ledger",), secrets=PROVIDER_KEYS),
    Service(
        RUNTIME,
        2,
        needs=(MODELS, TOOLS, "consensus"),
        reads=("consensus",),
        commands=(CommandConsumer(RUNTIME, "run", ack_wait_s=5.0),),
        sends=(RUNTIME,),
        has_tokens=True,
    ),
    Service(EDGE, 7, needs=(RUNTIME,), reads=ALL, monitors=True),
)
"""The one table of who needs, reads and sends what."""
EDGES = {EDGE: "http", MODELS: "models"}
"""What the address of a service that people reach is called among the endpoints."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Every limit of a system on one machine."""

    ready_timeout_s: float = 60.0
    """Until a program that was started must say that it is ready."""
    stop_grace_s: float = 15.0
    """Between asking a program to stop and killing it; longer than the services' own grace of 10 s."""
    start_attempts_max: int = 3
    """How often a service may end before it was ever ready."""
    backoff_initial_s: float = 0.5
    backoff_max_s: float = 30.0
    steady_s: float = 60.0
    """A program that was ready for so long starts its backoff anew."""
    ready_poll_s: float = 0.05
    health_poll_s: float = 2.0
    disk_free_bytes_min: int = 512 * MIB
    log_bytes_max: int = 64 * MIB
    """A log file that grows beyond it becomes <name>.log.1, in the place of an older one."""
    log_line_bytes_max: int = 64 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """One system: its data directory, the base of its ports and what runs.

    `environment` is that of the caller: programs get what they need of it, not all of it. `durable` is False for tests
    whose data need not survive a crash of the machine; PostgreSQL then does not wait for the disk.
    """

    data: Path
    port_base: int = PORT_BASE
    services: tuple[Service, ...] = SERVICES
    simulator: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    python: str = sys.executable
    limits: Limits = field(default_factory=Limits)
    durable: bool = True
    tls: bool = False
    """gRPC and NATS by mutual TLS, with the certificates of a development authority (certificates.py)."""

    @property
    def postgres_port(self) -> int:
        return self.port_base + POSTGRES_OFFSET

    @property
    def nats_port(self) -> int:
        return self.port_base + NATS_OFFSET

    @property
    def simulator_port(self) -> int:
        return self.port_base + SIMULATOR_OFFSET

    @property
    def edge_port(self) -> int:
        return self.port_base + EDGE_OFFSET

    @property
    def models_port(self) -> int:
        """llm-gateway's own edge: models alone, without the way through that of ws-gateway."""
        return self.port_base + MODELS_OFFSET

    @property
    def encrypt_at_rest(self) -> bool:
        """Whether logs and streams are encrypted on disk, by the same variable as servicekit's setting."""
        return asks_for_encryption(self.environment)

    @property
    def keys(self) -> Path:
        return self.data / "keys"

    @property
    def certificates(self) -> Path:
        return self.data / "tls"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    def archive(self, service: Service) -> Path:
        """Where `python -m eventlog archive` has to put the files of the service's log."""
        return self.data / "archive" / service.name

    def state(self, service: Service) -> Path:
        """A directory for files of a service that are not events."""
        return self.data / "state" / service.name

    def grpc_port(self, service: Service) -> int:
        return self.port_base + service.number

    def http_port(self, service: Service) -> int:
        return self.port_base + HTTP_OFFSET + service.number

    def grpc_address(self, service: Service) -> str:
        return f"127.0.0.1:{self.grpc_port(service)}"

    def edge_ports(self) -> Mapping[str, int]:
        """The ports that people and their SDKs use, by the service that listens there."""
        ports = {EDGE: self.edge_port, MODELS: self.models_port}
        return {service.name: ports[service.name] for service in self.services if service.name in ports}

    def ports(self) -> Mapping[str, int]:
        """Every port that the system listens on, by what listens there."""
        ports = {"postgres": self.postgres_port, "nats": self.nats_port}
        for service in self.services:
            ports[f"{service.name} gRPC"] = self.grpc_port(service)
            ports[f"{service.name} HTTP"] = self.http_port(service)
        ports |= {f"{name} edge": port for name, port in self.edge_ports().items()}
        if self.simulator:
            ports[SIMULATOR] = self.simulator_port
        return ports

    def endpoints(self) -> Mapping[str, str]:
        """The addresses that people and clients use, by name."""
        endpoints = {service.name: self.grpc_address(service) for service in self.services}
        endpoints["postgres"] = f"127.0.0.1:{self.postgres_port}"
        endpoints["nats"] = f"nats://127.0.0.1:{self.nats_port}"
        endpoints |= {EDGES[name]: f"http://127.0.0.1:{port}" for name, port in self.edge_ports().items()}
        if self.simulator:
            endpoints[SIMULATOR] = self.simulator_url
        return endpoints

    @property
    def simulator_url(self) -> str:
        return f"http://127.0.0.1:{self.simulator_port}"


def asks_for_encryption(environment: Mapping[str, str]) -> bool:
    return environment.get("SYNOD_ENCRYPT_AT_REST", "").strip().lower() in {"1", "true", "yes", "on"}


def default_data_directory(environment: Mapping[str, str]) -> Path:
    """SYNOD_DATA, else `synod` where this user's programs keep data (XDG Base Directory Specification)."""
    if given := environment.get("SYNOD_DATA"):
        return Path(given)
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "synod"
