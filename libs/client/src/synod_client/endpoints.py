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
_FIRST_PORT = 7101


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
        """SYNOD_API_KEY, SYNOD_HOST, SYNOD_PORT_BASE, SYNOD_NATS_URL; else ``<data>/endpoints.json``."""
        folder = data or Path(environment.get("SYNOD_DATA", ".synod"))
        written = _read(folder / "endpoints.json")
        host = environment.get("SYNOD_HOST", "127.0.0.1")
        services = written.get("services") or _default_services(
            host, int(environment.get("SYNOD_PORT_BASE", _FIRST_PORT))
        )
        key = environment.get("SYNOD_API_KEY") or str(written.get("api_key", "")) or _key_file(folder)
        return cls(
            services=dict(services),
            nats=environment.get("SYNOD_NATS_URL") or str(written.get("nats", "nats://127.0.0.1:7142")),
            edge=environment.get("SYNOD_EDGE_URL") or str(written.get("edge", f"http://{host}:8080")),
            api_key=key,
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


def _default_services(host: str, first_port: int) -> dict[str, str]:
    return {service: f"{host}:{first_port + index}" for index, service in enumerate(SERVICES)}


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise TryAgain(f"{path} cannot be read ({error}); remove it and run `synod up` again") from error
    return dict(found)


def _key_file(folder: Path) -> str:
    path = folder / "keys" / "dev.key"
    return path.read_text().strip() if path.is_file() else ""
