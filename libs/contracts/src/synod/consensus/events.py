"""Events of consensus. A vote counts if its event stands before the decision's in the proposal's stream."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from synod.common.event import Event, Value
from synod.common.personal import Personal

RuleKind = Literal["majority", "two_thirds", "unanimous", "threshold", "veto"]


class Voter(Value):
    id: str
    weight: int = 1
    veto: bool = False


class Rule(Value):
    kind: RuleKind
    threshold: int = 0


class VariableChange(Value):
    variable: str
    value_json: str


class OptionTally(Value):
    option: str
    weight: int


class ProposalOpened(Event):
    """The electorate is frozen here."""

    AGGREGATE: ClassVar[str] = "proposal"

    proposal_id: str
    tenant_id: str
    title: Annotated[str, Personal()]
    body: Annotated[str, Personal()]
    options: tuple[str, ...]
    electorate: tuple[Voter, ...]
    rule: Rule
    deadline: datetime
    change: VariableChange | None = None
    run_id: str = ""
    opened_by: str


class VoteCast(Event):
    AGGREGATE: ClassVar[str] = "proposal"

    proposal_id: str
    voter_id: str
    option: str
    reason: Annotated[str, Personal()]
    weight: int


class LateVoteRecorded(Event):
    """Came after the end; kept, not counted."""

    AGGREGATE: ClassVar[str] = "proposal"

    proposal_id: str
    voter_id: str
    option: str
    reason: Annotated[str, Personal()]


class VotingClosed(Event):
    """The deadline, as a place in the log."""

    AGGREGATE: ClassVar[str] = "proposal"

    proposal_id: str
    deadline: datetime


class ProposalDecided(Event):
    AGGREGATE: ClassVar[str] = "proposal"

    proposal_id: str
    outcome: str
    tally: tuple[OptionTally, ...]
    explanation: str
    run_id: str = ""


class ProposalUndecided(Event):
    AGGREGATE: ClassVar[str] = "proposal"

    proposal_id: str
    tally: tuple[OptionTally, ...]
    reason: Literal["deadline", "impossible", "vetoed"]
    explanation: str
    run_id: str = ""


class VariableDeclared(Event):
    AGGREGATE: ClassVar[str] = "variable"

    name: str
    type: Literal["float", "choice"]
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    value_json: str


class VariableSet(Event):
    AGGREGATE: ClassVar[str] = "variable"

    name: str
    value_json: str
    previous_value_json: str
    variable_version: int
    proposal_id: str


class VariableChangeRefused(Event):
    """A decided proposal named a value that the variable does not take."""

    AGGREGATE: ClassVar[str] = "variable"

    name: str
    value_json: str
    proposal_id: str
    problem: str


EVENTS: tuple[type[Event], ...] = (
    ProposalOpened,
    VoteCast,
    LateVoteRecorded,
    VotingClosed,
    ProposalDecided,
    ProposalUndecided,
    VariableDeclared,
    VariableSet,
    VariableChangeRefused,
)
