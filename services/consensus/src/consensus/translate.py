"""Between protobuf and the domain: the only file that knows both."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from servicekit.errors import AlreadyExists, ErrorMap, FailedPrecondition, InvalidArgument, NotFound
from synod.consensus.events import Rule, RuleKind, VariableChange, VariableDeclared, Voter
from synod.consensus.v1 import consensus_pb2 as pb

from consensus import errors
from consensus.application import proposal_id
from consensus.domain import Ballot, Cast, Proposal, Propose, tally
from consensus.projections import ProposalRow, VariableRow
from consensus.variables import Variable

DEFAULT_DEADLINE = timedelta(minutes=10)
VOTES_MAX = 1000

_RULES: dict["pb.RuleKind.ValueType", RuleKind] = {
    pb.RULE_KIND_UNSPECIFIED: "majority",
    pb.RULE_KIND_MAJORITY: "majority",
    pb.RULE_KIND_TWO_THIRDS: "two_thirds",
    pb.RULE_KIND_UNANIMOUS: "unanimous",
    pb.RULE_KIND_THRESHOLD: "threshold",
    pb.RULE_KIND_VETO: "veto",
}
_RULE_KINDS = {rule: kind for kind, rule in _RULES.items() if kind}
_STATES = {
    "open": pb.PROPOSAL_STATE_OPEN,
    "decided": pb.PROPOSAL_STATE_DECIDED,
    "undecided": pb.PROPOSAL_STATE_UNDECIDED,
}
STATE_NAMES = {value: name for name, value in _STATES.items()}

ERRORS = (
    ErrorMap()
    .add(errors.InvalidProposal, lambda error: InvalidArgument(error.field, error.value, error.problem))
    .add(errors.InvalidVariable, lambda error: InvalidArgument(error.field, error.value, error.problem))
    .add(errors.ProposalUnknown, lambda error: NotFound("proposal", error.proposal_id, message=error.message))
    .add(errors.VariableUnknown, lambda error: NotFound("variable", error.name, message=error.message))
    .add(errors.VariableExists, lambda error: AlreadyExists("variable", error.name, message=error.message))
    .add(
        errors.RequestReused,
        lambda error: AlreadyExists("proposal of request", error.request_id, message=error.message),
    )
    .add(errors.NotAVoter, lambda error: FailedPrecondition(error.message, reason="NOT_A_VOTER"))
    .add(errors.AlreadyVoted, lambda error: FailedPrecondition(error.message, reason="ALREADY_VOTED"))
    .add(errors.OptionUnknown, lambda error: InvalidArgument("option", error.option, error.message))
)


def to_propose(request: pb.ProposeRequest, tenant: str, actor: str, now: datetime) -> Propose:
    if not request.request_id:
        raise InvalidArgument("request_id", "", "is needed: it makes a repeated request harmless; use any unique text")
    return Propose(
        request_id=request.request_id,
        proposal_id=proposal_id(tenant, request.request_id),
        tenant_id=tenant,
        title=request.title,
        body=request.body,
        options=tuple(request.options),
        electorate=tuple(Voter(id=v.id, weight=v.weight or 1, veto=v.veto) for v in request.electorate),
        rule=Rule(kind=_RULES[request.rule.kind], threshold=request.rule.threshold),
        deadline=_moment(request.deadline) if request.HasField("deadline") else now + DEFAULT_DEADLINE,
        change=_change(request),
        run_id=request.run_id,
        opened_by=actor,
        now=now,
    )


def to_cast(request: pb.VoteRequest) -> Cast:
    return Cast(request.voter_id, request.option, request.reason)


def to_casts(request: pb.CastVotesRequest) -> tuple[Cast, ...]:
    if not 1 <= len(request.votes) <= VOTES_MAX:
        raise InvalidArgument("votes", len(request.votes), f"give 1 to {VOTES_MAX}")
    for vote in request.votes:
        if vote.proposal_id not in ("", request.proposal_id):
            raise InvalidArgument(
                "votes.proposal_id", vote.proposal_id, f"leave it empty or name {request.proposal_id}"
            )
    return tuple(to_cast(vote) for vote in request.votes)


def to_declared(request: pb.DeclareVariableRequest) -> VariableDeclared:
    match request.WhichOneof("type"):
        case "float_range":
            low, high = request.float_range.min, request.float_range.max
            return VariableDeclared(
                name=request.name, type="float", minimum=low, maximum=high, value_json=request.initial_value_json
            )
        case "choices":
            choices = tuple(request.choices.options)
            return VariableDeclared(
                name=request.name, type="choice", choices=choices, value_json=request.initial_value_json
            )
        case _:
            raise InvalidArgument("type", "", "give float_range or choices")


def from_proposal(state: Proposal) -> pb.Proposal:
    opened = state.opened
    assert opened is not None
    return pb.Proposal(
        id=opened.proposal_id,
        title=opened.title,
        body=opened.body,
        options=opened.options,
        electorate=[pb.Voter(id=voter.id, weight=voter.weight, veto=voter.veto) for voter in opened.electorate],
        rule=pb.Rule(kind=_RULE_KINDS[opened.rule.kind], threshold=opened.rule.threshold),
        deadline=_timestamp(opened.deadline),
        state=_STATES[state.state],
        outcome=state.outcome,
        tally=[pb.Tally(option=entry.option, weight=entry.weight) for entry in tally(state)],
        ballots=[_ballot(ballot) for ballot in state.ballots],
        explanation=state.explanation,
        change=pb.VariableChange(**opened.change.model_dump()) if opened.change else None,
        run_id=opened.run_id,
        version=state.version,
    )


def from_variable(state: Variable) -> pb.Variable:
    declared = state.declared
    assert declared is not None
    return pb.Variable(
        name=declared.name,
        type=declared.type,
        range=_range(declared),
        choices=declared.choices,
        value_json=state.value_json,
        version=state.version,
        proposal_id=state.proposal_id,
    )


def with_times(message: pb.Proposal, row: ProposalRow | None) -> pb.Proposal:
    """Adds when it was opened and decided, which the view knows."""
    if row is not None:
        message.opened_at.CopyFrom(_timestamp(row.opened_at))
        if row.decided_at is not None:
            message.decided_at.CopyFrom(_timestamp(row.decided_at))
    return message


def with_change_time(message: pb.Variable, row: VariableRow | None) -> pb.Variable:
    if row is not None:
        message.changed_at.CopyFrom(_timestamp(row.changed_at))
    return message


def _range(declared: VariableDeclared) -> pb.FloatRange | None:
    if declared.minimum is None or declared.maximum is None:
        return None
    return pb.FloatRange(min=declared.minimum, max=declared.maximum)


def _ballot(ballot: Ballot) -> pb.Ballot:
    voter = ballot.voter
    return pb.Ballot(
        voter_id=voter.id, option=ballot.option, reason=ballot.reason, weight=voter.weight, late=ballot.late
    )


def _change(request: pb.ProposeRequest) -> VariableChange | None:
    if not request.HasField("change"):
        return None
    return VariableChange(variable=request.change.variable, value_json=request.change.value_json)


def _moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(tzinfo=UTC)


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
