"""Where Synod is: the addresses of the services and the secrets, from the environment or from what ``synod up`` wrote."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from synod_client.errors import InvalidInput, NotAllowed, TryAgain
from synod_client.tls import NAMES, Certificates

SERVICES: Final = (
    "agent-registry",
    "agent-runtime",
    "llm-gateway",
    "tool-executor",
    "cost-ledger",
    "consensus",
    "ws-gateway",
)
Login = Literal["observer", "client"]
"""Users of NATS: observer reads the events of all services, client carries tasks to agents outside and their answers."""
LOGINS: Final[tuple[Login, ...]] = ("observer", "client")
_PORT_BASE, _NATS_OFFSET, _EDGE_OFFSET, _MODELS_OFFSET = 7100, 42, 980, 981
_PORT_BASE_MAX = 65535 - _MODELS_OFFSET


@dataclass(frozen=True, slots=True)
class Endpoints:
    """``services`` maps each service to host:port; ``data`` is the directory of a system on this machine, if any.

    ``nats`` is the address without a login, ``nats_logins`` maps users of NATS to addresses that contain their password.
    """

    services: Mapping[str, str]
    nats: str
    edge: str
    api_key: str = field(repr=False)
    data: Path | None = None
    nats_logins: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Certificates | None = None
    """With them gRPC and NATS are spoken by TLS, without them in the clear."""
    models: str = ""
    """llm-gateway's own HTTP edge: the endpoints under /v1 as at ``edge``, by the shorter way; "" if it is not known."""

    @classmethod
    def discover(cls, environment: Mapping[str, str] = os.environ, data: Path | None = None) -> "Endpoints":
        """Each value from the environment, else from what a system on this machine wrote, else the default.

        SYNOD_API_KEY, SYNOD_HOST, SYNOD_PORT_BASE, SYNOD_NATS_URL (with user and password, for every use of NATS),
        SYNOD_EDGE_URL, SYNOD_MODELS_URL, and SYNOD_TLS_CA_FILE, SYNOD_TLS_CERTIFICATE_FILE and SYNOD_TLS_KEY_FILE together;
        SYNOD_HOST and SYNOD_PORT_BASE name another system than the one here. Raises InvalidInput for a port base that is
        none, or some of the TLS files only, TryAgain for a system.json that cannot be read.
        """
        folder = data or default_data_directory(environment)
        written = _Written.read(folder)
        elsewhere = "SYNOD_HOST" in environment or "SYNOD_PORT_BASE" in environment
        known = {} if elsewhere else written.endpoints
        host, base = environment.get("SYNOD_HOST", "127.0.0.1"), _port_base(environment)
        nats = environment.get("SYNOD_NATS_URL")
        return cls(
            services={name: known.get(name, address) for name, address in _default_services(host, base).items()},
            nats=nats or known.get("nats", f"nats://{host}:{base + _NATS_OFFSET}"),
            edge=environment.get("SYNOD_EDGE_URL") or known.get("http", f"http://{host}:{base + _EDGE_OFFSET}"),
            api_key=environment.get("SYNOD_API_KEY") or written.secret("dev_key_file", "dev.key"),
            data=folder if folder.is_dir() else None,
            nats_logins={} if nats or elsewhere else written.logins(),
            tls=Certificates.named(_tls_files(environment) or ({} if elsewhere else written.files)),
            models=_named_models(environment, known) or f"http://{host}:{base + _MODELS_OFFSET}",
        )

    def address(self, service: str) -> str:
        """host:port of a service. Raises InvalidInput for one that is not known."""
        try:
            return self.services[service]
        except KeyError:
            raise InvalidInput(
                f"there is no service '{service}'; services are {', '.join(self.services)}", "UNKNOWN_SERVICE"
            ) from None

    def service_at(self, text: str) -> str:
        """The service whose address stands in a text, such as an error message of gRPC; else ""."""
        return next((name for name, address in self.services.items() if address in text), "")

    def nats_url(self, login: Login) -> str:
        """Where to connect to NATS as this user."""
        return self.nats_logins.get(login, self.nats)

    def required_key(self) -> str:
        """The API key. Raises NotAllowed without one."""
        if not self.api_key:
            raise NotAllowed(
                "no API key: set SYNOD_API_KEY, or start a system on this machine with `synod up`, which writes one "
                "to its data directory (another directory: --data or SYNOD_DATA)",
                "KEY_MISSING",
            )
        return self.api_key


def administrator_url(data: Path | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """NATS with the login that makes streams, of a system on this machine. Raises NotAllowed where there is none."""
    folder = data or default_data_directory(environment)
    if url := _Written.read(folder).secret("nats_administrator_file", "administrator.nats"):
        return url
    raise NotAllowed(
        f"{folder} has no login of NATS's administrator; name the directory of a system with --data, or the address with --url",
        "NATS_LOGIN",
    )


def default_data_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """SYNOD_DATA, else where this user's programs keep data (XDG Base Directory Specification)."""
    if given := environment.get("SYNOD_DATA"):
        return Path(given)
    return Path(environment.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "synod"


@dataclass(frozen=True, slots=True)
class _Written:
    """What a system that is up wrote to system.json in its data directory; nothing when none is up."""

    folder: Path
    endpoints: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "_Written":
        path = folder / "system.json"
        try:
            document = json.loads(path.read_text())
            files = {name: str(file) for name, file in document.items() if name.endswith("_file")}
            return cls(folder, dict(document["endpoints"]), files)
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TryAgain(
                f"{path} is not what `synod up` writes ({error!r}); stop the system, remove the file, start it again",
                "SYSTEM_FILE_BROKEN",
            ) from error

    def logins(self) -> dict[str, str]:
        found = {login: self.secret(f"nats_{login}_file", f"{login}.nats") for login in LOGINS}
        return {login: url for login, url in found.items() if url}

    def secret(self, name: str, default: str) -> str:
        """The content of a file that system.json names, else of the one that systems keep here; "" if there is none."""
        path = Path(self.files.get(name, self.folder / "keys" / default))
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise NotAllowed(
                f"{path} cannot be read ({error.strerror}); it belongs to who started the system"
            ) from error


def _tls_files(environment: Mapping[str, str]) -> dict[str, str]:
    variables = {name: f"SYNOD_{name.upper()}" for name in NAMES}
    return {name: environment[variable] for name, variable in variables.items() if environment.get(variable)}


def _port_base(environment: Mapping[str, str]) -> int:
    text = environment.get("SYNOD_PORT_BASE", str(_PORT_BASE))
    if not text.isdecimal() or not 1 <= int(text) <= _PORT_BASE_MAX:
        raise InvalidInput(f"SYNOD_PORT_BASE='{text}' is not a port from 1 to {_PORT_BASE_MAX}", "PORT_BASE_INVALID")
    return int(text)


def _named_models(environment: Mapping[str, str], known: Mapping[str, str]) -> str:
    """Where only the edge for everything has a name, models are asked there: it has them too, and may be all that is open."""
    named = environment.get("SYNOD_MODELS_URL") or environment.get("SYNOD_EDGE_URL")
    return named or known.get("models") or known.get("http", "")


def _default_services(host: str, base: int) -> dict[str, str]:
    return {service: f"{host}:{base + number}" for number, service in enumerate(SERVICES, start=1)}
