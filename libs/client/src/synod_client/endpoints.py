"""Where Synod is: the addresses of the services and the key, from the environment or from what ``synod up`` wrote."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from synod_client.errors import NotAllowed, TryAgain

SERVICES = (
    "agent-registry",
    "agent-runtime",
    "llm-gateway",
    "tool-executor",
    "cost-ledger",
    "consensus",
    "ws-gateway",
)
_PORT_BASE, _NATS_OFFSET, _EDGE_OFFSET = 7100, 42, 980


@dataclass(frozen=True, slots=True)
class Endpoints:
    """``services`` maps each service to host:port; ``data`` the directory of a system on this machine, if any."""

    services: Mapping[str, str]
    nats: str
    edge: str
    api_key: str
    data: Path | None = None

    @classmethod
    def discover(cls, environment: Mapping[str, str] = os.environ, data: Path | None = None) -> "Endpoints":
        """SYNOD_API_KEY, SYNOD_HOST, SYNOD_PORT_BASE and SYNOD_NATS_URL, else what a system here wrote to its directory."""
        folder = data or default_data_directory(environment)
        written = _read(folder / "system.json")
        host = environment.get("SYNOD_HOST", "127.0.0.1")
        base = int(environment.get("SYNOD_PORT_BASE", _PORT_BASE))
        return cls(
            services={name: written.get(name, address) for name, address in _default_services(host, base).items()},
            nats=environment.get("SYNOD_NATS_URL") or written.get("nats", f"nats://{host}:{base + _NATS_OFFSET}"),
            edge=environment.get("SYNOD_EDGE_URL") or written.get("http", f"http://{host}:{base + _EDGE_OFFSET}"),
            api_key=environment.get("SYNOD_API_KEY") or _key_file(folder),
            data=folder if folder.is_dir() else None,
        )

    def address(self, service: str) -> str:
        try:
            return self.services[service]
        except KeyError:
            raise TryAgain(
                f"no address is known for '{service}'; known are {', '.join(sorted(self.services))}"
            ) from None

    def required_key(self) -> str:
        if not self.api_key:
            raise NotAllowed(
                "no API key: set SYNOD_API_KEY, or start a system here with `synod up`, which writes one", "KEY_MISSING"
            )
        return self.api_key


def default_data_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """SYNOD_DATA, else where this user's programs keep data (XDG Base Directory Specification)."""
    if given := environment.get("SYNOD_DATA"):
        return Path(given)
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "synod"


def _default_services(host: str, base: int) -> dict[str, str]:
    return {service: f"{host}:{base + number}" for number, service in enumerate(SERVICES, start=1)}


def _read(path: Path) -> dict[str, str]:
    """The addresses of the system that is up on a data directory; empty when none is."""
    try:
        return dict(json.loads(path.read_text())["endpoints"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise TryAgain(f"{path} cannot be read ({error}); stop the system, remove the file, start it again") from error


def _key_file(folder: Path) -> str:
    path = folder / "keys" / "dev.key"
    return path.read_text().strip() if path.is_file() else ""
