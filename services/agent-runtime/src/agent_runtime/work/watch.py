"""What happens in a run and below it, from a cursor on and as it happens, with tokens between the events."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import Filter, StoredEvent
from pydantic import BaseModel, ConfigDict
from synod.agent_runtime.events import ModelCallSucceeded, RunCancelled, RunCompleted, RunFailed, RunStarted
from synod.common.event import Event

from agent_runtime.errors import RunNotFound
from agent_runtime.work.histories import Histories
from agent_runtime.work.store import PAGE_EVENTS, Runs, known

FOLLOW_S: Final = 30.0
TOKENS_LATE_S: Final = 0.25
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
        # What happened before, such as while this task had crashed, nobody tells the watchers: they are to look.
        for root_run_id in self._inboxes:
            self._tell(root_run_id)
        while True:
            await self.log.wait_for(position + 1, FOLLOW_S)
            page = await self.log.next_page(position, limit=PAGE_EVENTS)
            position = page.position
            for stored in page.events:
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
        root_run_id = loaded.state.started.root_run_id
        with self.feed.watching(root_run_id) as inbox:
            listening = self.tokens.listening(tenant, run_id, inbox) if with_tokens else nullcontext()
            async with listening:
                head = await self.log.head()
                view = _View(run_id, self.codec)
                async for item in self._merged(root_run_id, head, view, inbox, with_tokens):
                    if isinstance(item, Token) or item.stored.position > after_cursor:
                        yield item

    async def _merged(
        self, root_run_id: str, head: int, view: _View, inbox: Inbox, with_tokens: bool
    ) -> AsyncIterator[Seen | Token]:
        for stored in await self._so_far(view.run_id, head):
            if seen := view.see(stored):
                yield seen
        where, position = Filter(correlation=root_run_id), head
        while not view.ended:
            page = await self.log.next_page(position, limit=PAGE_EVENTS, where=where)
            position = page.position
            for stored in page.events:
                seen = view.see(stored)
                if seen is not None and with_tokens:
                    async for token in view.tokens_before(seen, inbox):
                        yield token
                if seen is not None:
                    yield seen
            if not (page.events or page.more or view.ended):
                async for token in view.tokens_until_news(inbox):
                    yield token

    async def _so_far(self, run_id: str, head: int) -> list[StoredEvent]:
        streams = await self.histories.streams(run_id)
        events = [stored for stream in streams.values() for stored in stream if stored.position <= head]
        return sorted(events, key=lambda stored: stored.position)


class _View:
    """What one watcher has seen: which runs are its own, how many tokens there were, and whether it is over."""

    def __init__(self, run_id: str, codec: Codec[Event]) -> None:
        self.run_id = run_id
        self.ended = False
        self._codec = codec
        self._names: dict[str, str] = {}
        self._told: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}

    def see(self, stored: StoredEvent) -> Seen | None:
        """None for events of runs beside the watched one, and for all after its end."""
        if stored.stream.aggregate != "run" or self.ended:
            return None
        event = known(self._codec, stored)
        if isinstance(event, RunStarted) and (event.run_id == self.run_id or event.parent_run_id in self._names):
            self._names[event.run_id] = event.definition_name
        if isinstance(event, ModelCallSucceeded):
            self._told[event.run_id] += event.token_messages
        self.ended = stored.stream.id == self.run_id and stored.type in _ENDINGS
        agent = self._names.get(stored.stream.id)
        return None if agent is None else Seen(stored, event, agent)

    async def tokens_before(self, seen: Seen, inbox: Inbox) -> AsyncIterator[Token]:
        """The tokens of an answer, of which the last may arrive after the event that tells the answer.

        Waits TOKENS_LATE_S at most: they may have been sent before this watcher listened, or have got lost.
        """
        if not isinstance(seen.event, ModelCallSucceeded):
            return
        run_id = seen.event.run_id
        give_up_at = asyncio.get_running_loop().time() + TOKENS_LATE_S
        while self._numbers.get(run_id, 0) < self._told[run_id]:
            item = await _within(inbox, give_up_at)
            if item is None:
                return
            if token := self._token(item):
                yield token

    async def tokens_until_news(self, inbox: Inbox) -> AsyncIterator[Token]:
        """Tokens as they come, up to the next news; what is already there is taken with it."""
        news = False
        while not news or not inbox.empty():
            item = await inbox.get()
            news = news or isinstance(item, News)
            if token := self._token(item):
                yield token

    def _token(self, item: News | Token) -> Token | None:
        """A token that is newer than all before it: a call that is repeated numbers its tokens anew."""
        if isinstance(item, News) or item.sequence <= self._numbers.get(item.run_id, 0):
            return None
        self._numbers[item.run_id] = item.sequence
        return item


async def _within(inbox: Inbox, give_up_at: float) -> News | Token | None:
    """The next item, or None when none has come by then (in seconds of the loop's clock)."""
    try:
        async with asyncio.timeout_at(give_up_at):
            return await inbox.get()
    except TimeoutError:
        return None


_ENDINGS: Final = frozenset(cls.type_name() for cls in (RunCompleted, RunFailed, RunCancelled))
