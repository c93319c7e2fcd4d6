"""What a log tells of its work, to whoever counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GroupCommitted:
    """One transaction: the requests it answered, their events, and the time from taking them to their being durable."""

    requests: int
    events: int
    seconds: float


class Observer(Protocol):
    """Is called on the writer's way, once a transaction: it must be quick and must not raise."""

    def committed(self, group: GroupCommitted) -> None: ...


class Unobserved:
    """Counts nothing."""

    def committed(self, group: GroupCommitted) -> None:
        """Nobody asked."""
