"""Configuration, read once from the environment into a frozen object."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from servicekit.limits import Limits

PREFIX = "SYNOD_"
FILE_SUFFIX = "_FILE"
FINISH_SHARE = 0.65
"""Of the time to stop: when commands and calls must have finished. In the rest their ends are recorded and published."""
VALUE_CHARS_MAX: Final = 80
"""Of a wrong value, in the message that names it."""
S = TypeVar("S", bound="ServiceSettings")
Place = tuple[int | str, ...]
_JSON_KINDS: Final[Mapping[str, str]] = {
    "tuple_type": "array",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
    "dataclass_type": "object",
}
"""What a value is asked to be that is given as JSON."""


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
        raise SettingsInvalid(tuple(_problem(settings_type, item) for item in error.errors())) from error


def _problem(settings_type: type[ServiceSettings], error: Mapping[str, Any]) -> str:
    """The variable that somebody wrote, the place in its value, the value unless it is a secret, and what to do."""
    place: Place = error["loc"]
    if not place:  # of several together: the message names them
        return _sentence(error)
    # A field that bears the name of another program's variable is placed under that.
    depth, variable = _origin(place, PREFIX if place[0] in settings_type.model_fields else "")
    where = variable + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place[depth:])
    if error["type"] == "missing":
        return f"{where} is not set"
    problem = _not_json(error) or _no_field(settings_type, error) or _sentence(error)
    if variable.endswith(FILE_SUFFIX) or _is_secret(settings_type, place):
        return f"{where}: {problem}"
    return f"{where} = {_shown(error['input'])}: {problem}"


def _sentence(error: Mapping[str, Any]) -> str:
    message: str = error["msg"]
    if error["type"] == "value_error":
        return message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _origin(place: Place, prefix: str) -> tuple[int, str]:
    """How many steps of a place the name of the variable has that it was read from, and that name."""
    present = {name.upper() for name in os.environ}
    for depth in range(len(place), 0, -1):
        name = prefix + "__".join(map(str, place[:depth])).upper()
        for variable in (name, name + FILE_SUFFIX):
            if variable in present:
                return depth, variable
    return 1, prefix + str(place[0]).upper()


def _is_secret(settings_type: type[ServiceSettings], place: Place) -> bool:
    return any(
        SecretStr in (field.annotation, *get_args(field.annotation))
        for name, field in settings_type.model_fields.items()
        if place[0] in (name, field.validation_alias, *_aliases(field))
    )


def _aliases(field: FieldInfo) -> Sequence[object]:
    return getattr(field.validation_alias, "choices", ())


def _not_json(error: Mapping[str, Any]) -> str:
    """Empty for what is JSON, or is not asked to be."""
    kind, value = _JSON_KINDS.get(error["type"]), error["input"]
    if kind is None:
        return ""
    try:
        if isinstance(value, str):
            json.loads(value)
    except ValueError as malformed:
        return f"is not JSON ({malformed}); give a JSON {kind}"
    return f"must be a JSON {kind}"


def _no_field(settings_type: type[ServiceSettings], error: Mapping[str, Any]) -> str:
    if error["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return ""
    *path, name = error["loc"]
    known = _fields_at(settings_type, path)
    near = get_close_matches(str(name), known, n=2) or known
    return f"is no field here; there is {', '.join(near)}" if near else "is no field here; leave it out"


def _fields_at(kind: Any, path: Sequence[int | str]) -> Sequence[str]:
    """The names of the fields of what stands at that place in the settings; none where it has no fields."""
    for step in path:
        kind = _fields(kind).get(step) or next(iter(get_args(kind)), None)
    return tuple(map(str, _fields(kind)))


def _fields(kind: Any) -> Mapping[int | str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"


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

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """What is no JSON is left as it is: its field refuses it by name, together with all else that is wrong."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value

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
