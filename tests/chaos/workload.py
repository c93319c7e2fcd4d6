"""What a writer asks for: a seeded mix of requests that fits any log. Pure but for what it has learnt of versions."""

from dataclasses import dataclass, field
from random import Random

from .history import HAPPENED, Acked, Answer, Refused, Request, Write

SHARED_STREAMS = tuple(f"shared-{number}" for number in range(4))
"""Streams that all writers contend for."""
EVENTS_MAX = 5


@dataclass(frozen=True, slots=True)
class Mix:
    """How often what is asked for, as weights; 0 for what the log under test cannot do."""

    new_stream: int = 4
    own_stream: int = 4
    contended: int = 2
    any_version: int = 2
    several_streams: int = 3


@dataclass(slots=True)
class Workload:
    """The requests of one writer. `name` is unlike that of every other writer, dead ones included."""

    name: str
    seed: str
    mix: Mix = field(default_factory=Mix)
    _random: Random = field(init=False)
    _versions: dict[str, int] = field(default_factory=dict)
    _ordered: list[str] = field(default_factory=list)
    _busy: set[str] = field(default_factory=set)
    _streams: int = 0

    def __post_init__(self) -> None:
        self._random = Random(f"{self.seed} {self.name}")

    def order(self, event_type: str) -> None:
        """Let the next request have an event of this type."""
        self._ordered.append(event_type)

    def next(self) -> Request:
        """A request; its streams with expected versions are left alone until `learn` is told what came of it."""
        request = self._hostile(self._ordered.pop()) if self._ordered else self._usual()
        self._busy.update(write.stream for write in request.writes)
        return request

    def learn(self, request: Request, answer: Answer) -> None:
        """Take the answer: where streams stand, and that they are free again."""
        for index, write in enumerate(request.writes):
            self._busy.discard(write.stream)
            if isinstance(answer, Acked) and answer.versions:
                self._versions[write.stream] = answer.versions[index]
            elif isinstance(answer, Refused):
                self._versions.update(answer.versions)

    def gives_up(self) -> bool:
        """Whether the caller abandons a request whose outcome it does not know: one in ten."""
        return self._random.random() < 0.1

    def impatience_s(self) -> float | None:
        """How long the caller waits before it goes away; None: as long as it takes. One in thirty is impatient."""
        return self._random.uniform(0, 0.01) if self._random.random() < 0.03 else None

    def pause_s(self, mean_s: float) -> float:
        return self._random.expovariate(1 / mean_s)

    def _usual(self) -> Request:
        kinds = list(Mix.__dataclass_fields__)
        (kind,) = self._random.choices(kinds, [getattr(self.mix, kind) for kind in kinds])
        request: Request = getattr(self, f"_{kind}")()
        return request

    def _new_stream(self) -> Request:
        return Request((self._write(self._fresh(), 0),))

    def _own_stream(self) -> Request:
        return Request((self._to_own(),))

    def _contended(self) -> Request:
        stream = self._random.choice(SHARED_STREAMS)
        return Request((self._write(stream, self._versions.get(stream, 0)),))

    def _any_version(self) -> Request:
        return Request((self._write(f"any-{self._random.randrange(3)}", None),))

    def _several_streams(self) -> Request:
        writes = [self._to_own(), self._write(self._fresh(), 0)]
        if self._random.random() < 0.5:
            stream = self._random.choice(SHARED_STREAMS)
            writes.append(self._write(stream, self._versions.get(stream, 0)))
        return Request(tuple(writes))

    def _hostile(self, event_type: str) -> Request:
        return Request((self._write(self._fresh(), 0), self._write(self._fresh(), 0, event_type)))

    def _to_own(self) -> Write:
        """To a stream that only this writer knows and that no request of it is on the way to, or else to a new one."""
        free = [stream for stream in self._versions if stream.startswith(self.name) and stream not in self._busy]
        if not free:
            return self._write(self._fresh(), 0)
        stream = self._random.choice(free[-20:])
        return self._write(stream, self._versions[stream])

    def _fresh(self) -> str:
        self._streams += 1
        return f"{self.name}-{self._streams}"

    def _write(self, stream: str, expected: int | None, type_name: str = HAPPENED) -> Write:
        count = self._random.choice((1, 1, 1, 2, EVENTS_MAX))
        ids = tuple(f"{self._random.getrandbits(128):032x}" for _ in range(count))
        return Write(stream, expected, ids, type_name)
