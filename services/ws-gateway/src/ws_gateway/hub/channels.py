"""Channels, and how a subscriber that comes back is brought up to date. Pure: no socket, no clock, no broker.

An offset is the position of an event in its service's log. An epoch names the stream that the offsets belong to; when
the stream is made anew, the epoch changes and nobody is told that he missed nothing.

    subscribe ──▶ holding: live events wait ──▶ release(history): history, then what waited ──▶ live
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ws_gateway.errors import ChannelRefused

SERVICES = (
    "agent-registry",
    "agent-runtime",
    "llm-gateway",
    "tool-executor",
    "cost-ledger",
    "consensus",
    "ws-gateway",
)


@dataclass(frozen=True, slots=True)
class Channel:
    """What a subscriber follows. `name` is the service or the run."""

    kind: Literal["events", "run", "monitoring"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


MONITORING = Channel("monitoring")


def parse(text: str) -> Channel:
    """Raises ChannelRefused naming what there is."""
    kind, _, name = text.partition(":")
    if text == "monitoring":
        return MONITORING
    if kind == "run" and name:
        return Channel("run", name)
    if kind == "events" and name in SERVICES:
        return Channel("events", name)
    if kind == "events":
        raise ChannelRefused("UNKNOWN_CHANNEL", f"channel '{text}': there is no service '{name}'; {_services()}")
    raise ChannelRefused(
        "UNKNOWN_CHANNEL", f"channel '{text}' is none of events:<service>, run:<run id>, monitoring; {_services()}"
    )


@dataclass(frozen=True, slots=True)
class Kept:
    """What the stream behind a channel holds: positions first to head."""

    epoch: str
    first: int
    head: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Whether the subscriber can be told that nothing is missing, and what to read for it: after, up to until."""

    recovered: bool
    after: int
    until: int


def plan(offset: int | None, epoch: str, kept: Kept, positions_max: int) -> Plan:
    """How to bring a subscriber up to date who has seen everything up to `offset` of `epoch`.

    Without an epoch the offset is taken to be of the present one. Not recovered means: go on from the head.
    """
    anew = Plan(False, kept.head, kept.head)
    if offset is None or (epoch and epoch != kept.epoch):
        return anew
    beyond, forgotten = offset > kept.head, offset + 1 < kept.first
    if beyond or forgotten or kept.head - offset > positions_max:
        return anew
    return Plan(True, offset, kept.head)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A publication as bytes, made once for all who get it."""

    offset: int
    tenant: str
    frame: bytes


@dataclass(eq=False, slots=True)
class Follower:
    """One subscription of one connection to the events of its tenant. `send` takes frames in order of offset.

    What arrives while its history is being read is held, at most `held_max` frames: nothing is passed out of order.
    """

    tenant: str
    send: Callable[[bytes], None]
    lost: Callable[[], None]
    held_max: int
    offset: int = 0
    live: bool = False
    _held: list[Encoded] = field(default_factory=list)

    def offer(self, publication: Encoded) -> None:
        if self.live:
            self._pass(publication)
        elif len(self._held) < self.held_max:
            self._held.append(publication)
        else:
            self.lost()

    def release(self, offset: int) -> None:
        """The subscriber has been given everything up to `offset`; now pass on what was held, and then all."""
        self.offset, self.live = offset, True
        held, self._held = self._held, []
        for publication in held:
            self._pass(publication)

    def _pass(self, publication: Encoded) -> None:
        if publication.offset > self.offset:
            self.offset = publication.offset
            self.send(publication.frame)


@dataclass(slots=True)
class Fanout:
    """The followers of one service's events, and the position up to which they were given all."""

    position: int = 0
    epoch: str = ""
    _followers: dict[str, set[Follower]] = field(default_factory=dict)

    def join(self, follower: Follower) -> None:
        self._followers.setdefault(follower.tenant, set()).add(follower)

    def leave(self, follower: Follower) -> None:
        followers = self._followers.get(follower.tenant, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(follower.tenant, None)

    @property
    def followed(self) -> bool:
        return bool(self._followers)

    def wants(self, tenant: str) -> bool:
        """Whether it is worth encoding an event of this tenant."""
        return tenant in self._followers

    def publish(self, publications: Iterable[Encoded], position: int) -> None:
        """Each goes to the followers of its tenant and to nobody else."""
        for publication in publications:
            for follower in tuple(self._followers.get(publication.tenant, ())):
                follower.offer(publication)
        self.position = max(self.position, position)

    def lose(self) -> Sequence[Follower]:
        """The stream is not what it was: everybody must subscribe anew. Answers whom that concerns."""
        everybody = [follower for followers in self._followers.values() for follower in followers]
        self._followers.clear()
        return everybody


def _services() -> str:
    return f"services are {', '.join(SERVICES)}"
