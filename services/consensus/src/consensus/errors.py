"""Why consensus says no.

ConsensusError
├── InvalidProposal     the proposal itself makes no sense; names field, value and remedy
├── InvalidVariable     a declaration or a value does not fit
├── ProposalUnknown
├── VariableUnknown
├── VariableExists      declared before, with other content
├── RequestReused       a request id came back with other content
├── NotAVoter           not in the frozen electorate
├── AlreadyVoted        one vote a voter, and it stands
└── OptionUnknown
"""

from dataclasses import dataclass


@dataclass(eq=False)
class ConsensusError(Exception):
    """Nothing was changed."""

    def __str__(self) -> str:
        return self.message

    @property
    def message(self) -> str:
        return type(self).__name__


@dataclass(eq=False)
class InvalidProposal(ConsensusError):
    field: str
    value: str
    problem: str

    @property
    def message(self) -> str:
        return f"{self.field} '{self.value}': {self.problem}"


@dataclass(eq=False)
class InvalidVariable(ConsensusError):
    field: str
    value: str
    problem: str

    @property
    def message(self) -> str:
        return f"{self.field} '{self.value}': {self.problem}"


@dataclass(eq=False)
class ProposalUnknown(ConsensusError):
    proposal_id: str

    @property
    def message(self) -> str:
        return f"there is no proposal '{self.proposal_id}'; list them with ListProposals"


@dataclass(eq=False)
class VariableUnknown(ConsensusError):
    name: str
    near: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        hint = f"; did you mean {', '.join(self.near)}?" if self.near else "; declare it with DeclareVariable"
        return f"there is no variable '{self.name}'{hint}"


@dataclass(eq=False)
class VariableExists(ConsensusError):
    name: str

    @property
    def message(self) -> str:
        return f"variable '{self.name}' is declared with another type, range or first value; choose another name"


@dataclass(eq=False)
class RequestReused(ConsensusError):
    request_id: str

    @property
    def message(self) -> str:
        return f"request_id '{self.request_id}' was used for another proposal; use a new one for new content"


@dataclass(eq=False)
class NotAVoter(ConsensusError):
    proposal_id: str
    voter_id: str
    electorate: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"'{self.voter_id}' may not vote on {self.proposal_id}; its electorate is {', '.join(self.electorate)}"


@dataclass(eq=False)
class AlreadyVoted(ConsensusError):
    proposal_id: str
    voter_id: str
    option: str

    @property
    def message(self) -> str:
        return f"'{self.voter_id}' has voted '{self.option}' on {self.proposal_id}; a vote is not changed"


@dataclass(eq=False)
class OptionUnknown(ConsensusError):
    option: str
    options: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"option '{self.option}' is not on the ballot; options are {', '.join(self.options)}"
