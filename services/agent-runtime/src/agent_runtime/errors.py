"""What can go wrong in a run, and what the caller does about it.

RuntimeFailure
├── RunNotFound             stop: the id is unknown in this tenant
├── ConversationNotFound    stop: the id is unknown in this tenant
├── DefinitionNotFound      correct the reference; near names are listed
├── InvalidRequest          correct the field, then repeat
├── RequestIdReused         use another request id, or the run that exists
├── TurnInProgress          wait for the run of the turn, or cancel it
├── TemplateInvalid         correct the task of the step
├── RunErased               stop: what was said in it was erased at somebody's wish
├── Superseded              stop: another worker holds a newer epoch of the run
├── HistoryInvalid          stop and alarm: the recorded events do not make a run
└── CallError               the outcome of a call to another service
    ├── CallFailed          it was answered: the failure says whether a new call may help
    └── CallInterrupted     the outcome is unknown: repeat with the same id
        └── PeerFailed      the other side said so itself: its answer names what failed
"""

from servicekit.errors import ServiceError
from synod.common.values import Failure


class RuntimeFailure(Exception):
    """The base of every error of this service."""


class RunNotFound(RuntimeFailure):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is no run '{run_id}' in this tenant; ListRuns lists those that exist")
        self.run_id = run_id


class ConversationNotFound(RuntimeFailure):
    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"there is no conversation '{conversation_id}' in this tenant; CreateConversation opens one")
        self.conversation_id = conversation_id


class RunErased(RuntimeFailure):
    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"what was said in run {run_id} was erased with the data of whom it was for: nothing to replay"
        )
        self.run_id = run_id


class DefinitionNotFound(RuntimeFailure):
    def __init__(self, reference: str, message: str) -> None:
        super().__init__(message)
        self.reference = reference


class InvalidRequest(RuntimeFailure):
    def __init__(self, field: str, value: str, problem: str) -> None:
        super().__init__(f"{field} '{value}': {problem}")
        self.field = field
        self.value = value
        self.problem = problem


class RequestIdReused(RuntimeFailure):
    def __init__(self, request_id: str, run_id: str) -> None:
        super().__init__(
            f"request_id '{request_id}' already started run {run_id} with other content; repeat that content, "
            "or take a new request_id"
        )
        self.request_id = request_id
        self.run_id = run_id


class TurnInProgress(RuntimeFailure):
    def __init__(self, conversation_id: str, run_id: str) -> None:
        super().__init__(
            f"conversation {conversation_id} is still answering in run {run_id}; wait for it with WatchRun, or cancel it"
        )
        self.conversation_id = conversation_id
        self.run_id = run_id


class TemplateInvalid(RuntimeFailure):
    def __init__(self, placeholder: str, problem: str) -> None:
        super().__init__(f"placeholder '{{{{{placeholder}}}}}': {problem}")
        self.placeholder = placeholder


class Superseded(RuntimeFailure):
    def __init__(self, run_id: str, epoch: int, newer: int) -> None:
        super().__init__(f"run {run_id} was claimed at epoch {newer}; epoch {epoch} is stale and may not append")
        self.run_id = run_id
        self.epoch = epoch
        self.newer = newer


class HistoryInvalid(RuntimeFailure):
    def __init__(self, run_id: str, problem: str) -> None:
        super().__init__(f"the history of {run_id} cannot be folded: {problem}")
        self.run_id = run_id


class CallError(RuntimeFailure):
    """A call to another service did not give a result."""


class CallFailed(CallError):
    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.reason}: {failure.message}")
        self.failure = failure


class CallInterrupted(CallError):
    """The connection broke or the time ran out before an answer came."""


class PeerFailed(CallInterrupted):
    """The other side answered that it could not do it now, or that it has a defect: `answer` is what it said."""

    def __init__(self, answer: ServiceError) -> None:
        super().__init__(f"{answer.reason}: {answer.message}")
        self.answer = answer
