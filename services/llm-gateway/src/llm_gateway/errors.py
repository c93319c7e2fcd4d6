"""Errors of the gateway. The class says what may be done; nothing has to read a message.

GatewayError
├── RosterInvalid                     the file of deployments and models cannot be used as it is
├── InvalidUsage                      counts that contradict each other; the call itself may have succeeded
├── InvalidToolArguments              a model wrote tool arguments that are no JSON object
├── StoreUnavailable                  recorded answers cannot be read or written now: repeat
├── CloudSdkMissing                   a cloud is configured whose SDK is not installed; nothing starts
├── CallRefused                       a call was not begun; nothing was recorded
│   ├── UnknownModel                  no such model or alias; names near ones
│   ├── ModelUnavailable              known, but its provider has no key or address here, or it is retired
│   ├── NoEligibleModel               the caller's routing policy leaves no model; says why for each
│   ├── RequestIdReused               the request id stands for other content
│   ├── AnswerExpired                 the call completed, its answer is no longer kept
│   ├── TooManyCalls                  as many calls are in flight as the gateway allows: repeat later
│   ├── GatewayStopping               repeat; another process or the next start answers
│   ├── ModelSuspended                it has failed too often, or its provider wants a pause: repeat later
│   ├── RateLimited                   a limit set here leaves no room before the deadline: repeat later
│   ├── CallElsewhere                 another process carries it out and has not ended: repeat
│   ├── LedgerRefused                 the budget or the price forbids it; carries the ledger's own answer
│   └── LedgerUnavailable             nothing may be spent while the ledger cannot be asked: repeat
├── TakenOver                         another process has the call now; its outcome counts, not ours
├── CallEnded                         a call that was begun ended without an answer
│   ├── CallFailed                    no attempt answered; carries the recorded failure
│   └── CallCancelled                 its callers left and it took too long to finish without them
└── ProviderError                     a call to a provider failed
    ├── RetryableProviderError        may be repeated here or elsewhere, not before `retry_after_s`
    │   ├── ProviderUnreachable       no connection, or lost before an answer began
    │   ├── ProviderTimedOut          connecting, or the pause between bytes, took too long (also status 408)
    │   ├── ProviderSuspended         not asked, because it has failed too often; nothing was sent
    │   ├── ProviderConflict          409
    │   ├── ProviderRateLimited       429
    │   ├── ProviderOverloaded        503, 529
    │   ├── ProviderFailed            any other 5xx, or an error reported inside an answer
    │   ├── StreamInterrupted         the answer ended without its terminal event
    │   └── MalformedResponse         the answer is not what the wire format says, or over a limit
    └── FinalProviderError            never repeated as it stands
        ├── RequestRejected           400, 413, 422 and every other 3xx and 4xx
        ├── UnsupportedParameter      the model's profile says so; nothing was sent
        ├── AuthenticationRejected    401
        ├── PaymentRequired           402, and 429 for an exhausted quota
        ├── PermissionRejected        403
        ├── ModelNotFound             404
        └── DeadlineExceeded          the caller's own deadline passed

A retryable error after content was delivered (`content_delivered`) must not be retried silently: the caller has
seen a part of another answer.
"""

from typing import ClassVar, Final

from synod.common.values import Failure

EMPTY_TURN: Final = "a message of the user's is empty, which this provider does not take; give it text or leave it out"


class GatewayError(Exception):
    """Root of everything this service raises on purpose."""


class RosterInvalid(GatewayError):
    """`source` is the file, or the entry in it; the message never holds a key."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.source = source


class InvalidUsage(GatewayError):
    """Usage whose lines do not add up to its totals, or that no real call can have."""


class InvalidToolArguments(GatewayError):
    """The text of a tool call's arguments is no JSON object."""


class StoreUnavailable(GatewayError):
    """The store of recorded answers cannot be reached; whether the last write happened is unknown."""


class CloudSdkMissing(GatewayError):
    def __init__(self, provider: str, package: str) -> None:
        super().__init__(f"{provider} needs the package {package}; install synod-llm-gateway[clouds]")


class TakenOver(GatewayError):
    """Another process began or ended the attempt that this one was about to."""


class CallRefused(GatewayError):
    """The call was not begun."""


class UnknownModel(CallRefused):
    def __init__(self, model: str, near: tuple[str, ...]) -> None:
        super().__init__(f"no model '{model}'")
        self.model = model
        self.near = near


class ModelUnavailable(CallRefused):
    """`remedy` says what to set so that the model can be called."""

    def __init__(self, model: str, remedy: str) -> None:
        super().__init__(f"model '{model}' cannot be called here: {remedy}")
        self.model = model
        self.remedy = remedy


class NoEligibleModel(CallRefused):
    """`reasons` has one line for each model that was considered."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__(f"no model is eligible under the routing policy: {'; '.join(reasons)}")
        self.reasons = reasons


class RequestIdReused(CallRefused):
    def __init__(self, request_id: str) -> None:
        super().__init__(f"request_id '{request_id}' stands for another request; use a new one for new content")
        self.request_id = request_id


class AnswerExpired(CallRefused):
    def __init__(self, request_id: str) -> None:
        super().__init__(f"the answer to request_id '{request_id}' is no longer kept; ask again with a new request_id")
        self.request_id = request_id


class TooManyCalls(CallRefused):
    def __init__(self, calls_max: int) -> None:
        super().__init__(f"{calls_max} model calls are in flight, which is the most this gateway takes; repeat later")


class GatewayStopping(CallRefused):
    def __init__(self) -> None:
        super().__init__("the gateway is stopping; repeat the call with the same request_id")


class ModelSuspended(CallRefused):
    """No model of the call takes calls now. `limited` when that is the provider's rate limit and no failure."""

    def __init__(self, message: str, retry_after_s: float, *, limited: bool) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limited = limited


class RateLimited(CallRefused):
    def __init__(self, model: str, retry_after_s: float) -> None:
        super().__init__(
            f"the rate limit of {model} leaves no room for this call within {retry_after_s:.1f} s; repeat later"
        )
        self.retry_after_s = retry_after_s


class CallElsewhere(CallRefused):
    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id '{request_id}' is still being carried out elsewhere; repeat the call with the same request_id"
        )


class LedgerRefused(CallRefused):
    """`answer` is the ledger's own error, which is passed on to the caller unchanged."""

    def __init__(self, reason: str, answer: Exception) -> None:
        super().__init__(str(answer))
        self.reason = reason
        self.answer = answer


class LedgerUnavailable(CallRefused):
    pass


class CallEnded(GatewayError):
    """The call was begun and has ended without an answer."""


class CallFailed(CallEnded):
    """`retry_after_s` is the wait a provider asked for, known only to the caller that met it."""

    def __init__(self, failure: Failure, retry_after_s: float | None = None) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.retry_after_s = retry_after_s


class CallCancelled(CallEnded):
    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id '{request_id}' was cancelled because nobody waited for its answer; use a new request_id"
        )


class ProviderError(GatewayError):
    """A call to a provider failed.

    `status` is the HTTP status (None without one), `code` the provider's own word for the error, `request_id` the
    provider's id of the request, `retry_after_s` the wait it asks for in seconds. `provider` and `content_delivered`
    are filled in by the adapter as the error leaves it. `dispatched` is False only if nothing can have reached the
    provider. `inside_answer` says that it was told in an answer of status 200, whose work may be billed; `status` is then
    the one that says what may be done.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.provider = ""
        self.content_delivered = False
        self.dispatched = True
        self.inside_answer = False

    def __str__(self) -> str:
        facts = (self.provider, f"status {self.status}" if self.status else "", self.code or "", self.message)
        return ": ".join(fact for fact in facts if fact)


class RetryableProviderError(ProviderError):
    retryable = True


class ProviderUnreachable(RetryableProviderError):
    pass


class ProviderTimedOut(RetryableProviderError):
    pass


class ProviderSuspended(RetryableProviderError):
    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.dispatched = False


class ProviderConflict(RetryableProviderError):
    pass


class ProviderRateLimited(RetryableProviderError):
    pass


class ProviderOverloaded(RetryableProviderError):
    pass


class ProviderFailed(RetryableProviderError):
    pass


class StreamInterrupted(RetryableProviderError):
    pass


class MalformedResponse(RetryableProviderError):
    pass


class FinalProviderError(ProviderError):
    pass


class RequestRejected(FinalProviderError):
    pass


class UnsupportedParameter(FinalProviderError):
    pass


class AuthenticationRejected(FinalProviderError):
    pass


class PaymentRequired(FinalProviderError):
    pass


class PermissionRejected(FinalProviderError):
    pass


class ModelNotFound(FinalProviderError):
    pass


class DeadlineExceeded(FinalProviderError):
    pass
