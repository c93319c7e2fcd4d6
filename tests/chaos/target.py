"""The log under test, as the harness sees it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .history import Answer, Entry, Request
from .workload import Mix


class Target(Protocol):
    """A log opened by one process. The harness closes what it opened, or kills the process."""

    async def append(self, request: Request, again: bool = False) -> Answer:
        """What the log says to a request: never raises for a fault of the log, that is an Unknown.

        `again`: an earlier attempt has an unknown outcome; a log without idempotent appends has to look for itself.
        """
        ...

    def tail(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        """Everything after a position, then what comes, for ever, as the log's own way of following gives it."""
        ...

    async def read(self) -> Sequence[Entry]:
        """The whole log in its order."""
        ...

    async def verify(self) -> bool | None:
        """Whether the log finds itself whole; None if it cannot say."""
        ...

    async def close(self) -> None:
        """Finish what was begun, release everything."""
        ...


class Clock(Protocol):
    """Where a log may take its time from: `offset_s` is how wrong it goes."""

    offset_s: float


@dataclass(frozen=True, slots=True)
class TargetKind:
    """One kind of log. `open` gets the database's address, a clock that may be wrong, and a directory for files."""

    name: str
    open: Callable[[str, Clock, Path], Awaitable[Target]]
    mix: Mix = field(default_factory=Mix)
    whole: bool = False
    """With relays, stream, view and chain: everything that only our log has."""
    versioned: bool = True
    commits: bool = True
    """Whether an append is a transaction of several round trips, in which a writer can be caught, and whose COMMIT the
    proxy can tell on the wire from a read."""
    content: bytes = b""
    """What the messages of a writer that store events contain, and no other; empty if that cannot be told."""
    forbid: str = ""
    """SQL that makes the database refuse events of the type Forbidden."""
