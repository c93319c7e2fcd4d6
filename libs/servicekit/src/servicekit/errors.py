"""What a service may answer instead of a result, and its form on the wire.

    ServiceError
    ├── InvalidArgument        INVALID_ARGUMENT     correct the field, then repeat
    ├── Unauthenticated        UNAUTHENTICATED      obtain a token, then repeat
    ├── PermissionDenied       PERMISSION_DENIED    have the permission granted
    ├── NotFound               NOT_FOUND            stop, or create it
    ├── AlreadyExists          ALREADY_EXISTS       stop, or use what exists
    ├── FailedPrecondition     FAILED_PRECONDITION  change the state first
    │   └── BudgetSuspended    FAILED_PRECONDITION  stop until the budget is resumed
    ├── Aborted                ABORTED              read again, then repeat
    ├── ResourceExhausted      RESOURCE_EXHAUSTED   repeat after retry_after_s
    │   └── BudgetExhausted    RESOURCE_EXHAUSTED   stop until the budget is raised
    ├── Unavailable            UNAVAILABLE          repeat after retry_after_s
    ├── DeadlineExceeded       DEADLINE_EXCEEDED    repeat with more time
    ├── Unimplemented          UNIMPLEMENTED        the peer is older than the caller
    └── Internal               INTERNAL             report the error id, which is in the log

An error travels as gRPC status plus google.rpc details (ErrorInfo always; BadRequest, RetryInfo, QuotaFailure where
they say more) in the trailer grpc-status-details-bin, and comes back as the same class by `from_rpc_error`.
The domain of a service raises its own errors; an `ErrorMap` at the edge says which of these they are.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

STATUS_TRAILER = "grpc-status-details-bin"
# Trailers ride in HTTP/2 headers, which gRPC limits to 8 KiB by default.
MESSAGE_CHARS_MAX = 1024
METADATA_CHARS_MAX = 256


class ServiceError(Exception):
    """A refusal with a stable `reason` (UPPER_SNAKE), a message for people and `metadata` for programs."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "UNKNOWN"
    retryable: ClassVar[bool] = False
    """Whether the same request may succeed later without anyone changing it."""

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        domain: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.domain = domain

    def details(self) -> list[Message]:
        """The google.rpc messages beyond ErrorInfo and RetryInfo that this kind of error carries."""
        return []


class InvalidArgument(ServiceError):
    """A field of the request has a value that can never be right."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, value: object, problem: str, *, reason: str = "") -> None:
        shown = _shorten(repr(value), 80)
        metadata = {"field": field, "value": shown, "problem": problem}
        super().__init__(f"{field} = {shown}: {problem}", reason=reason, metadata=metadata)

    @property
    def field(self) -> str:
        return self.metadata.get("field", "")

    @property
    def problem(self) -> str:
        return self.metadata.get("problem", "")

    def details(self) -> list[Message]:
        violation = error_details_pb2.BadRequest.FieldViolation(field=self.field, description=self.message)
        return [error_details_pb2.BadRequest(field_violations=[violation])]


class Unauthenticated(ServiceError):
    """Who calls is not known: no token, a wrong one or an expired one. The message says how to get a good one."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(ServiceError):
    """Who calls is known and lacks `permission`."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"

    def __init__(self, permission: str, principal: str = "the caller", *, message: str = "", reason: str = "") -> None:
        text = message or (
            f"{principal} lacks the permission {permission}; "
            "ask an administrator of the tenant for a role that includes it"
        )
        super().__init__(text, reason=reason, metadata={"permission": permission, "principal": principal})

    @property
    def permission(self) -> str:
        return self.metadata.get("permission", "")


class NotFound(ServiceError):
    """`resource` (a kind, such as "agent") has no member with this id, or none the caller may see."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"

    def __init__(self, resource: str, id: str, *, remedy: str = "", message: str = "", reason: str = "") -> None:
        text = message or f"no {resource} {id!r}" + (f"; {remedy}" if remedy else "")
        super().__init__(text, reason=reason, metadata={"resource": resource, "id": id})

    @property
    def resource(self) -> str:
        return self.metadata.get("resource", "")

    @property
    def id(self) -> str:
        return self.metadata.get("id", "")


class AlreadyExists(ServiceError):
    """`resource` has this id already, with other content than the request's."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"

    def __init__(self, resource: str, id: str, *, remedy: str = "", message: str = "", reason: str = "") -> None:
        text = message or f"{resource} {id!r} exists already" + (f"; {remedy}" if remedy else "")
        super().__init__(text, reason=reason, metadata={"resource": resource, "id": id})


class FailedPrecondition(ServiceError):
    """The request is well formed; the state of what it names does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class BudgetSuspended(FailedPrecondition):
    """Someone stopped a budget that the request matches; `suspended_for` says why. It refuses until it is resumed."""

    default_reason = "BUDGET_SUSPENDED"

    def __init__(self, budget_id: str, suspended_for: str) -> None:
        super().__init__(
            f"budget {budget_id} is suspended: {suspended_for}; ask who suspended it to resume it",
            metadata={"budget_id": budget_id, "suspended_for": suspended_for},
        )

    @property
    def budget_id(self) -> str:
        return self.metadata.get("budget_id", "")


class Aborted(ServiceError):
    """Someone else changed the same thing first."""

    code = grpc.StatusCode.ABORTED
    default_reason = "ABORTED"
    retryable = True


class ResourceExhausted(ServiceError):
    """A rate, quota or queue is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"
    retryable = True

    def __init__(
        self,
        message: str,
        retry_after_s: float | None = None,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata, retry_after_s=retry_after_s)


class BudgetExhausted(ResourceExhausted):
    """A budget does not cover the request. `available` and `required` are nano-USD."""

    default_reason = "BUDGET_EXHAUSTED"
    retryable = False

    def __init__(self, budget_id: str, available: int, required: int) -> None:
        super().__init__(
            f"budget {budget_id} has {available} nano-USD left and the request needs {required}; "
            "raise the budget or wait for its next period",
            metadata={"budget_id": budget_id, "available": str(available), "required": str(required)},
        )

    @property
    def budget_id(self) -> str:
        return self.metadata.get("budget_id", "")

    @property
    def available(self) -> int:
        return int(self.metadata.get("available", "0"))

    @property
    def required(self) -> int:
        return int(self.metadata.get("required", "0"))

    def details(self) -> list[Message]:
        violation = error_details_pb2.QuotaFailure.Violation(subject=self.budget_id, description=self.message)
        return [error_details_pb2.QuotaFailure(violations=[violation])]


class Unavailable(ServiceError):
    """Something this service depends on does not answer now."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"
    retryable = True

    def __init__(self, message: str, retry_after_s: float | None = None, *, reason: str = "") -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)


class DeadlineExceeded(ServiceError):
    """The time given was over before the work was done. Whether it had an effect is unknown to the caller."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"
    retryable = True


class Unimplemented(ServiceError):
    """The peer does not know the method. Only ever received: a service implements what it declares."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class Internal(ServiceError):
    """A defect. `error_id` is in the log of the service, beside the stack trace that is not shown to callers."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"
    retryable = True

    def __init__(self, error_id: str, service: str) -> None:
        super().__init__(
            f"{service} failed unexpectedly; its log has the cause under error id {error_id}",
            metadata={"error_id": error_id},
        )

    @property
    def error_id(self) -> str:
        return self.metadata.get("error_id", "")


def to_status(error: ServiceError, service: str) -> status_pb2.Status:
    """The google.rpc.Status of an error that `service` answers."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=error.domain or f"synod.{service}",
        metadata={key: _shorten(value, METADATA_CHARS_MAX) for key, value in error.metadata.items()},
    )
    message = _shorten(error.message, MESSAGE_CHARS_MAX)
    status = status_pb2.Status(code=error.code.value[0], message=message)
    for detail in [info, *error.details(), *_retry_info(error)]:
        status.details.add().Pack(detail)
    return status


def trailers(error: ServiceError, service: str) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the details of `error`."""
    return ((STATUS_TRAILER, to_status(error, service).SerializeToString()),)


def from_rpc_error(error: grpc.aio.AioRpcError) -> ServiceError:
    """The error a service answered, as the class it was raised as; a failure of the transport by its status code."""
    status = _status_of(error)
    info, retry_after_s = _unpack(status)
    message = status.message or error.details() or error.code().name
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not info.reason:
        message = "the deadline of the call passed before the answer; repeat with a longer one (same request id)"
    return _restore(error.code(), message, info, retry_after_s)


def of_peer(error: grpc.aio.AioRpcError, method: str) -> grpc.aio.AioRpcError:
    """A failure to reach the service that has `method`, with its name: the transport speaks of addresses alone.

    What a service answered itself stays as it is.
    """
    if error.code() is not grpc.StatusCode.UNAVAILABLE or _status_of(error).details:
        return error
    package, _, rest = method.strip("/").partition(".")
    name = rest.split(".")[0].replace("_", "-") if package == "synod" else method.strip("/").split("/")[0]
    details = f"{name} cannot be reached now, repeat in a moment: {error.details() or 'the connection was lost'}"
    return grpc.aio.AioRpcError(
        error.code(), grpc.aio.Metadata(), grpc.aio.Metadata(), details, error.debug_error_string()
    )


def from_status(data: bytes) -> ServiceError:
    """The error in a serialised google.rpc.Status, such as that of one item of a batch, as the class it was raised as."""
    status = status_pb2.Status.FromString(data)
    info, retry_after_s = _unpack(status)
    return _restore(_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN), status.message, info, retry_after_s)


E_ = TypeVar("E_", bound=Exception)


class ErrorMap:
    """Which ServiceError each error of a domain is. The nearest base class in the tree that is known decides.

    >>> class Missing(Exception): ...
    >>> errors = ErrorMap().add(Missing, lambda error: NotFound("budget", str(error)))
    >>> errors.translate(Missing("bdg_1")).message
    "no budget 'bdg_1'"
    """

    def __init__(self) -> None:
        self._known: dict[type[Exception], Callable[[Exception], ServiceError | None]] = {}

    def add(self, kind: type[E_], translate: Callable[[E_], ServiceError | None]) -> "ErrorMap":
        """`translate` may answer None: some errors of the class are known, and this one is a defect."""
        # The dictionary's key guarantees that `translate` is only given the class it was declared for.
        self._known[kind] = translate  # type: ignore[assignment]
        return self

    def including(self, other: "ErrorMap | None") -> "ErrorMap":
        """A map that also knows what `other` knows; `other` decides where both do."""
        merged = ErrorMap()
        merged._known = self._known | (other._known if other else {})
        return merged

    def translate(self, error: BaseException) -> ServiceError | None:
        """None when the error is unknown, that is, a defect."""
        if isinstance(error, ServiceError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return from_rpc_error(error)
        for kind in type(error).__mro__:
            if (translate := self._known.get(kind)) and isinstance(error, Exception):
                return translate(error)
        return None


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    # The stubs declare a mapping; grpcio gives a sequence of pairs.
    pairs = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in pairs:
        if key == STATUS_TRAILER and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _unpack(status: status_pb2.Status) -> tuple[error_details_pb2.ErrorInfo, float | None]:
    info, retry_after_s = error_details_pb2.ErrorInfo(), None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_s = retry.retry_delay.ToMicroseconds() / 1e6
    return info, retry_after_s


def refusal_of(reason: str, message: str) -> ServiceError | None:
    """A refusal that was recorded by its reason, as the class that it was raised as; None if the reason has none of its own."""
    kind = _BY_REASON.get(reason)
    return _restore(kind.code, message, error_details_pb2.ErrorInfo(reason=reason), None) if kind else None


def _restore(
    code: grpc.StatusCode, message: str, info: error_details_pb2.ErrorInfo, retry_after_s: float | None
) -> ServiceError:
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, ServiceError)
    # The subclasses' constructors compose messages from data; a received error already has its message.
    error = kind.__new__(kind)
    ServiceError.__init__(
        error,
        message,
        reason=info.reason,
        metadata=dict(info.metadata),
        retry_after_s=retry_after_s,
        domain=info.domain,
    )
    return error


def _retry_info(error: ServiceError) -> list[Message]:
    if error.retry_after_s is None:
        return []
    delay = Duration()
    delay.FromMicroseconds(int(error.retry_after_s * 1e6))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]


def _shorten(text: str, chars_max: int) -> str:
    return text if len(text) <= chars_max else text[: chars_max - 1] + "…"


_BY_CODE: dict[grpc.StatusCode, type[ServiceError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Unimplemented,
        Internal,
    )
}
_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
_BY_REASON: dict[str, type[ServiceError]] = {kind.default_reason: kind for kind in (BudgetExhausted, BudgetSuspended)}
