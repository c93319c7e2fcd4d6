"""Configuration, read once from the environment into a frozen object."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from servicekit.limits import Limits

PREFIX = "SYNOD_"
FILE_SUFFIX = "_FILE"
FINISH_SHARE = 0.65
"""Of the time to stop: when commands and calls must have finished. In the rest their ends are recorded and published."""
S = TypeVar("S", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """What every service is told. A service subclasses it, gives `service` and its ports a default, and adds its own.

    Each field is read from SYNOD_<FIELD>; limits from SYNOD_LIMITS__<NAME>; peers as JSON. SYNOD_<FIELD>_FILE names a
    file that holds the value instead, so that no secret stands in an environment, which is inherited and printed.
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
    make_streams: bool = False
    """Make the streams of this service where nobody else does: in tests, or on a NATS of one's own. In a deployment the
    administrator makes them (nats_admin.py), and the service's user may not."""
    prepare_only: bool = False
    """Make what the service keeps in its database, fold its views up to date, and end without serving anybody: before the
    replicas of a new release are started."""
    operator_tenant: str = "local"
    """Whose principals may do what concerns every tenant: swap views, rotate data keys. By default the tenant that
    agent-registry creates at its first start."""
    auth_public_key_file: Path
    service_key_file: Path | None = None
    """The service's own API key, exchanged at agent-registry for tokens that identify it to its peers."""
    checkpoint_key_file: Path | None = None
    """Ed25519 private key (PEM) that signs checkpoints of the event log; without it none are made."""
    former_checkpoint_key_files: tuple[Path, ...] = ()
    """Ed25519 public keys (PEM, any number in a file) of before a rotation: what they signed is still believed."""
    master_key_file: Path | None = None
    """32 bytes in base64 that wrap the keys of personal data; without it what people write is stored in the clear, and
    health says so, or is refused where a service has no use for it in the clear."""
    require_sealing: bool = False
    """Refuse to start without `master_key_file`: nothing personal is ever stored in the clear."""
    former_master_key_files: tuple[Path, ...] = ()
    """Master keys of before a rotation, one in a line: what they wrapped is wrapped anew at the start, then they can go."""
    encrypt_at_rest: bool = False
    """Encrypt the payloads of the event log where they are stored; needs `master_key_file`."""
    archive_directory: Path | None = None
    """Where the oldest events are once they were archived; must be set before anybody archives."""
    tls_ca_file: Path | None = None
    """Certificates (PEM) of the authorities that are believed. With the two below, or none: gRPC and NATS by TLS."""
    tls_certificate_file: Path | None = None
    """The service's own certificate (PEM), which names it by the URI spiffe://synod/<service> and its DNS name."""
    tls_key_file: Path | None = None
    """The private key (PEM) of that certificate."""
    peers: dict[str, str] = {}
    """Service name to host:port, for example {"cost-ledger": "127.0.0.1:7105"}."""
    otlp_endpoint: str | None = None
    log_level: str = "INFO"
    shutdown_drain_s: float = Field(default=0, ge=0)
    """How long the service serves on after it was told to stop and says that it is not ready: where another replica takes
    over, callers go there meanwhile. Zero where there is none to wait for."""
    shutdown_grace_s: float = Field(default=10, gt=0)
    """In how long the service should have stopped from the moment it was told to, that drain included."""
    limits: Limits = Limits()

    @property
    def finish_s(self) -> float:
        """How long commands may take to finish after the drain."""
        return max(0.1, FINISH_SHARE * self.shutdown_grace_s - self.shutdown_drain_s)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _EnvironmentAndFiles(settings_cls)


class SettingsInvalid(Exception):
    """The environment does not make a configuration. `problems` has one readable line per variable."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def load_settings(settings_type: type[S]) -> S:
    """Read the environment. Raises SettingsInvalid naming every variable at fault, not only the first."""
    try:
        return settings_type()
    except _FilesInvalid as error:
        raise SettingsInvalid(error.problems) from error
    except ValidationError as error:
        raise SettingsInvalid(tuple(_problem(item["loc"], item["msg"]) for item in error.errors())) from error


def _problem(location: tuple[int | str, ...], message: str) -> str:
    if not location:  # of several together: the message names them
        return message.removeprefix("Value error, ")
    variable = PREFIX + "__".join(str(part) for part in location).upper()
    if variable not in os.environ and message == "Field required":
        return f"{variable} is not set"
    return f"{variable}: {message}"


class _FilesInvalid(Exception):
    """Variables that name files whose contents cannot be had; no ValueError, which the settings would wrap."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _EnvironmentAndFiles(EnvSettingsSource):
    """The environment, in which <NAME>_FILE stands for <NAME> with that file's content, without its last line end.

    A field that is itself a path, such as signing_key_file, has the variable of that name to itself.
    """

    def _load_env_vars(self) -> Mapping[str, str | None]:
        variables = super()._load_env_vars()
        contents: dict[str, str | None] = {}
        problems: list[str] = []
        for name in self._kept_in_files(variables):
            try:
                contents[name] = _content(name, variables)
            except _FilesInvalid as error:
                problems.extend(error.problems)
        if problems:
            raise _FilesInvalid(tuple(problems))
        return {**variables, **contents}

    def _kept_in_files(self, variables: Mapping[str, str | None]) -> Iterator[str]:
        """The variables of fields, in lower case, that a variable with the suffix stands for."""
        fields = self.settings_cls.model_fields.items()
        known = {variable for name, field in fields for _, variable, _ in self._extract_field_info(field, name)}
        for name in sorted(known):
            file_variable = name + FILE_SUFFIX.lower()
            if file_variable in variables and file_variable not in known:
                yield name


def _content(name: str, variables: Mapping[str, str | None]) -> str:
    file_variable = name + FILE_SUFFIX.lower()
    if name in variables:
        raise _FilesInvalid((f"{name.upper()} and {file_variable.upper()} are both set; set one of them",))
    path = Path(variables[file_variable] or "")
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{file_variable.upper()}: {path} cannot be read ({error})"
        raise _FilesInvalid((problem,)) from error
