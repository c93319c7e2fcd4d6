"""Configuration, read once from the environment into a frozen object."""

import os
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from servicekit.limits import Limits

PREFIX = "SYNOD_"
S = TypeVar("S", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """What every service is told. A service subclasses it, gives `service` and its ports a default, and adds its own.

    Each field is read from SYNOD_<FIELD>; limits from SYNOD_LIMITS__<NAME>; peers as JSON.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="ignore")

    service: str = Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")
    grpc_host: str = "127.0.0.1"
    grpc_port: int = Field(ge=0, le=65535)
    http_port: int = Field(ge=0, le=65535)
    postgres_dsn: SecretStr
    nats_url: str
    nats_user: str | None = None
    nats_password: SecretStr | None = None
    auth_public_key_file: Path
    service_key_file: Path | None = None
    """The service's own API key, exchanged at agent-registry for tokens that identify it to its peers."""
    peers: dict[str, str] = {}
    """Service name to host:port, for example {"cost-ledger": "127.0.0.1:7105"}."""
    otlp_endpoint: str | None = None
    log_level: str = "INFO"
    shutdown_grace_s: float = Field(default=10, gt=0)
    limits: Limits = Limits()


class SettingsInvalid(Exception):
    """The environment does not make a configuration. `problems` has one readable line per variable."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def load_settings(settings_type: type[S]) -> S:
    """Read the environment. Raises SettingsInvalid naming every variable at fault, not only the first."""
    try:
        return settings_type()
    except ValidationError as error:
        raise SettingsInvalid(tuple(_problem(item["loc"], item["msg"]) for item in error.errors())) from error


def _problem(location: tuple[int | str, ...], message: str) -> str:
    variable = PREFIX + "__".join(str(part) for part in location).upper()
    if variable not in os.environ and message == "Field required":
        return f"{variable} is not set"
    return f"{variable}: {message}"
