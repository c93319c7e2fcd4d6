"""What a log tells of its work, to whoever counts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GroupCommitted:
    """One transaction: the requests it answered, their events, and the time from taking them to their being durable.

    `types` counts, by type, the events that were stored; `events` also those refused, as by a version conflict.
    """

    requests: int
    events: int
    seconds: float
    types: Mapping[str, int] = field(default_factory=dict)


class Observer(Protocol):
    """Is called once a transaction, soon after its callers were answered: it must be quick and must not raise."""

    def committed(self, group: GroupCommitted) -> None: ...


class Unobserved:
    """Counts nothing."""

    def committed(self, group: GroupCommitted) -> None:
        """Nobody asked."""
