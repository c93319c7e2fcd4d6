"""The seam to time: whoever opens a log may bring a clock of his own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time; owned by the caller, never fails."""

    def now(self) -> datetime:
        """The present as an aware UTC datetime."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)
