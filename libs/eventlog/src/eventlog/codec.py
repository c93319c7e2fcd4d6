"""Between event classes and stored bytes: JSON out, the newest class in.

The bytes stored are the bytes published. An old version is lifted by upcasters, one version at a time, before its class
sees it; stored bytes are never rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Generic, Protocol, Self, TypeVar
from uuid import UUID

from pydantic import JsonValue
from synod.common.ids import uuid7

from eventlog.errors import UnknownEventType
from eventlog.records import NewEvent, StoredEvent


class EventModel(Protocol):
    """A frozen pydantic model that knows its stable name and version, such as synod.common.event.Event."""

    VERSION: ClassVar[int]

    @classmethod
    def type_name(cls) -> str: ...

    @classmethod
    def model_validate_json(cls, json_data: bytes) -> Self: ...

    def model_dump_json(self) -> str: ...


E = TypeVar("E", bound=EventModel)

Upcaster = Callable[[dict[str, JsonValue]], dict[str, JsonValue]]
"""Lifts the fields of one version of a type to the next."""


@dataclass(frozen=True, slots=True)
class UnknownEvent:
    """An event of a type that this release has no class for, as it is stored."""

    type: str
    version: int
    data: bytes


class Codec(Generic[E]):
    """Encodes and decodes the given classes. `upcasters` maps (type, version) to what lifts that version by one."""

    def __init__(self, classes: Iterable[type[E]], upcasters: Mapping[tuple[str, int], Upcaster] | None = None) -> None:
        self._classes = {cls.type_name(): cls for cls in classes}
        self._upcasters = dict(upcasters or {})

    @property
    def types(self) -> frozenset[str]:
        """The names of the types known."""
        return frozenset(self._classes)

    def encode(self, event: E, *, id: UUID | None = None, at: datetime, data_subject: str | None = None) -> NewEvent:
        """The event as it is stored, under a new UUIDv7 unless an id is given; UnknownEventType if not its own."""
        cls = type(event)
        name = cls.type_name()
        if self._classes.get(name) is not cls:
            raise UnknownEventType(name, cls.VERSION, f"{cls.__module__}.{cls.__qualname__} is not of this codec")
        return NewEvent(name, cls.VERSION, event.model_dump_json().encode(), id or uuid7(), at, data_subject)

    def decode(self, stored: StoredEvent) -> E | UnknownEvent:
        """The event in its newest form. UnknownEventType for a version newer than its class or without upcaster;
        pydantic.ValidationError for data that does not fit.
        """
        cls = self._classes.get(stored.type)
        if cls is None:
            return UnknownEvent(stored.type, stored.type_version, stored.data)
        if stored.type_version == cls.VERSION:
            return cls.model_validate_json(stored.data)
        return cls.model_validate_json(self._lift(stored, cls.VERSION))

    def _lift(self, stored: StoredEvent, newest: int) -> bytes:
        if stored.type_version > newest:
            raise UnknownEventType(stored.type, stored.type_version, f"this release knows up to version {newest}")
        fields: dict[str, JsonValue] = json.loads(stored.data)
        for version in range(stored.type_version, newest):
            upcast = self._upcasters.get((stored.type, version))
            if upcast is None:
                raise UnknownEventType(stored.type, version, f"no upcaster leads to version {version + 1}")
            fields = upcast(fields)
        return json.dumps(fields).encode()
