"""Which of the library's settings are refused, with the measurement that says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from eventsourcing.utils import strtobool

from eventlog.eventsourcing.errors import UnsafeRecorder

_FUNCTIONS_KEY: Final = "POSTGRES_ENABLE_DB_FUNCTIONS"
_FUNCTIONS_REASON: Final = (
    "the database functions insert without locking the table, so ids become visible out of order; a reader that follows"
    " them missed 12,957 of 102,965 events (eventsourcing 9.5.6). Unset it"
)
_TOPIC_KEYS: Final = (
    "PERSISTENCE_MODULE",
    "INFRASTRUCTURE_FACTORY",
    "FACTORY_TOPIC",
    "APPLICATION_RECORDER_TOPIC",
    "PROCESS_RECORDER_TOPIC",
)
_DCB_MODULE: Final = "eventsourcing.dcb.postgres"
_DCB_REASON: Final = (
    "the DCB recorder on PostgreSQL does not serialise unconditional appends; a reader that follows it missed 32,692 of"
    " 72,033 events (eventsourcing 9.5.6). Use eventlog.eventsourcing"
)


def refuse_unsafe(environment: Mapping[str, str]) -> None:
    """UnsafeRecorder if a setting, also one of a single application (`ORDERS_...`), selects what loses events."""
    for key, value in environment.items():
        if _is(key, _FUNCTIONS_KEY) and strtobool(value or "no"):
            raise UnsafeRecorder(key, value, _FUNCTIONS_REASON)
        if value.startswith(_DCB_MODULE) and any(_is(key, topic_key) for topic_key in _TOPIC_KEYS):
            raise UnsafeRecorder(key, value, _DCB_REASON)


def _is(key: str, setting: str) -> bool:
    """Whether the key is the setting, or the setting of one application."""
    return key == setting or key.endswith(f"_{setting}")
