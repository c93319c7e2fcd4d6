"""What happens in a run and below it, from a cursor on and as it happens, with tokens between the events."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import Filter, StoredEvent
from pydantic import BaseModel, ConfigDict
from synod.agent_runtime.events import RunCancelled, RunCompleted, RunFailed, RunStarted
from synod.common.event import Event

from agent_runtime.application.histories import Histories
from agent_runtime.application.store import PAGE_EVENTS, Runs, known
from agent_runtime.errors import RunNotFound

FOLLOW_S: Final = 30.0
INBOX_MAX: Final = 10_000
"""News and tokens that wait for a slow watcher. Tokens beyond are dropped, events never: they are read from the log."""


class Token(BaseModel):
    """A piece of text on core NATS, numbered within its run from 1."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    root_run_id: str
    agent: str
    sequence: int
    text: str


@dataclass(frozen=True, slots=True)
class Seen:
    """An event of the watched run or of one below it. `agent` is the definition's name of the run it belongs to."""

    stored: StoredEvent
    event: Event
    agent: str


class News:
    """Says only that there is something new in the log; one is enough, however much there is."""


NEWS: Final = News()
Inbox = asyncio.Queue[News | Token]


class TokenListener(Protocol):
    def listening(self, tenant: str, run_id: str, inbox: Inbox) -> AbstractAsyncContextManager[None]:
        """Put the tokens of a run, and of those below it, into the inbox while the block runs; drop them when full."""
        ...


@dataclass
class Feed:
    """Follows the log once per process and tells the watchers of each root run when there is news."""

    log: EventLog
    _inboxes: dict[str, set[Inbox]] = field(default_factory=lambda: defaultdict(set))

    async def follow(self) -> None:
        """Runs for as long as the service does."""
        position = await self.log.head()
        while True:
            await self.log.wait_for(position + 1, FOLLOW_S)
            for stored in await self.log.read(position, limit=PAGE_EVENTS):
                position = stored.position
                self._tell(stored.correlation)

    def _tell(self, root_run_id: str) -> None:
        for inbox in self._inboxes.get(root_run_id, ()):
            with suppress(asyncio.QueueFull):
                inbox.put_nowait(NEWS)

    @contextmanager
    def watching(self, root_run_id: str) -> Iterator[Inbox]:
        inbox: Inbox = asyncio.Queue(INBOX_MAX)
        self._inboxes[root_run_id].add(inbox)
        try:
            yield inbox
        finally:
            self._inboxes[root_run_id].discard(inbox)
            if not self._inboxes[root_run_id]:
                del self._inboxes[root_run_id]


@dataclass(frozen=True, slots=True)
class Watcher:
    """The use case behind WatchRun."""

    log: EventLog
    runs: Runs
    histories: Histories
    codec: Codec[Event]
    feed: Feed
    tokens: TokenListener

    async def watch(
        self, tenant: str, run_id: str, after_cursor: int, with_tokens: bool
    ) -> AsyncIterator[Seen | Token]:
        """Events with a position above the cursor, ascending, to the end of the run. Raises RunNotFound at once."""
        loaded = await self.runs.load(run_id)
        if loaded is None or loaded.state.tenant != tenant:
            raise RunNotFound(run_id)
        with self.feed.watching(loaded.state.started.root_run_id) as inbox:
            if not with_tokens:
                async for seen in self._watch(run_id, loaded.state.started.root_run_id, after_cursor, inbox):
                    yield seen
                return
            async with self.tokens.listening(tenant, run_id, inbox):
                async for seen in self._watch(run_id, loaded.state.started.root_run_id, after_cursor, inbox):
                    yield seen

    async def _watch(
        self, run_id: str, root_run_id: str, after_cursor: int, inbox: Inbox
    ) -> AsyncIterator[Seen | Token]:
        names: dict[str, str] = {}
        head = await self.log.head()
        for stored in await self._so_far(run_id, head):
            seen = self._seen(stored, run_id, names)
            if seen is not None and stored.position > after_cursor:
                yield seen
            if _ends(stored, run_id):
                return
        async for item in self._live(run_id, root_run_id, head, names, inbox):
            if isinstance(item, Token) or item.stored.position > after_cursor:
                yield item

    async def _so_far(self, run_id: str, head: int) -> list[StoredEvent]:
        streams = await self.histories.streams(run_id)
        events = [stored for stream in streams.values() for stored in stream if stored.position <= head]
        return sorted(events, key=lambda stored: stored.position)

    async def _live(
        self, run_id: str, root_run_id: str, position: int, names: dict[str, str], inbox: Inbox
    ) -> AsyncIterator[Seen | Token]:
        where = Filter(correlation=root_run_id)
        while True:
            while page := await self.log.read(position, limit=PAGE_EVENTS, where=where):
                for stored in page:
                    position = stored.position
                    if seen := self._seen(stored, run_id, names):
                        yield seen
                    if _ends(stored, run_id):
                        return
            async for token in _until_news(inbox):
                yield token

    def _seen(self, stored: StoredEvent, run_id: str, names: dict[str, str]) -> Seen | None:
        """None for events of runs beside the watched one. `names` learns the runs below it as they start."""
        if stored.stream.aggregate != "run":
            return None
        event = known(self.codec, stored)
        if isinstance(event, RunStarted) and (event.run_id == run_id or event.parent_run_id in names):
            names[event.run_id] = event.definition_name
        agent = names.get(stored.stream.id)
        return None if agent is None else Seen(stored, event, agent)


async def _until_news(inbox: Inbox) -> AsyncIterator[Token]:
    """Tokens as they come, up to the next news; what is already there is taken with it."""
    news = False
    while not news or not inbox.empty():
        item = await inbox.get()
        if isinstance(item, Token):
            yield item
        else:
            news = True


def _ends(stored: StoredEvent, run_id: str) -> bool:
    return stored.stream.id == run_id and stored.type in _ENDINGS


_ENDINGS: Final = frozenset(cls.type_name() for cls in (RunCompleted, RunFailed, RunCancelled))
