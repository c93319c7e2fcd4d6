"""What the clients of a log asked for and were told, and what was found when all was over."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

HAPPENED = "Happened"
POISON = "Poison"
"""The type of an event that is stored and that the view chokes on."""
FORBIDDEN = "Forbidden"
"""The type of an event that the database refuses to store."""


@dataclass(frozen=True, slots=True)
class Write:
    """Events for one stream; `expected` is the version it must be at, None if any will do. Ids are hex, 32 digits."""

    stream: str
    expected: int | None
    ids: tuple[str, ...]
    type: str = HAPPENED


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be stored whole or not at all."""

    writes: tuple[Write, ...]

    @property
    def key(self) -> str:
        return self.writes[0].ids[0]

    def ids(self) -> Iterator[str]:
        for write in self.writes:
            yield from write.ids


@dataclass(frozen=True, slots=True)
class Acked:
    """Stored: the position of the last event and the version of each write's stream (empty where a log tells none)."""

    position: int
    versions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Not stored, said the log. `versions` are the streams' true versions, where a conflict told them."""

    reason: str
    versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unknown:
    """The log could not say, or was not there to say it."""

    reason: str


Answer = Acked | Refused | Unknown


@dataclass(slots=True)
class Told:
    """One request over all its attempts, which repeat the same ids. Times are of one monotonic clock, in seconds.

    The last answer counts, and an acknowledgement for ever: a log that acknowledged may not take it back. `step` is the
    number of the fault during which the answer came.
    """

    request: Request
    begun_s: float
    answer: Answer = Unknown("no answer")
    ended_s: float = float("inf")
    step: int = 0

    def attempt(self) -> None:
        """It is asked again."""
        if not isinstance(self.answer, Acked):
            self.answer = Unknown("no answer")

    def told(self, answer: Answer, at_s: float, step: int) -> None:
        if not isinstance(self.answer, Acked):
            self.answer, self.ended_s, self.step = answer, at_s, step


@dataclass(frozen=True, slots=True)
class Entry:
    """One event as found: in the log, in the stream or by a tail. `hash` is empty where a log has none."""

    position: int
    id: str
    stream: str = ""
    version: int = 0
    type: str = HAPPENED
    hash: str = ""


@dataclass(frozen=True, slots=True)
class ViewFound:
    """A view at the end: its tally of events by stream, what it parked, and whether it equals one folded anew."""

    tally: Mapping[str, int]
    parked: tuple[int, ...]
    equals_rebuilt: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a round leaves behind. None where the log under test has no such thing."""

    told: tuple[Told, ...]
    log: tuple[Entry, ...]
    tails: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    stream: tuple[Entry, ...] | None = None
    view: ViewFound | None = None
    chain_ok: bool | None = None
    versioned: bool = True
    """Whether the log numbers the events of a stream."""
