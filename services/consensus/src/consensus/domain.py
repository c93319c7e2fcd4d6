"""Proposals: a frozen electorate, one vote each, one decision. Pure: everything comes as a value.

A vote counts if its event stands before the end of voting in the proposal's stream; the deadline too is such an event.
The rules count against the whole electorate's weight, so that silence never carries a proposal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from synod.common.event import Event
from synod.consensus.events import (
    LateVoteRecorded,
    OptionTally,
    ProposalDecided,
    ProposalOpened,
    ProposalUndecided,
    Rule,
    RuleKind,
    VariableChange,
    VoteCast,
    Voter,
    VotingClosed,
)

from consensus.errors import AlreadyVoted, InvalidProposal, NotAVoter, OptionUnknown, RequestReused

VOTERS_MAX = 1000
WEIGHT_MAX = 1000
OPTIONS_MAX = 10
BODY_BYTES_MAX = 64 * 1024
REASON_BYTES_MAX = 8 * 1024
DEFAULT_OPTIONS = ("approve", "reject")

State = Literal["open", "decided", "undecided"]
UndecidedReason = Literal["deadline", "impossible", "vetoed"]


@dataclass(frozen=True, slots=True)
class Ballot:
    voter: Voter
    option: str
    reason: str
    late: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """``opened`` is None before the first event. ``version`` counts the events folded."""

    opened: ProposalOpened | None = None
    ballots: tuple[Ballot, ...] = ()
    state: State = "open"
    outcome: str = ""
    explanation: str = ""
    version: int = 0

    @property
    def counted(self) -> tuple[Ballot, ...]:
        return tuple(ballot for ballot in self.ballots if not ballot.late)


INITIAL = Proposal()


@dataclass(frozen=True, slots=True)
class Propose:
    request_id: str
    proposal_id: str
    tenant_id: str
    title: str
    body: str
    options: tuple[str, ...]
    electorate: tuple[Voter, ...]
    rule: Rule
    deadline: datetime
    change: VariableChange | None
    run_id: str
    opened_by: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Cast:
    voter_id: str
    option: str
    reason: str


def evolve(state: Proposal, event: Event) -> Proposal:
    """The proposal after an event of its stream."""
    after = replace(state, version=state.version + 1)
    match event:
        case ProposalOpened():
            return replace(after, opened=event)
        case VoteCast():
            ballot = Ballot(_voter(state, event.voter_id), event.option, event.reason)
            return replace(after, ballots=(*state.ballots, ballot))
        case LateVoteRecorded():
            ballot = Ballot(_voter(state, event.voter_id), event.option, event.reason, late=True)
            return replace(after, ballots=(*state.ballots, ballot))
        case ProposalDecided():
            return replace(after, state="decided", outcome=event.outcome, explanation=event.explanation)
        case ProposalUndecided():
            return replace(after, state="undecided", explanation=event.explanation)
        case _:
            return after


def propose(state: Proposal, command: Propose) -> Sequence[Event]:
    """Opens a proposal. The same request again is no event; the same id with other content raises RequestReused."""
    opened = ProposalOpened(
        proposal_id=command.proposal_id,
        tenant_id=command.tenant_id,
        title=command.title,
        body=command.body,
        options=command.options or DEFAULT_OPTIONS,
        electorate=command.electorate,
        rule=command.rule,
        deadline=command.deadline,
        change=command.change,
        run_id=command.run_id,
        opened_by=command.opened_by,
    )
    if state.opened is not None:
        # A repeat may come later and so carry a later default deadline: that is no other content.
        if replace_deadline(opened, state.opened.deadline) != state.opened:
            raise RequestReused(command.request_id)
        return ()
    _check(opened, command.now)
    return (opened,)


def replace_deadline(opened: ProposalOpened, deadline: datetime) -> ProposalOpened:
    return opened.model_copy(update={"deadline": deadline})


def vote(state: Proposal, commands: Sequence[Cast]) -> Sequence[Event]:
    """Casts votes and, when they settle the matter, decides: after all of them, so that dissent among them counts.

    A vote that stands already is no event. After the end votes are recorded as late.
    """
    opened, after = _opened(state), state
    events: list[Event] = []
    for command in commands:
        cast = _cast(after, opened, command)
        if cast is not None:
            events.append(cast)
            after = evolve(after, cast)
    end = _ending(after) if events and state.state == "open" else None
    return events if end is None else [*events, end]


def close(state: Proposal, now: datetime) -> Sequence[Event]:
    """Ends the voting at its deadline; no event before it or when all is decided."""
    if state.opened is None or state.state != "open" or now < state.opened.deadline:
        return ()
    closed = VotingClosed(proposal_id=state.opened.proposal_id, deadline=state.opened.deadline)
    return (closed, _undecided(state, "deadline", "no option had enough weight at the deadline"))


def tally(state: Proposal) -> tuple[OptionTally, ...]:
    """Weight of each option, in the order of the ballot paper; late votes do not count."""
    weights = dict.fromkeys(_opened(state).options, 0)
    for ballot in state.counted:
        weights[ballot.option] += ballot.voter.weight
    return tuple(OptionTally(option=option, weight=weight) for option, weight in weights.items())


def needed_weight(rule: Rule, total: int) -> int:
    """The weight out of the whole electorate's that one option needs."""
    match rule.kind:
        case "majority" | "veto":
            return total // 2 + 1
        case "two_thirds":
            return -(-2 * total // 3)
        case "unanimous":
            return total
        case "threshold":
            return rule.threshold


def _cast(state: Proposal, opened: ProposalOpened, command: Cast) -> VoteCast | LateVoteRecorded | None:
    """The vote as an event, None when it stands already. Raises when it may not be cast."""
    voter = _entitled(opened, command)
    before = next((ballot for ballot in state.ballots if ballot.voter.id == voter.id), None)
    if before is not None:
        if before.option == command.option and before.reason == command.reason:
            return None
        raise AlreadyVoted(opened.proposal_id, voter.id, before.option)
    facts = {
        "proposal_id": opened.proposal_id,
        "voter_id": voter.id,
        "option": command.option,
        "reason": command.reason,
    }
    if state.state == "open":
        return VoteCast(**facts, weight=voter.weight)
    return LateVoteRecorded(**facts)


def _entitled(opened: ProposalOpened, command: Cast) -> Voter:
    voter = next((voter for voter in opened.electorate if voter.id == command.voter_id), None)
    if voter is None:
        raise NotAVoter(opened.proposal_id, command.voter_id, tuple(voter.id for voter in opened.electorate))
    if command.option not in opened.options:
        raise OptionUnknown(command.option, opened.options)
    if len(command.reason.encode()) > REASON_BYTES_MAX:
        raise InvalidProposal("reason", f"{command.reason[:40]}...", f"is longer than {REASON_BYTES_MAX} bytes")
    return voter


def _ending(state: Proposal) -> ProposalDecided | ProposalUndecided | None:
    """The end of voting that the counted ballots bring about, if they do."""
    opened = _opened(state)
    vetoes = [ballot for ballot in state.counted if _is_veto(opened, ballot)]
    if vetoes:
        return _undecided(state, "vetoed", f"{vetoes[0].voter.id} vetoed: {vetoes[0].reason or 'no reason given'}")
    total = sum(voter.weight for voter in opened.electorate)
    needed = needed_weight(opened.rule, total)
    leading = max(tally(state), key=lambda entry: entry.weight)
    if leading.weight >= needed and not _veto_outstanding(state):
        return _decided(state, leading, needed, total)
    open_weight = total - sum(entry.weight for entry in tally(state))
    if leading.weight + open_weight < needed:
        return _undecided(state, "impossible", f"no option can reach {needed} of {total} any more")
    return None


def _is_veto(opened: ProposalOpened, ballot: Ballot) -> bool:
    """Only a veto against the first option, the one that carries the proposal, is one."""
    return opened.rule.kind == "veto" and ballot.voter.veto and ballot.option != opened.options[0]


def _veto_outstanding(state: Proposal) -> bool:
    """A majority must not decide for the first option while somebody who could still veto has not voted."""
    opened = _opened(state)
    if opened.rule.kind != "veto":
        return False
    voted = {ballot.voter.id for ballot in state.counted}
    return any(voter.veto and voter.id not in voted for voter in opened.electorate)


def _decided(state: Proposal, winner: OptionTally, needed: int, total: int) -> ProposalDecided:
    opened = _opened(state)
    dissent = [ballot.voter.id for ballot in state.counted if ballot.option != winner.option]
    against = f"; against: {', '.join(dissent)}" if dissent else ""
    return ProposalDecided(
        proposal_id=opened.proposal_id,
        outcome=winner.option,
        tally=tally(state),
        explanation=f"'{winner.option}' has {winner.weight} of {total}, {needed} needed by {opened.rule.kind}{against}",
        run_id=opened.run_id,
    )


def _undecided(state: Proposal, reason: UndecidedReason, explanation: str) -> ProposalUndecided:
    opened = _opened(state)
    return ProposalUndecided(
        proposal_id=opened.proposal_id,
        tally=tally(state),
        reason=reason,
        explanation=explanation,
        run_id=opened.run_id,
    )


def _voter(state: Proposal, voter_id: str) -> Voter:
    return next(voter for voter in _opened(state).electorate if voter.id == voter_id)


def _opened(state: Proposal) -> ProposalOpened:
    assert state.opened is not None, "a proposal is opened before anything else happens to it"
    return state.opened


def _check(opened: ProposalOpened, now: datetime) -> None:
    """Raises InvalidProposal for the first thing that makes no sense."""
    names = [voter.id for voter in opened.electorate]
    _require(bool(opened.title.strip()), "title", opened.title, "say in a few words what is to be decided")
    _require(len(opened.body.encode()) <= BODY_BYTES_MAX, "body", "...", f"is longer than {BODY_BYTES_MAX} bytes")
    _require(2 <= len(opened.options) <= OPTIONS_MAX, "options", _shown(opened.options), f"give 2 to {OPTIONS_MAX}")
    _require(len(set(opened.options)) == len(opened.options), "options", _shown(opened.options), "each option once")
    _require(all(opened.options), "options", _shown(opened.options), "an option cannot be empty")
    _require(1 <= len(names) <= VOTERS_MAX, "electorate", str(len(names)), f"give 1 to {VOTERS_MAX} voters")
    _require(all(names), "electorate", _shown(names), "a voter needs an id")
    _require(len(set(names)) == len(names), "electorate", _shown(names), "each voter once")
    for voter in opened.electorate:
        _require(
            1 <= voter.weight <= WEIGHT_MAX, f"electorate.{voter.id}.weight", str(voter.weight), f"1 to {WEIGHT_MAX}"
        )
    _check_rule(opened.rule, opened.electorate)
    _require(opened.deadline > now, "deadline", opened.deadline.isoformat(), "is in the past; give a later moment")


def _check_rule(rule: Rule, electorate: tuple[Voter, ...]) -> None:
    total = sum(voter.weight for voter in electorate)
    if rule.kind == "threshold":
        _require(
            1 <= rule.threshold <= total,
            "rule.threshold",
            str(rule.threshold),
            f"must be 1 to {total}, the whole weight",
        )
    if rule.kind == "veto":
        _require(any(voter.veto for voter in electorate), "rule", rule.kind, "needs at least one voter with veto")


def _require(holds: bool, field: str, value: str, problem: str) -> None:
    if not holds:
        raise InvalidProposal(field, value, problem)


def _shown(values: Sequence[str]) -> str:
    return ", ".join(values)[:200]


RULES: tuple[RuleKind, ...] = ("majority", "two_thirds", "unanimous", "threshold", "veto")
