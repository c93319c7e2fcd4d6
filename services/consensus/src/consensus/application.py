"""Use cases of consensus: load, decide, append. A decision and the variable it changes are one commit."""

import asyncio
import difflib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

from eventlog.aggregates import Aggregates
from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.errors import VersionConflict
from eventlog.log import EventLog
from eventlog.records import Append, Context, NewEvent, StreamId
from synod.common.event import Event
from synod.common.ids import derived_id, derived_uuid, uuid7
from synod.consensus.events import ProposalDecided, ProposalOpened, VariableDeclared

from consensus import domain, variables
from consensus.domain import Cast, Proposal, Propose
from consensus.errors import ProposalUnknown, VariableUnknown
from consensus.variables import Variable

RETRIES: Final = 16
FOLLOW_S: Final = 30.0
_PAGE: Final = 1000

State = TypeVar("State")
Decide = Callable[[Proposal], Sequence[Event]]


@dataclass
class Changes:
    """Wakes whoever watches a stream, when the log has a new event of it, from whichever process it came."""

    log: EventLog
    _watched: dict[StreamId, set[asyncio.Event]] = field(default_factory=lambda: defaultdict(set))

    async def follow(self) -> None:
        """Runs for as long as the service does."""
        position = await self.log.head()
        # What happened before, such as while this task had crashed, nobody tells the watchers: they are to look.
        for watchers in self._watched.values():
            _wake(watchers)
        while True:
            await self.log.wait_for(position + 1, FOLLOW_S)
            for event in await self.log.read(position, limit=_PAGE):
                position = event.position
                _wake(self._watched.get(event.stream, ()))

    @contextmanager
    def watching(self, stream: StreamId) -> Iterator[asyncio.Event]:
        """An event that is set, and stays so until cleared, when the stream has grown."""
        woken = asyncio.Event()
        self._watched[stream].add(woken)
        try:
            yield woken
        finally:
            self._watched[stream].discard(woken)
            if not self._watched[stream]:
                del self._watched[stream]


class Consensus:
    """Proposals and variables of all tenants. Ids of variables carry the tenant, names are free per tenant."""

    def __init__(self, log: EventLog, codec: Codec[Event], clock: Clock) -> None:
        self._log = log
        self._codec = codec
        self._clock = clock
        self._proposals: Aggregates[Proposal, Event] = Aggregates(
            log, "proposal", Proposal, domain.evolve, codec, clock
        )
        self._variables: Aggregates[Variable, Event] = Aggregates(
            log, "variable", Variable, variables.evolve, codec, clock
        )
        self.changes = Changes(log)
        self.deadline_added = asyncio.Event()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def forget(self) -> None:
        """Somebody was erased: keep no proposal, for it may hold what they wrote."""
        self._proposals.forget()

    async def propose(self, command: Propose, context: Context) -> Proposal:
        """Opens a proposal; its id follows from tenant and request id, so that a repeat is no second."""
        if command.change is not None:
            await self._check_change(command, context.tenant)
        ids = _ids_from(command.proposal_id)
        executed = await self._proposals.execute(
            command.proposal_id, lambda state: domain.propose(state, command), context, event_ids=ids
        )
        self.deadline_added.set()
        return executed.state

    async def vote(self, proposal_id: str, votes: Sequence[Cast], context: Context) -> Proposal:
        await self.proposal(context.tenant, proposal_id)
        return await self._decide(proposal_id, lambda state: domain.vote(state, votes), context)

    async def close(self, proposal_id: str, context: Context) -> Proposal:
        """Ends the voting if its deadline has come."""
        return await self._decide(proposal_id, lambda state: domain.close(state, self._clock.now()), context)

    async def proposal(self, tenant: str, proposal_id: str) -> Proposal:
        """A proposal of another tenant does not exist for this one."""
        state = (await self._proposals.load(proposal_id)).state
        if state.opened is None or state.opened.tenant_id != tenant:
            raise ProposalUnknown(proposal_id)
        return state

    async def watch_proposal(self, tenant: str, proposal_id: str) -> AsyncIterator[Proposal]:
        """The proposal now and after every change, until its end."""
        stream = StreamId("proposal", proposal_id)
        async for state in self._watch(stream, lambda: self.proposal(tenant, proposal_id)):
            yield state
            if state.state != "open":
                return

    async def declare(self, declared: VariableDeclared, context: Context) -> Variable:
        id = variable_id(context.tenant, declared.name)
        executed = await self._variables.execute(id, lambda state: variables.declare(state, declared), context)
        return executed.state

    async def variable(self, tenant: str, name: str, known: Sequence[str] = ()) -> Variable:
        """Raises VariableUnknown with near names out of ``known``."""
        state = (await self._variables.load(variable_id(tenant, name))).state
        if state.declared is None:
            raise VariableUnknown(name, tuple(difflib.get_close_matches(name, known, n=3)))
        return state

    async def watch_variable(self, tenant: str, name: str) -> AsyncIterator[Variable]:
        """The variable now and after every change; versions ascend."""
        seen = 0
        stream = StreamId("variable", variable_id(tenant, name))
        async for state in self._watch(stream, lambda: self.variable(tenant, name)):
            if state.version > seen:
                seen = state.version
                yield state

    async def _watch(self, stream: StreamId, load: Callable[[], Awaitable[State]]) -> AsyncIterator[State]:
        with self.changes.watching(stream) as grown:
            while True:
                grown.clear()
                yield await load()
                await grown.wait()

    async def _check_change(self, command: Propose, tenant: str) -> None:
        """A proposal whose success could not be carried out is refused before anyone votes on it."""
        assert command.change is not None
        state = await self.variable(tenant, command.change.variable)
        assert state.declared is not None
        variables.canonical(state.declared, command.change.value_json)

    async def _decide(self, proposal_id: str, decide: Decide, context: Context) -> Proposal:
        """Appends what is decided, and with it the change of the variable that it carries: both or neither.

        Votes on one proposal take turns in this process; between processes the expected version decides.
        """
        turn = self._turns.setdefault(proposal_id, asyncio.Lock())
        async with turn:
            return await self._decide_in_turn(proposal_id, decide, context)

    async def _decide_in_turn(self, proposal_id: str, decide: Decide, context: Context) -> Proposal:
        for _ in range(RETRIES):
            loaded = await self._proposals.load(proposal_id)
            events = tuple(decide(loaded.state))
            if not events:
                return loaded.state
            stream = StreamId("proposal", proposal_id)
            appends = [Append(stream, loaded.version, self._encode(events), _of_run(context, loaded.state))]
            appends += await self._carried(loaded.state, events, context)
            try:
                await self._log.append(*appends)
            except VersionConflict:
                continue
            return (await self._proposals.load(proposal_id)).state
        raise VersionConflict(StreamId("proposal", proposal_id), loaded.version, loaded.version)

    async def _carried(self, state: Proposal, events: Sequence[Event], context: Context) -> list[Append]:
        """The append that changes the variable, when the first option has won and the proposal names a change."""
        opened = state.opened
        decided = next((event for event in events if isinstance(event, ProposalDecided)), None)
        if decided is None or opened is None or opened.change is None or decided.outcome != opened.options[0]:
            return []
        id = variable_id(context.tenant, opened.change.variable)
        variable = await self._variables.load(id)
        changed = variables.change(variable.state, opened.change, opened.proposal_id)
        return [Append(StreamId("variable", id), variable.version, self._encode(changed), _of_run(context, state))]

    def _encode(self, events: Sequence[Event]) -> tuple[NewEvent, ...]:
        now = self._clock.now()
        return tuple(self._codec.encode(event, id=uuid7(), at=now) for event in events)


def _wake(watchers: Iterable[asyncio.Event]) -> None:
    for woken in watchers:
        woken.set()


def proposal_id(tenant: str, request_id: str) -> str:
    return derived_id("prp", tenant, request_id)


def variable_id(tenant: str, name: str) -> str:
    return derived_id("var", tenant, name)


def _ids_from(proposal_id: str) -> Callable[[int], UUID]:
    return lambda index: derived_uuid(proposal_id, str(index))


def _of_run(context: Context, state: Proposal) -> Context:
    """Events of a proposal that a run asked for belong to that run."""
    opened: ProposalOpened | None = state.opened
    run_id = opened.run_id if opened is not None else ""
    return Context(context.tenant, context.actor, run_id or context.correlation, context.causation, context.traceparent)
