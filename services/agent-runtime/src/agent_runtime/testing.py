"""Fakes of everything outside a run, and a runtime in memory to try runs on.

The fakes keep the promises that the real services make: one id, one answer; what happened is counted, so that a test
can say that nothing happened twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from eventlog.clock import Clock
from eventlog.log import Auditing, EventLog
from eventlog.memory import MemoryEventLog
from eventlog.records import (
    EVERYTHING,
    Append,
    Appended,
    Context,
    Filter,
    Page,
    Snapshot,
    StoredEvent,
    StreamId,
    Verified,
    VerifiedStream,
)
from synod.agent_runtime.events import Ballot, Message, OptionTally, TextPart, ToolCallPart, ToolSpec
from synod.common.definitions import AgentDefinition, TeamDefinition, canonical_json, digest
from synod.common.ids import derived_id, new_id
from synod.common.values import Failure

from agent_runtime.application import Runtime
from agent_runtime.errors import CallFailed, DefinitionNotFound
from agent_runtime.ports import (
    Decision,
    ModelAnswer,
    ModelCall,
    Pinned,
    Ports,
    Proposal,
    ToolCall,
    ToolOutcome,
)
from agent_runtime.work.calls import Calls
from agent_runtime.work.dispatch import WorkItem, work_item
from agent_runtime.work.histories import Histories
from agent_runtime.work.store import Conversations, Runs, codec, known
from agent_runtime.work.turns import Turns
from agent_runtime.work.worker import Worker

TENANT: Final = "local"

Said = str | Sequence[tuple[str, Mapping[str, object]]]
"""What a fake model says: text, or tools to call with their arguments."""


class Crash(BaseException):
    """The process dies here. Not an Exception, so that no handler survives it."""


class Faults:
    """Counts the places where a process may die, and dies at the one it was told."""

    def __init__(self) -> None:
        self.passed = 0
        self.die_at_place = 0

    def die_at(self, place: int) -> None:
        """Die at place number `place` from now on, counted from 1; 0 for never."""
        self.passed, self.die_at_place = 0, place

    def place(self) -> None:
        self.passed += 1
        if self.passed == self.die_at_place:
            raise Crash(f"at place {self.passed}")


class FaultyLog:
    """A log whose process may die before an append, or after it and before its answer."""

    def __init__(self, log: EventLog, faults: Faults) -> None:
        self._log = log
        self._faults = faults

    async def append(self, *appends: Append) -> Appended:
        self._faults.place()
        appended = await self._log.append(*appends)
        self._faults.place()
        return appended

    async def read(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return await self._log.read(after, limit=limit, where=where)

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        return await self._log.next_page(after, limit=limit, where=where)

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        return await self._log.read_stream(stream, after=after, limit=limit)

    async def position_at(self, moment: datetime) -> int:
        return await self._log.position_at(moment)

    async def head(self) -> int:
        return await self._log.head()

    async def wait_for(self, position: int, timeout_s: float) -> int:
        return await self._log.wait_for(position, timeout_s)

    async def verify(self, first: int = 1, last: int | None = None) -> Verified:
        return await self._log.verify(first, last)

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        return await self._log.verify_stream(stream)

    async def audit(self, audit: Auditing) -> None:
        await self._log.audit(audit)

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        await self._log.save_snapshot(stream, version, fold, data)

    async def load_snapshot(self, stream: StreamId, fold: str) -> Snapshot | None:
        return await self._log.load_snapshot(stream, fold)


@dataclass
class FakeModels:
    """Says what `script` returns for a call. One call id is answered once and then from memory."""

    script: Callable[[ModelCall], ModelAnswer]
    faults: Faults = field(default_factory=Faults)
    produced: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    calls: list[ModelCall] = field(default_factory=list)
    failures: deque[Exception] = field(default_factory=deque)
    """Raised by the next calls, one each."""
    hold: asyncio.Event | None = None
    """When set, answers wait for it."""
    _answers: dict[str, ModelAnswer] = field(default_factory=dict)
    _asked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def was_asked(self, times: int, timeout_s: float = 5.0) -> None:
        """Wait until so many calls have come; TimeoutError when they do not."""
        async with asyncio.timeout(timeout_s), self._asked:
            await self._asked.wait_for(lambda: self.asked.total() >= times)

    async def stream(self, call: ModelCall) -> AsyncIterator[str | ModelAnswer]:
        self.asked[call.call_id] += 1
        async with self._asked:
            self._asked.notify_all()
        self.faults.place()
        if self.failures:
            raise self.failures.popleft()
        if call.call_id not in self._answers:
            self.produced[call.call_id] += 1
            self.calls.append(call)
            self._answers[call.call_id] = self.script(call)
        if self.hold is not None:
            await self.hold.wait()
        answer = self._answers[call.call_id]
        for part in answer.message.parts:
            if isinstance(part, TextPart):
                for word in part.text.split(" "):
                    yield word
        self.faults.place()
        yield answer


def scripted(lines: Mapping[str, Sequence[Said]]) -> Callable[[ModelCall], ModelAnswer]:
    """For each agent what it says in its first, second, ... answer since the latest question."""

    def answer(call: ModelCall) -> ModelAnswer:
        said = lines[call.attribution.agent][turn_of(call.messages)]
        return a_model_answer(said)

    return answer


def turn_of(messages: Sequence[Message]) -> int:
    """How often the model has answered since the latest question."""
    roles = [message.role for message in messages]
    latest = len(roles) - 1 - roles[::-1].index("user")
    return roles[latest:].count("assistant")


def a_model_answer(said: Said) -> ModelAnswer:
    if isinstance(said, str):
        return _answer(Message(role="assistant", parts=(TextPart(text=said),)), "stop")
    parts = tuple(
        ToolCallPart(id=f"model-{index}", name=name, arguments_json=json.dumps(arguments))
        for index, (name, arguments) in enumerate(said)
    )
    return _answer(Message(role="assistant", parts=parts), "tool_calls")


def _answer(message: Message, finish_reason: str) -> ModelAnswer:
    return ModelAnswer(message, finish_reason, "fake/fake-1", input_tokens=7, output_tokens=3, simulated=True)


@dataclass
class FakeTools:
    """Tools that are Python functions of their arguments. A call id runs once and is then answered from memory."""

    functions: Mapping[str, Callable[[Mapping[str, object]], object]]
    faults: Faults = field(default_factory=Faults)
    ran: Counter[str] = field(default_factory=Counter)
    cancelled: list[str] = field(default_factory=list)
    at_most_once: frozenset[str] = frozenset()
    hold: asyncio.Event | None = None
    """When set, tools wait for it; `waiting` says that one does."""
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    _outcomes: dict[str, ToolOutcome] = field(default_factory=dict)

    async def list_tools(self) -> tuple[ToolSpec, ...]:
        self.faults.place()
        return tuple(self._spec(name) for name in self.functions)

    async def execute(self, call: ToolCall) -> ToolOutcome:
        self.faults.place()
        name = call.tool.partition("@")[0]
        if call.call_id in self._outcomes:
            return self._outcomes[call.call_id]
        if call.call_id in self.ran:
            return ToolOutcome("unknown")
        if name not in self.functions:
            raise CallFailed(Failure(reason="UNKNOWN_TOOL", message=f"there is no tool '{name}'"))
        self.ran[call.call_id] += 1
        if name in self.at_most_once:
            self.faults.place()
        if self.hold is not None:
            self.waiting.set()
            await self.hold.wait()
        self._outcomes[call.call_id] = self._run(name, call)
        self.faults.place()
        return self._outcomes[call.call_id]

    async def cancel(self, call_id: str) -> None:
        self.cancelled.append(call_id)

    def _run(self, name: str, call: ToolCall) -> ToolOutcome:
        try:
            result = self.functions[name](json.loads(call.arguments_json))
        except ValueError as error:
            return ToolOutcome("failed", failure=Failure(reason="INVALID_INPUT", message=str(error)))
        return ToolOutcome("succeeded", json.dumps(result), isolation="L0")

    def _spec(self, name: str) -> ToolSpec:
        effect = "at_most_once" if name in self.at_most_once else "pure"
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        return ToolSpec(
            name=name, version="1", digest=sha256, description=name, parameters_json="{}", effect=effect, timeout_s=5
        )


@dataclass
class FakeRegistry:
    definitions: dict[str, Pinned] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    def add(self, definition: AgentDefinition | TeamDefinition) -> Pinned:
        spec_json = canonical_json(definition)
        name = definition.metadata.name
        version = self.definitions[name].version + 1 if name in self.definitions else 1
        self.definitions[name] = Pinned(name, definition.kind, version, digest(spec_json), spec_json)
        return self.definitions[name]

    async def definition(self, reference: str) -> Pinned:
        self.faults.place()
        if reference not in self.definitions:
            raise DefinitionNotFound(reference, f"there is no definition '{reference}'")
        return self.definitions[reference]

    async def ensure_agent(self, pinned: Pinned) -> str:
        self.faults.place()
        return derived_id("agt", pinned.name)


@dataclass
class FakeLedger:
    budgets: dict[str, int] = field(default_factory=dict)
    scopes: dict[str, tuple[str, str]] = field(default_factory=dict)

    async def set_budget(self, budget_id: str, limit_nano_usd: int, *, run_id: str = "", root_run_id: str = "") -> None:
        self.budgets[budget_id] = limit_nano_usd
        self.scopes[budget_id] = (run_id, root_run_id)


@dataclass
class FakeConsensus:
    """Decides by plain majority of the electorate as soon as one option has it; `close` is the deadline."""

    faults: Faults = field(default_factory=Faults)
    proposals: dict[str, Proposal] = field(default_factory=dict)
    votes: dict[str, dict[str, str]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    async def propose(self, proposal: Proposal) -> str:
        self.faults.place()
        proposal_id = derived_id("prop", proposal.request_id)
        kept = self.proposals.setdefault(proposal_id, proposal)
        if kept != replace(proposal, deadline=kept.deadline):
            raise CallFailed(Failure(reason="REQUEST_ID_REUSED", message="proposed before with other content"))
        self.votes.setdefault(proposal_id, {})
        self.faults.place()
        return proposal_id

    async def vote(self, proposal_id: str, ballots: Sequence[Ballot]) -> None:
        self.faults.place()
        for ballot in ballots:
            self.votes[proposal_id].setdefault(ballot.voter, ballot.option)
        self.faults.place()

    async def decision(self, proposal_id: str) -> Decision | None:
        counts = Counter(self.votes[proposal_id].values())
        proposal = self.proposals[proposal_id]
        tally = tuple(OptionTally(option=option, weight=counts[option]) for option in proposal.options)
        for option, weight in counts.items():
            if weight * 2 > len(proposal.voters):
                return Decision(option, tally, f"{option} has {weight} of {len(proposal.voters)}")
        if proposal_id in self.closed:
            return Decision("", tally, "nobody had a majority at the deadline")
        return None

    def close(self, proposal_id: str) -> None:
        self.closed.add(proposal_id)


@dataclass
class FakeTokens:
    published: list[tuple[str, int, str]] = field(default_factory=list)

    async def publish(self, tenant: str, run_id: str, root_run_id: str, agent: str, sequence: int, text: str) -> None:
        self.published.append((run_id, sequence, text))


async def _at_once(_: float) -> None:
    """Waiting takes no time in tests."""


class InMemoryRuntime:
    """The whole service without a process around it: a log in memory, and work items in a deque."""

    def __init__(
        self,
        clock: Clock,
        script: Callable[[ModelCall], ModelAnswer],
        tools: Mapping[str, Callable[[Mapping[str, object]], object]] | None = None,
    ) -> None:
        self.clock = clock
        self.faults = Faults()
        self.memory = MemoryEventLog(clock=clock)
        self.log: EventLog = FaultyLog(self.memory, self.faults)
        self.codec = codec()
        self.models = FakeModels(script, self.faults)
        self.tools = FakeTools(tools or {}, self.faults)
        self.registry = FakeRegistry(faults=self.faults)
        self.ledger = FakeLedger()
        self.consensus = FakeConsensus(self.faults)
        self.tokens = FakeTokens()
        self.ports = Ports(self.models, self.tools, self.registry, self.ledger, self.consensus, self.tokens)
        self.items: deque[WorkItem] = deque()
        self.crashes = 0
        self._dispatched = 0
        self.worker = self.new_worker()
        self.runtime = self.new_runtime()

    def new_worker(self) -> Worker:
        """A worker that remembers nothing, as after a restart."""
        runs, conversations = Runs(self.log, self.codec), Conversations(self.log, self.codec)
        calls = Calls(self.ports, conversations, sleep=_at_once)
        return Worker(new_id("wrk"), self.log, runs, self.codec, self.clock, calls, Turns())

    def new_runtime(self) -> Runtime:
        runs, conversations = Runs(self.log, self.codec), Conversations(self.log, self.codec)
        histories = Histories(self.log, self.codec)
        return Runtime(self.log, runs, conversations, histories, self.codec, self.clock, self.ports)

    async def dispatch(self) -> None:
        """Put the work items of all new events into the queue."""
        while page := await self.memory.read(self._dispatched):
            for stored in page:
                if item := work_item(known(self.codec, stored), stored.tenant):
                    self.items.append(item)
            self._dispatched = page[-1].position

    async def settle(self, deaths: Iterable[int] = ()) -> None:
        """Work until there is nothing to do. A worker that dies is replaced, and its item delivered again.

        Each of `deaths` is the number of places after which the next worker dies.
        """
        places = iter(deaths)
        self.faults.die_at(next(places, self.faults.die_at_place))
        await self.dispatch()
        while self.items:
            try:
                await self.worker.work(self.items[0].run_id)
            except Crash:
                self.crashes += 1
                self.worker = self.new_worker()
                self.faults.die_at(next(places, 0))
            else:
                self.items.popleft()
            await self.dispatch()

    async def wake(self, run_id: str) -> None:
        """Deliver an item for a run, such as the one a decision of consensus leads to."""
        self.items.append(WorkItem(run_id=run_id, tenant=TENANT, reason="vote_decided"))
        await self.settle()


def a_context(actor: str = "usr_1") -> Context:
    return Context(tenant=TENANT, actor=actor)


def an_agent(name: str, **spec: object) -> AgentDefinition:
    """An agent definition; `spec` overrides fields of its specification."""
    content = {"model": {"name": "fake/fake-1"}, "instructions": f"You are {name}.", **spec}
    return AgentDefinition.model_validate(
        {"apiVersion": "synod/v1", "kind": "Agent", "metadata": {"name": name}, "spec": content}
    )


def a_team(name: str, **spec: object) -> TeamDefinition:
    """A team definition with the given specification."""
    return TeamDefinition.model_validate(
        {"apiVersion": "synod/v1", "kind": "Team", "metadata": {"name": name}, "spec": spec}
    )


def changed(stored: StoredEvent, data: bytes) -> StoredEvent:
    """A stored event with other content, as a manipulated log would show it."""
    return stored._replace(data=data)
