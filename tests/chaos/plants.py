"""Defects that are planted into a running log, to see that the harness finds what it claims to find.

A plant takes effect in the processes of the crew alone, or in the database; who reads and judges in the end is sound.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from uuid import UUID

import eventlog.postgres
import eventlog.relay
import eventlog.writer
from eventlog.admission import Admission, Stored
from eventlog.admission import Request as Appends
from eventlog.limits import Limits
from eventlog.records import ANY, Append, Appended, StoredEvent
from eventlog.sql import Statements
from eventlog.writer import GroupWriter, Outcome

from . import target_eventlog, view
from .checker import Kind
from .history import Acked, Answer, Entry, Refused, Request, Unknown, Write
from .target_eventlog import EventLogTarget
from .view import Tallies


@dataclass(frozen=True, slots=True)
class Plant:
    """A defect, the fault that brings it to light, and what the checker then has to find.

    `patch` is done in each process of the crew, `sql` once in the database. `whole`: relay, stream and view
    are needed; `rivals`: several writers. `requests`: so many have to be acknowledged, where it takes chance
    besides the fault, as two writers who contend for a stream.
    """

    name: str
    found: Kind
    fault: str = "kill tail"
    patch: Callable[[], None] = lambda: None
    sql: str = ""
    whole: bool = False
    rivals: bool = True
    requests: int = 0

    def take_effect(self) -> None:
        self.patch()


class HastyWriter(GroupWriter):
    """Answers as soon as it has decided, before the commit."""

    _group: Sequence[Any] = ()
    _hasty: Sequence[Outcome] = ()

    async def _settle(self, group: list[Any]) -> None:
        self._group = group
        await super()._settle(group)

    @property
    def _decided(self) -> Sequence[Outcome]:
        return self._hasty

    @_decided.setter
    def _decided(self, outcomes: Sequence[Outcome]) -> None:
        self._hasty = outcomes
        for waiting, outcome in zip(self._group, outcomes, strict=False):
            eventlog.writer._answer(waiting.answer, outcome)


def answer_early() -> None:
    eventlog.postgres.GroupWriter = HastyWriter


class HardeningTarget(EventLogTarget):
    """Takes what it does not know for a refusal."""

    async def append(self, request: Request, again: bool = False) -> Answer:
        answer = await super().append(request, again)
        return Refused(answer.reason) if isinstance(answer, Unknown) else answer


class ImpatientWriter(GroupWriter):
    """Does not ask again when a connection is lost."""

    def __init__(self, dsn: str, statements: Statements, limits: Limits, *others: Any) -> None:
        super().__init__(dsn, statements, replace(limits, reconnect_timeout_s=0.0), *others)


def refuse_what_is_unknown() -> None:
    eventlog.postgres.GroupWriter = ImpatientWriter
    target_eventlog.EventLogTarget = HardeningTarget


def store_repeats() -> None:
    """No id is known to be stored, and every stream is at the right version; the index of ids is gone too."""

    async def nothing_known(_self: GroupWriter, _rows: object, _archived: object) -> dict[UUID, Stored]:
        return {}

    def any_version(write: Write) -> Append:
        return replace(sound(write), expected=ANY)

    sound = target_eventlog._append
    GroupWriter._known = nothing_known
    target_eventlog._append = any_version


def skip_positions() -> None:
    """As a sequence does for what is rolled back: here before every fifth request."""
    sound = Admission.admit
    requests = count(1)

    def admit(self: Admission, request: Appends) -> Appended:
        if next(requests) % 5 == 0:
            self._position += 1
        return sound(self, request)

    Admission.admit = admit


class TearingTarget(EventLogTarget):
    """Stores a request write by write."""

    async def append(self, request: Request, again: bool = False) -> Answer:
        position, versions = 0, ()
        for write in request.writes:
            answer = await super().append(Request((write,)), again)
            if not isinstance(answer, Acked):
                return answer
            position, versions = answer.position, versions + answer.versions
        return Acked(position, versions)


class InventiveTarget(EventLogTarget):
    """Stores one event more."""

    async def append(self, request: Request, again: bool = False) -> Answer:
        invented = Write(f"invented-{request.key}", 0, (f"{random.getrandbits(128):032x}",))
        answer = await super().append(Request((*request.writes, invented)), again)
        return replace(answer, versions=answer.versions[:-1]) if isinstance(answer, Acked) else answer


class SwappingTarget(EventLogTarget):
    """Gives a follower the first two events of a page in the wrong order."""

    async def tail(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        async for entries in super().tail(after):
            first, *others = entries
            yield [others[0], first, *others[1:]] if len(others) > 1 else entries


class ForgetfulTarget(EventLogTarget):
    """Keeps the first of several events from a follower."""

    async def tail(self, after: int) -> AsyncIterator[Sequence[Entry]]:
        async for entries in super().tail(after):
            yield entries[1:] or entries


class ForgetfulTallies(Tallies):
    """Leaves the first of several events out."""

    async def apply(self, connection: Any, events: Sequence[StoredEvent]) -> None:
        await super().apply(connection, events[1:] or events)


def open_as(target: type[EventLogTarget]) -> Callable[[], None]:
    def patch() -> None:
        target_eventlog.EventLogTarget = target

    return patch


def forget_in_views() -> None:
    view.VIEW = ForgetfulTallies


def publish_without_fence() -> None:
    def nothing_expected(_event: StoredEvent) -> str:
        return ""

    eventlog.relay._expected_last = nothing_expected


ANOTHER_CONTENT = """
create function alter_content() returns trigger language plpgsql as $$ begin
    new.data := new.data || ' '::bytea;
    return new;
end $$;
create trigger altered before insert on eventlog.events
    for each row when (new.position % 40 = 0) execute function alter_content();
"""

PLANTS: dict[str, Plant] = {
    plant.name: plant
    for plant in (
        Plant("acknowledge before the commit", Kind.MISSING, "kill unheard writer", answer_early, rivals=False),
        Plant(
            "store repeats again",
            Kind.TWICE,
            "lose commit",
            store_repeats,
            "alter table eventlog.events drop constraint events_id_key",
        ),
        Plant("store requests in part", Kind.TORN, patch=open_as(TearingTarget), requests=300),
        Plant("refuse what is unknown", Kind.UNTRUE, "lose commit", refuse_what_is_unknown, rivals=False),
        Plant("store what nobody asked for", Kind.INVENTED, patch=open_as(InventiveTarget)),
        Plant("skip positions", Kind.HOLE, patch=skip_positions),
        Plant("give a follower another order", Kind.DISORDER, patch=open_as(SwappingTarget)),
        Plant("keep events from a follower", Kind.UNSEEN, patch=open_as(ForgetfulTarget)),
        Plant("publish without a fence", Kind.STREAM, "kill relay", publish_without_fence, whole=True),
        Plant("fold a part of a batch", Kind.VIEW, "kill projector", forget_in_views, whole=True),
        Plant("store other content", Kind.CHAIN, sql=ANOTHER_CONTENT),
    )
}
