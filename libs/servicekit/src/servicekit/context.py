"""What is known about the call being served: who, until when, as part of which trace.

Set once per gRPC call or command, read anywhere beneath it. Outside of a call, `acting_as` sets the principal for
background work.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from eventlog import records

from servicekit.auth import ANONYMOUS, ANY_TENANT, TENANT, Principal
from servicekit.errors import InvalidArgument, PermissionDenied
from servicekit.telemetry import traceparent


@dataclass(frozen=True, slots=True)
class Call:
    """One call or command. `deadline` is monotonic seconds of the host's clock."""

    principal: Principal = ANONYMOUS
    deadline: float | None = None
    correlation: str = ""
    causation: UUID | None = None
    delivery: int = 1
    """Which delivery of a command this is, counted from 1; always 1 for gRPC."""


_NO_CALL = Call()
_call: ContextVar[Call] = ContextVar("servicekit_call", default=_NO_CALL)


def current_call() -> Call:
    return _call.get()


def current_principal() -> Principal:
    """Who asks; ANONYMOUS outside of a call and in public methods."""
    return _call.get().principal


def enter_call(call: Call) -> None:
    """Make `call` current for the rest of this task.

    Nothing undoes it: gRPC and FastStream run each call in a task of its own, whose context ends with it.
    """
    _call.set(call)


@contextmanager
def acting_as(principal: Principal, *, correlation: str = "", causation: UUID | None = None) -> Iterator[None]:
    """Do background work in someone's name: calls to peers and events carry this principal's tenant and actor."""
    token = _call.set(Call(principal, correlation=correlation, causation=causation))
    try:
        yield
    finally:
        _call.reset(token)


def event_context(*, correlation: str = "", causation: UUID | None = None, actor: str = "") -> records.Context:
    """The Context under which the current call appends events.

    `actor` is in whose name one item of a batch is asked for, where that is not the caller. Raises InvalidArgument when the
    call is not made for one tenant, because every event belongs to one; PermissionDenied for the name of another, unless
    a service of the platform asks.
    """
    call = _call.get()
    tenant = call.principal.tenant
    if tenant in ("", ANY_TENANT):
        raise InvalidArgument(TENANT, tenant, "a service that acts for a tenant must name it in this metadata key")
    return records.Context(
        tenant=tenant,
        actor=_in_the_name_of(actor, call.principal),
        correlation=correlation or call.correlation,
        causation=causation or call.causation,
        traceparent=traceparent(),
    )


def _in_the_name_of(actor: str, principal: Principal) -> str:
    if actor in ("", principal.actor):
        return principal.actor
    if not principal.speaks_for_others:
        raise PermissionDenied(
            f"actor:{actor}",
            principal.id,
            message=f"{principal.id} may not act in the name of {actor}; leave the actor empty",
            reason="ACTOR_DENIED",
        )
    return actor
