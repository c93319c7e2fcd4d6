"""Errors of the gateway's providers. The class says what may be done; nothing has to read a message.

GatewayError
├── InvalidUsage                      counts that contradict each other; the call itself may have succeeded
├── InvalidToolArguments              a model wrote tool arguments that are no JSON object
└── ProviderError                     a call to a provider failed
    ├── RetryableProviderError        may be repeated here or elsewhere, not before `retry_after_s`
    │   ├── ProviderUnreachable       no connection, or lost before an answer began
    │   ├── ProviderTimedOut          connecting, or the pause between bytes, took too long (also status 408)
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

from typing import ClassVar


class GatewayError(Exception):
    """Root of everything this service raises on purpose."""


class InvalidUsage(GatewayError):
    """Usage whose lines do not add up to its totals, or that no real call can have."""


class InvalidToolArguments(GatewayError):
    """The text of a tool call's arguments is no JSON object."""


class ProviderError(GatewayError):
    """A call to a provider failed.

    `status` is the HTTP status (None without one), `code` the provider's own word for the error, `request_id` the
    provider's id of the request, `retry_after_s` the wait it asks for in seconds. `provider` and `content_delivered`
    are filled in by the adapter as the error leaves it.
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

    def __str__(self) -> str:
        facts = (self.provider, f"status {self.status}" if self.status else "", self.code or "", self.message)
        return ": ".join(fact for fact in facts if fact)


class RetryableProviderError(ProviderError):
    retryable = True


class ProviderUnreachable(RetryableProviderError):
    pass


class ProviderTimedOut(RetryableProviderError):
    pass


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
