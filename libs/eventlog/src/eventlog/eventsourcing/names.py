"""Between the library's texts and the tokens of a log.

Originator ids and topics may be any text; a log takes tokens, because they become subjects. A text that is no token yet
is escaped byte by byte (`_2E` is a dot), reversibly. A registered type name needs no escape and outlives every move of
its class.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from eventsourcing.utils import get_topic

from eventlog.records import require_token

_PLAIN = re.compile(r"[A-Za-z0-9-]*")
_ESCAPED = re.compile(r"_([0-9A-F]{2})")


@lru_cache(maxsize=65_536)
def to_token(text: str) -> str:
    """The text as a token; the text itself if it consists of letters, digits and hyphens."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(char if _PLAIN.fullmatch(char) else _escaped(char) for char in text)


@lru_cache(maxsize=65_536)
def from_token(token: str) -> str:
    """The text that `to_token` made the token of."""
    if "_" not in token:
        return token
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), token).encode("latin-1").decode()


def _escaped(char: str) -> str:
    return "".join(f"_{byte:02X}" for byte in char.encode())


class TypeNames:
    """Stable names of event types, beside the topics by which the library finds their classes."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._topics: dict[str, str] = {}

    def register(self, name: str, topic: str, *formerly: str) -> None:
        """Store events of `topic` under `name`, and read `name` as `topic`; former topics are stored under it too.

        ValueError if the name is no token, looks escaped, or if name or topic are registered otherwise.
        """
        require_token("type name", name)
        if _ESCAPED.search(name):
            raise ValueError(f"type name {name!r} looks escaped: no _ before two of 0-9 A-F, please")
        if self._topics.setdefault(name, topic) != topic:
            raise ValueError(f"type name {name!r} stands for {self._topics[name]} already")
        for each in (topic, *formerly):
            if self._names.setdefault(each, name) != name:
                raise ValueError(f"topic {each} is stored as {self._names[each]!r} already")

    def type_of(self, topic: str) -> str:
        """The type under which events of the topic are stored."""
        return self._names.get(topic) or to_token(topic)

    def topic_of(self, type_name: str) -> str:
        """The topic that leads to the class of a stored type."""
        return self._topics.get(type_name) or from_token(type_name)


TYPE_NAMES: Final = TypeNames()
"""The names of this process, beside the library's topic cache, which is one for a process too."""


def register_type(name: str, event_class: type, *formerly: str) -> None:
    """Give a class of events its stable name in logs; `formerly` are topics it had before. ValueError as `register`.

    >>> register_type("account-opened", Account.Opened, "bank.domain:Account.Opened")  # doctest: +SKIP
    """
    TYPE_NAMES.register(name, get_topic(event_class), *formerly)
