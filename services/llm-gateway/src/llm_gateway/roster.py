"""The file of deployments and models (SYNOD_ROSTER_FILE): where models are served, under which keys, and what is known of
them beyond the price book. Read again whenever it, or a file that it names, has changed; nothing has to be restarted.

    {"deployments": [{"name": "openai-eu", "provider": "openai", "dialect": "openai-chat", "region": "eu", "weight": 2,
                      "base_url": "https://eu.api.openai.com/v1", "key_file": "/run/secrets/openai-eu.key"},
                     {"name": "openai-us", "provider": "openai", "dialect": "openai-chat", "key_sealed": "sealed.v1..."}],
     "models": [{"id": "openai/gpt-4o", "retires_on": "2027-03-31", "replacement": "openai/gpt-5-mini",
                 "lacks": ["temperature"], "unsupported": "reject", "hedge_after_s": 2.5, "hedge_pays_twice": true}],
     "aliases": {"small": "openai/gpt-5-mini"}}
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final

from eventlog.errors import KeyUnusable
from eventlog.master_keys import MasterKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm_gateway.errors import RosterInvalid
from llm_gateway.hedging import Hedge
from llm_gateway.keys import key_of, unseal
from llm_gateway.prices import PICO_PER_MILLIONTH, Price
from llm_gateway.providers.catalog import DialectName
from llm_gateway.providers.profile import Parameter, Unsupported

ROSTER_BYTES_MAX: Final = 4 * 1024 * 1024
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DeploymentSpec(_Frozen):
    """`key_file` holds the key as it is, `key_sealed` is encrypted under the master key; without both there is none."""

    name: Name
    provider: Name
    dialect: DialectName
    base_url: str = ""
    region: str = Field(default="", max_length=40)
    weight: int = Field(default=1, ge=1, le=1000)
    models: tuple[str, ...] = ("*",)
    key_file: Path | None = None
    key_sealed: str = ""

    @model_validator(mode="after")
    def _one_key(self) -> "DeploymentSpec":
        if self.key_file is not None and self.key_sealed:
            raise ValueError("give key_file or key_sealed, not both")
        return self


class ModelSpec(_Frozen):
    """What differs from what is known; None and empty change nothing. `unsupported` says what becomes of parameters that
    the model does not take, as in CapabilityProfile. `hedge_after_s` begins a second attempt at
    another deployment once one has shown nothing for so long; with `hedge_pays_twice` also where both are billed. `reasons`
    says whether the model thinks without being asked, which is charged where an answer's usage has to be estimated.
    """

    id: str = Field(pattern=r"^[^/\s]+/\S+$")
    context_tokens: int | None = Field(default=None, ge=1)
    output_tokens_max: int | None = Field(default=None, ge=1)
    input_usd_per_million: Dollars | None = None
    output_usd_per_million: Dollars | None = None
    deprecated: bool | None = None
    retires_on: date | None = None
    replacement: str = ""
    lacks: tuple[Parameter, ...] = ()
    unsupported: Unsupported | None = None
    hedge_after_s: float | None = Field(default=None, gt=0)
    hedge_pays_twice: bool = False
    reasons: bool | None = None

    @property
    def provider(self) -> str:
        return self.id.partition("/")[0]

    @property
    def name(self) -> str:
        return self.id.partition("/")[2]

    @property
    def hedge(self) -> Hedge | None:
        return None if self.hedge_after_s is None else Hedge(self.hedge_after_s, self.hedge_pays_twice)

    @property
    def price(self) -> Price | None:
        if self.input_usd_per_million is None or self.output_usd_per_million is None:
            return None
        rates = (self.input_usd_per_million, self.output_usd_per_million)
        return Price(*(int(rate * PICO_PER_MILLIONTH) for rate in rates))


class Roster(_Frozen):
    deployments: tuple[DeploymentSpec, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    aliases: Mapping[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _names_once(self) -> "Roster":
        for what, names in (
            ("deployment", [one.name for one in self.deployments]),
            ("model", [one.id for one in self.models]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{what} {', '.join(twice)} is there more than once")
        return self


@dataclass(frozen=True, slots=True)
class LoadedRoster:
    """A roster with its keys, by deployment."""

    roster: Roster = field(default_factory=Roster)
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)


class RosterFile:
    """The file, and whether it has changed since it was loaded last. `masters` unseal keys, the newest first."""

    def __init__(self, path: Path, masters: Sequence[MasterKey] = ()) -> None:
        self._path = path
        self._masters = masters
        self._seen = b""

    async def changed(self) -> LoadedRoster | None:
        """The roster if it, or a key in it, is another than the last one given. Raises RosterInvalid."""
        content = _content(self._path, str(self._path))
        try:
            roster = Roster.model_validate_json(content)
        except ValidationError as error:
            raise RosterInvalid(str(self._path), _first_problem(error)) from None
        files = {one.name: _content(one.key_file, one.name) for one in roster.deployments if one.key_file}
        try:
            keys = {one.name: key_of(str(one.key_file), files[one.name]) for one in roster.deployments if one.key_file}
            if not self._note(content, *files.values()):
                return None
            return LoadedRoster(roster, {**keys, **await self._unsealed(roster)})
        except KeyUnusable as error:
            raise RosterInvalid(str(self._path), str(error)) from None

    async def _unsealed(self, roster: Roster) -> Mapping[str, str]:
        """Raises KeyUnusable."""
        sealed = {one.name: one.key_sealed for one in roster.deployments if one.key_sealed}
        return {name: key_of(name, (await unseal(self._masters, name, key)).encode()) for name, key in sealed.items()}

    def _note(self, *contents: bytes) -> bool:
        """Whether the contents are others than before."""
        seen = b"".join(hashlib.sha256(content).digest() for content in contents)
        before, self._seen = self._seen, seen
        return seen != before


def _content(path: Path, source: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(ROSTER_BYTES_MAX)
    except OSError as error:
        raise RosterInvalid(source, f"{path} cannot be read: {error.strerror}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the roster'}: {first['msg']}"
