"""One worker's hold on one run: what it has seen, what it decides, and the appends that make both durable."""

from __future__ import annotations

from collections.abc import Sequence

from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.errors import VersionConflict
from eventlog.log import EventLog
from eventlog.records import Append, Context, NewEvent
from synod.agent_runtime.events import RunClaimed
from synod.common.event import Event

from agent_runtime.domain import RunState, evolve
from agent_runtime.errors import RunNotFound, Superseded
from agent_runtime.work.store import Loaded, Runs, run_stream


class Session:
    """The run as its worker knows it.

    Observations (an answer, a result, a claim) are true whatever else happens: they are kept until appended, and
    appended together with the decision that follows. Decisions stand only on the state they were made on: every append
    carries the version it builds on, so a stale worker's append is refused.
    """

    def __init__(self, log: EventLog, runs: Runs, codec: Codec[Event], clock: Clock, loaded: Loaded) -> None:
        self._log = log
        self._runs = runs
        self._codec = codec
        self._clock = clock
        self._stored = loaded
        self._observed: list[tuple[Event, NewEvent]] = []
        self.state: RunState = loaded.state
        self.changes = 0
        """Counts everything new, so that a worker sees when there is nothing more to do."""

    @property
    def context(self) -> Context:
        return context_of(self.state)

    def observe(self, *events: Event) -> None:
        """Take note of what happened. It is durable after the next commit."""
        for event, new in self._encoded(events):
            self._observed.append((event, new))
            self.state = evolve(self.state, event, new.occurred_at)
            self.changes += 1

    async def commit(self, decisions: Sequence[Event] = (), others: Sequence[Append] = ()) -> bool:
        """Append what was observed, then the decisions, with `others` in one atomic request.

        False when something came in between: nothing was appended, the state is newer, decide again. Raises Superseded
        when that something is another worker's claim.
        """
        decided = self._encoded(decisions)
        staged = [*self._observed, *decided]
        if not staged:
            return True
        stream = run_stream(self.state.id)
        own = Append(stream, self._stored.version, tuple(new for _, new in staged), self.context)
        try:
            appended = await self._log.append(own, *others)
        except VersionConflict as conflict:
            if conflict.stream != stream:
                raise
            await self.refresh()
            return False
        self._appended(decided, appended.versions[0])
        return True

    async def settle(self) -> bool:
        """Make durable what was observed before the run is laid aside; False as in commit.

        A claim alone is dropped: who only looked has taken nothing.
        """
        if all(isinstance(event, RunClaimed) for event, _ in self._observed):
            return True
        return await self.commit()

    async def renew(self) -> None:
        """Fold the run anew if somebody was erased meanwhile: what they said must not be said on. Raises as `refresh`."""
        if self._runs.is_stale(self._stored):
            await self.refresh()

    async def refresh(self) -> None:
        """Take in what others appended: a request to cancel, or a claim, which raises Superseded."""
        newer = await self._runs.newer(self.state.id, self._stored)
        if newer is None:
            raise RunNotFound(self.state.id)
        before = self._stored.state
        if newer.state.epoch != before.epoch:
            raise Superseded(self.state.id, self.state.epoch, newer.state.epoch)
        self.changes += newer.version - self._stored.version
        self._stored = newer
        self.state = newer.state
        for event, new in self._observed:
            self.state = evolve(self.state, event, new.occurred_at)

    def _encoded(self, events: Sequence[Event]) -> list[tuple[Event, NewEvent]]:
        at = self._clock.now()
        return [(event, self._codec.encode(event, at=at)) for event in events]

    def _appended(self, decided: list[tuple[Event, NewEvent]], version: int) -> None:
        for event, new in decided:
            self.state = evolve(self.state, event, new.occurred_at)
        self._observed.clear()
        self.changes += len(decided)
        self._stored = self._runs.remember(Loaded(self.state, version, self._stored.forgotten))


def context_of(state: RunState) -> Context:
    """Events of a run are the work of whoever started it, correlated by the run at the root."""
    return Context(
        tenant=state.tenant,
        actor=state.actor,
        correlation=state.started.root_run_id,
        traceparent=state.traceparent,
    )
