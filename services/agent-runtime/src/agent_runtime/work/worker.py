"""The loop around every run: fold, decide, carry out, append, and again, until the run waits or has ended.

What is decided is recorded before it is done, and done under an id derived from the run. So a worker may die anywhere:
the next one folds the same state, decides the same, and repeats only calls whose outcome nobody knows, under the same
ids, which the other services answer from their records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import ANY, Append
from synod.agent_runtime.events import (
    BallotsCast,
    RunCancelRequested,
    RunClaimed,
    RunDeadlinePassed,
    RunStarted,
    StepEnded,
    VoteDecided,
)
from synod.common.event import Event
from synod.common.values import Failure

from agent_runtime import recording, teams
from agent_runtime.decide import next_directives
from agent_runtime.directives import (
    AwaitDecision,
    AwaitMembers,
    CallModel,
    CallTools,
    Cancel,
    CastBallots,
    Complete,
    Directive,
    EndStep,
    Fail,
    LoadConversation,
    OpenVote,
    ResolveTools,
    RestartMembers,
    StartChildren,
    StopMembers,
)
from agent_runtime.domain import RunState, outcome_of
from agent_runtime.errors import CallFailed, DefinitionNotFound, RunNotFound
from agent_runtime.ports import Consensus, Proposal
from agent_runtime.work.calls import Calls
from agent_runtime.work.children import child_append, child_started
from agent_runtime.work.endings import turn_ended
from agent_runtime.work.session import Session
from agent_runtime.work.store import Runs, run_stream
from agent_runtime.work.turns import Nudge, Turns


@dataclass(frozen=True, slots=True)
class Worker:
    """Carries out runs. `id` is unique to this process start: it is what a claim names."""

    id: str
    log: EventLog
    runs: Runs
    codec: Codec[Event]
    clock: Clock
    calls: Calls
    turns: Turns

    async def work(self, run_id: str) -> None:
        """Bring a run as far as it gets now. Returns when it has ended, or waits for runs below it or for a decision.

        Raises RunNotFound; Superseded when another worker took over, whose work it is then; and what a service raised
        that could not be answered: then nothing is lost, the item is to be delivered again.
        """
        async with self.turns.of(run_id) as nudge:
            loaded = await self.runs.load(run_id)
            if loaded is None:
                raise RunNotFound(run_id)
            if not loaded.state.ended:
                await self._drive(Session(self.log, self.runs, self.codec, self.clock, loaded), nudge)

    async def give_up(self, run_id: str, failure: Failure) -> None:
        """Fail a run that no worker can carry on with, so that nobody waits for it for ever."""
        async with self.turns.of(run_id):
            loaded = await self.runs.load(run_id)
            if loaded is None or loaded.state.ended:
                return
            session = Session(self.log, self.runs, self.codec, self.clock, loaded)
            while not session.state.ended:
                await self._end(session, Fail(failure))

    async def _drive(self, session: Session, nudge: Nudge) -> None:
        self._claim(session)
        while True:
            await session.renew()
            self._observe_deadline(session)
            if not await self._advance(session, nudge) and await session.settle():
                return

    async def _advance(self, session: Session, nudge: Nudge) -> bool:
        """Carry out the first directive that changes anything; then all is decided anew. False when none does."""
        before = session.changes
        for directive in next_directives(session.state):
            await self._carry_out(session, nudge, directive)
            if session.changes != before:
                return True
        return False

    def _claim(self, session: Session) -> None:
        """The claim is appended together with the first thing there is to say; looking alone claims nothing."""
        state = session.state
        if state.worker != self.id:
            session.observe(RunClaimed(run_id=state.id, epoch=state.epoch + 1, worker=self.id))

    def _observe_deadline(self, session: Session) -> None:
        state = session.state
        if not (state.ended or state.deadline_passed) and self.clock.now() >= state.deadline:
            timeout_s = state.definition.spec.timeout_s
            session.observe(RunDeadlinePassed(run_id=state.id, epoch=state.epoch, timeout_s=timeout_s))

    async def _carry_out(self, session: Session, nudge: Nudge, directive: Directive) -> None:
        match directive:
            case CallModel():
                await self._call_model(session, nudge, directive)
            case CallTools():
                await self._call_tools(session, nudge, directive)
            case ResolveTools(names):
                session.observe(await self.calls.resolve_tools(session.state, names))
            case LoadConversation(conversation_id):
                session.observe(await self.calls.load_conversation(session.state, conversation_id))
            case StartChildren():
                await self._start_children(session, directive)
            case AwaitMembers():
                await self._observe_members(session, directive)
            case StopMembers():
                await self._stop_members(session, directive)
            case OpenVote():
                await self._open_vote(session, directive)
            case CastBallots():
                await self._cast_ballots(session, directive)
            case AwaitDecision():
                await self._observe_decision(session, directive)
            case RestartMembers() | EndStep():
                await session.commit(recording.decisions(session.state, directive))
            case Complete() | Fail() | Cancel():
                await self._end(session, directive)

    async def _end(self, session: Session, directive: Complete | Fail | Cancel) -> None:
        """The run's end and the end of its conversation's turn are one fact."""
        state = session.state
        others = turn_ended(state, directive, self.codec, self.clock)
        await session.commit(recording.decisions(state, directive), others)

    # --- models and tools -----------------------------------------------------------------------------------------------

    async def _call_model(self, session: Session, nudge: Nudge, directive: CallModel) -> None:
        if await session.commit(recording.decisions(session.state, directive)):
            await self._observe_as_they_come(session, nudge, [self.calls.model_outcome(session.state, directive)])

    async def _call_tools(self, session: Session, nudge: Nudge, directive: CallTools) -> None:
        if await session.commit(recording.decisions(session.state, directive)):
            works = [self.calls.tool_outcome(session.state, intent) for intent in directive.intents]
            await self._observe_as_they_come(session, nudge, works)
            if self._must_stop(session):
                await self.calls.cancel_tools(session.state)

    async def _observe_as_they_come(
        self, session: Session, nudge: Nudge, works: Sequence[Coroutine[None, None, Event]]
    ) -> None:
        """Carry out side by side. Each outcome is appended as it comes, the last ones with what is decided on them.

        A request to cancel, the deadline, or an erasure abandons what is still in progress.
        """
        running = {asyncio.create_task(work) for work in works}
        try:
            while running and not self._must_stop(session):
                done = await self._next_done(session, nudge, running)
                running -= done
                session.observe(*(task.result() for task in done))
                if running and done:
                    await session.commit()
        finally:
            await _abandon(running)

    def _must_stop(self, session: Session) -> bool:
        state = session.state
        return state.cancel_reason is not None or state.erased or self.clock.now() >= state.deadline

    async def _next_done(
        self, session: Session, nudge: Nudge, running: set[asyncio.Task[Event]]
    ) -> set[asyncio.Task[Event]]:
        timeout_s = max(0.0, (session.state.deadline - self.clock.now()).total_seconds())
        waiting: set[asyncio.Future[Event] | asyncio.Future[None]] = {*running, nudge.came}
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if nudge.take():
            await session.refresh()
        return {task for task in running if task.done()}

    # --- teams ----------------------------------------------------------------------------------------------------------

    async def _start_children(self, session: Session, directive: StartChildren) -> None:
        """The step and the runs it starts are one fact; each run pins the definition it begins with."""
        try:
            started = await self.calls.patiently(lambda: self._started(session.state, directive))
        except DefinitionNotFound as error:
            failure = Failure(reason="DEFINITION_NOT_FOUND", message=str(error))
            session.observe(_step_failed(session.state, directive.step, failure))
            return
        except CallFailed as error:
            session.observe(_step_failed(session.state, directive.step, error.failure))
            return
        others = [child_append(self.codec, self.clock, session.context, event) for event in started]
        await session.commit(recording.decisions(session.state, directive), others)

    async def _started(self, state: RunState, directive: StartChildren) -> list[RunStarted]:
        ports = self.calls.ports
        return await asyncio.gather(*(child_started(ports, state, directive, child) for child in directive.children))

    async def _observe_members(self, session: Session, directive: AwaitMembers) -> None:
        for run_id, step in directive.members.items():
            loaded = await self.runs.load(run_id)
            if loaded is not None and loaded.state.ended:
                session.observe(teams.member_ended(session.state, step, run_id, outcome_of(loaded.state)))

    async def _stop_members(self, session: Session, directive: StopMembers) -> None:
        at = self.clock.now()
        others = []
        for run_id in directive.run_ids:
            event = RunCancelRequested(run_id=run_id, reason=directive.reason)
            others.append(Append(run_stream(run_id), ANY, (self.codec.encode(event, at=at),), session.context))
        await session.commit(recording.decisions(session.state, directive), others)

    async def _open_vote(self, session: Session, directive: OpenVote) -> None:
        proposal = _proposal(session.state, directive, self.clock.now())
        try:
            proposal_id = await self.calls.patiently(lambda: self._consensus.propose(proposal))
        except CallFailed as error:
            session.observe(_step_failed(session.state, directive.step, error.failure))
            return
        session.observe(recording.vote_opened(session.state, directive, proposal_id))

    async def _cast_ballots(self, session: Session, directive: CastBallots) -> None:
        # The proposal's id must be on record before the first ballot: its decision may come with the last one.
        if not await session.commit():
            return
        if directive.ballots:
            await self.calls.patiently(lambda: self._consensus.vote(directive.proposal_id, directive.ballots))
        state = session.state
        session.observe(
            BallotsCast(run_id=state.id, epoch=state.epoch, step=directive.step, proposal_id=directive.proposal_id)
        )

    async def _observe_decision(self, session: Session, directive: AwaitDecision) -> None:
        # That the ballots are cast is durable before the run sleeps.
        if not await session.commit():
            return
        decision = await self.calls.patiently(lambda: self._consensus.decision(directive.proposal_id))
        if decision is None:
            return
        session.observe(
            VoteDecided(
                run_id=session.state.id,
                epoch=session.state.epoch,
                step=directive.step,
                proposal_id=directive.proposal_id,
                outcome=decision.outcome,
                tally=decision.tally,
                explanation=decision.explanation,
            )
        )

    @property
    def _consensus(self) -> Consensus:
        return self.calls.ports.consensus


async def _abandon(running: set[asyncio.Task[Event]]) -> None:
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


def _step_failed(state: RunState, step: str, failure: Failure) -> StepEnded:
    return StepEnded(run_id=state.id, epoch=state.epoch, step=step, outcome="failed", failure=failure)


def _proposal(state: RunState, directive: OpenVote, now: datetime) -> Proposal:
    return Proposal(
        request_id=directive.request_id,
        run_id=state.id,
        title=directive.title,
        body=directive.body,
        options=directive.options,
        voters=directive.voters,
        veto=directive.veto,
        rule=directive.rule,
        threshold=directive.threshold,
        deadline=now + timedelta(seconds=directive.deadline_s),
    )
