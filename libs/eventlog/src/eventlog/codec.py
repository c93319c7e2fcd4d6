"""Between event classes and stored bytes: JSON out, the newest class in.

The bytes stored are the bytes published. An old version is lifted by upcasters, one version at a time, before its class
sees it; stored bytes are never rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar
from uuid import UUID

from pydantic import BaseModel, JsonValue
from pydantic_core import SchemaSerializer
from synod.common.ids import uuid7
from synod.common.personal import data_subject_field, holds_personal_data

from eventlog.errors import SubjectLocked, UnknownEventType
from eventlog.records import NewEvent, StoredEvent
from eventlog.sealing import NO_KEYS, Keyring, SubjectKey, opened_json, sealed_json


class EventModel(Protocol):
    """A frozen pydantic model that knows its stable name and version, such as synod.common.event.Event."""

    VERSION: ClassVar[int]
    __pydantic_serializer__: ClassVar[SchemaSerializer]

    @classmethod
    def type_name(cls) -> str: ...

    @classmethod
    def model_validate_json(cls, json_data: bytes) -> Self: ...


E = TypeVar("E", bound=EventModel)

Upcaster = Callable[[dict[str, JsonValue]], dict[str, JsonValue]]
"""Lifts the fields of one version of a type to the next."""


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type that this release has no class for, as it is stored."""

    type: str
    version: int
    data: bytes


class _Kind(NamedTuple):
    """What is the same for every event of a class: looked up once, not for each event."""

    name: str
    version: int
    subject_field: str | None
    is_personal: bool

    @classmethod
    def of(cls, model: type[EventModel]) -> _Kind:
        subject_field, is_personal = None, False
        if issubclass(model, BaseModel):
            subject_field, is_personal = data_subject_field(model), holds_personal_data(model)
        return cls(model.type_name(), model.VERSION, subject_field, is_personal)

    def subject_of(self, event: EventModel) -> str | None:
        """The person the event is about, by its marked field."""
        return None if self.subject_field is None else getattr(event, self.subject_field)


class Codec(Generic[E]):
    """Encodes and decodes the given classes. `upcasters` maps (type, version) to what lifts that version by one.

    `sealed_below`: the log that is appended to seals what is personal (PersonalLog), so nothing is sealed here.
    """

    def __init__(
        self,
        classes: Iterable[type[E]],
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
        *,
        sealed_below: bool = False,
    ) -> None:
        self._classes = {cls.type_name(): cls for cls in classes}
        self._kinds: dict[type[EventModel], _Kind] = {cls: _Kind.of(cls) for cls in self._classes.values()}
        self._upcasters = dict(upcasters or {})
        self._sealed_below = sealed_below

    @property
    def types(self) -> frozenset[str]:
        """The names of the types known."""
        return frozenset(self._classes)

    def encode(
        self,
        event: E,
        *,
        id: UUID | None = None,
        at: datetime,
        data_subject: str | None = None,
        key: SubjectKey | None = None,
    ) -> NewEvent:
        """The event as it is stored, under a new UUIDv7 unless an id is given; UnknownEventType if not its own.

        `data_subject` is by default what the event's field marked DataSubject says. With fields marked Personal the
        `key` of that person is needed (Vault.key), and they are sealed; SubjectLocked without it.
        """
        kind = self._kinds.get(type(event))
        if kind is None:
            raise _not_of_this_codec(type(event))
        event_id, subject = id or uuid7(), data_subject or kind.subject_of(event)
        if kind.is_personal and not self._sealed_below:
            data = _sealed(event, event_id, subject, key)
        else:
            data = event.__pydantic_serializer__.to_json(event)  # model_dump_json makes text of the bytes
        return NewEvent(kind.name, kind.version, data, event_id, at, subject)

    def sealed_for(self, event: E) -> str | None:
        """The person whose key `encode` needs; None if it needs none. SubjectLocked if it does but
        names nobody.
        """
        kind = self._kinds.get(type(event))
        if self._sealed_below or kind is None or not kind.is_personal:
            return None
        subject = kind.subject_of(event)
        if subject is None:
            raise SubjectLocked(kind.name, "mark the field that names the person with DataSubject")
        return subject

    def decode(self, stored: StoredEvent, keys: Keyring = NO_KEYS) -> E | UnknownEvent:
        """The event in its newest form. A personal field whose key is not in `keys` (Vault.keys) is ERASED.

        UnknownEventType for a version newer than its class or without upcaster; pydantic.ValidationError for data that
        does not fit; SealBroken for a seal that does not fit its key.
        """
        cls = self._classes.get(stored.type)
        if cls is None:
            return UnknownEvent(stored.type, stored.type_version, stored.data)
        data = opened_json(stored, keys)
        if stored.type_version == cls.VERSION:
            return cls.model_validate_json(data)
        return cls.model_validate_json(self._lift(stored, data, cls.VERSION))

    def _lift(self, stored: StoredEvent, data: bytes, newest: int) -> bytes:
        if stored.type_version > newest:
            raise UnknownEventType(stored.type, stored.type_version, f"this release knows up to version {newest}")
        fields: dict[str, JsonValue] = json.loads(data)
        for version in range(stored.type_version, newest):
            upcast = self._upcasters.get((stored.type, version))
            if upcast is None:
                raise UnknownEventType(stored.type, version, f"no upcaster leads to version {version + 1}")
            fields = upcast(fields)
        return json.dumps(fields).encode()


def _sealed(event: EventModel, event_id: UUID, subject: str | None, key: SubjectKey | None) -> bytes:
    assert isinstance(event, BaseModel)
    if key is None or key.subject != subject:
        given = "none is given" if key is None else f"that of {key.subject} is given"
        raise SubjectLocked(event.type_name(), f"the key of {subject or 'its subject'} is needed, {given}")
    return sealed_json(event, event_id, key)


def _not_of_this_codec(cls: type[EventModel]) -> UnknownEventType:
    return UnknownEventType(cls.type_name(), cls.VERSION, f"{cls.__module__}.{cls.__qualname__} is not of this codec")
