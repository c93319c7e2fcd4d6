"""What a call to Synod can end in.

SynodError
├── Refused            the request is wrong or not allowed; repeating it does not help
│   ├── InvalidInput   a field has a value that is not taken
│   ├── NotFound
│   ├── NotAllowed     no valid key, or not the permission
│   ├── BudgetExhausted
│   ├── BudgetSuspended
│   └── Replaced       another process registered under this agent's name
├── TaskFailed         an agent outside could not do what it was asked; its handler raises this, its asker catches it
├── TryAgain           it may work later; ``retry_after_s`` says when, if the service knows
└── Broken             the service failed; the message carries the id under which it logged why
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2


@dataclass(eq=False)
class SynodError(Exception):
    """reason is stable and for programs, message is for people."""

    message: str
    reason: str = ""
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    details: Mapping[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message


class Refused(SynodError):
    """Repeating the request does not help."""


class InvalidInput(Refused):
    """A field has a value that is not taken; details maps fields to problems."""


class NotFound(Refused):
    """What was named does not exist."""


class NotAllowed(Refused):
    """No valid key, or the principal lacks the permission."""


class BudgetExhausted(Refused):
    """A hard budget has not enough left."""


class BudgetSuspended(Refused):
    """Someone suspended a budget, and nobody has resumed it yet; details say why."""


class Replaced(Refused):
    """Another process registered under this agent's name; this one takes no more tasks."""


class TaskFailed(SynodError):
    """An agent outside could not do its task. ``TaskFailed(message, reason)`` in a handler is what the asker catches."""


class TryAgain(SynodError):
    """Not now."""


class Broken(SynodError):
    """The service failed."""


_BY_CODE: dict[grpc.StatusCode, type[SynodError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.ALREADY_EXISTS: Refused,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.OUT_OF_RANGE: Refused,
    grpc.StatusCode.UNIMPLEMENTED: Refused,
    grpc.StatusCode.UNAVAILABLE: TryAgain,
    grpc.StatusCode.RESOURCE_EXHAUSTED: TryAgain,
    grpc.StatusCode.ABORTED: TryAgain,
    # A server that stops cancels its streams; our own cancelling never becomes an error of this kind.
    grpc.StatusCode.CANCELLED: TryAgain,
    grpc.StatusCode.DEADLINE_EXCEEDED: TryAgain,
}


_BY_REASON: dict[str, type[SynodError]] = {
    "BUDGET_EXHAUSTED": BudgetExhausted,
    "BUDGET_SUSPENDED": BudgetSuspended,
}


def from_rpc(error: grpc.aio.AioRpcError) -> SynodError:
    """The typed error of a gRPC error, with its google.rpc details read."""
    reason, details, retry_after_s = _details(error)
    kind = _BY_REASON.get(reason) or _BY_CODE.get(error.code(), Broken)
    return kind(error.details() or error.code().name, reason, error.code(), details, retry_after_s)


def _details(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str], float | None]:
    reason, details, retry_after_s = "", dict[str, str](), None
    for item in _status(error).details:
        if item.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(item.value)
            reason = info.reason
            details.update(info.metadata)
        elif item.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            request = error_details_pb2.BadRequest.FromString(item.value)
            details.update({violation.field: violation.description for violation in request.field_violations})
        elif item.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            delay = error_details_pb2.RetryInfo.FromString(item.value).retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
    return reason, details, retry_after_s


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    value = dict(_pairs(error)).get("grpc-status-details-bin", b"")
    try:
        return status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode())
    except DecodeError:
        return status_pb2.Status()


def _pairs(error: grpc.aio.AioRpcError) -> Iterable[tuple[str, str | bytes]]:
    return cast(Iterable[tuple[str, str | bytes]], error.trailing_metadata() or ())
