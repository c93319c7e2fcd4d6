"""The base of every event that Synod publishes."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Event(BaseModel):
    """A fact: frozen, past tense, versioned. The JSON bytes stored are the bytes published.

    Unknown fields are ignored, so that a reader of an older version survives a newer writer.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_bytes="base64", val_json_bytes="base64")

    AGGREGATE: ClassVar[str]
    VERSION: ClassVar[int] = 1

    @classmethod
    def type_name(cls) -> str:
        """The stable name in the log and on the wire, independent of where the class lives."""
        return cls.__name__


class Value(BaseModel):
    """A part of an event or of a definition: frozen, compared by content."""

    model_config = ConfigDict(frozen=True, extra="ignore")
