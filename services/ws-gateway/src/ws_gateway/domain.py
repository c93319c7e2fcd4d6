"""A session: one connection of one principal, from its opening to its end. Pure: everything comes as a value."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synod.common.event import Event
from synod.ws_gateway.events import ClientErrorReported, SessionClosed, SessionOpened

from ws_gateway.errors import SessionUnknown

MESSAGE_CHARS_MAX = 2_000
DETAIL_CHARS_MAX = 16_000
REASON_CHARS_MAX = 120

Transport = Literal["websocket", "sse"]


@dataclass(frozen=True, slots=True)
class Session:
    """`opened` is None before the first event, `closed` until the end."""

    opened: SessionOpened | None = None
    closed: SessionClosed | None = None
    errors: int = 0


INITIAL = Session()


@dataclass(frozen=True, slots=True)
class Open:
    session_id: str
    principal_id: str
    transport: Transport
    remote: str


@dataclass(frozen=True, slots=True)
class Close:
    session_id: str
    code: int
    reason: str
    frames_sent: int
    frames_dropped: int


@dataclass(frozen=True, slots=True)
class ReportError:
    session_id: str
    message: str
    detail: str


def open_session(state: Session, command: Open) -> Sequence[Event]:
    if state.opened is not None:
        return []
    return [
        SessionOpened(
            session_id=command.session_id,
            principal_id=command.principal_id,
            transport=command.transport,
            remote=command.remote,
        )
    ]


def close_session(state: Session, command: Close) -> Sequence[Event]:
    """A second end changes nothing: a client that leaves and a server that stops may come to it together."""
    _require_opened(state, command.session_id)
    if state.closed is not None:
        return []
    return [
        SessionClosed(
            session_id=command.session_id,
            code=command.code,
            reason=command.reason[:REASON_CHARS_MAX],
            frames_sent=command.frames_sent,
            frames_dropped=command.frames_dropped,
        )
    ]


def report_error(state: Session, command: ReportError) -> Sequence[Event]:
    """Keeps what a page reports, cut to a size that a log can bear."""
    _require_opened(state, command.session_id)
    if state.closed is not None:
        raise SessionUnknown(command.session_id)
    return [
        ClientErrorReported(
            session_id=command.session_id,
            message=command.message[:MESSAGE_CHARS_MAX],
            detail=command.detail[:DETAIL_CHARS_MAX],
        )
    ]


def evolve(state: Session, event: Event) -> Session:
    match event:
        case SessionOpened():
            return replace(state, opened=event)
        case SessionClosed():
            return replace(state, closed=event)
        case ClientErrorReported():
            return replace(state, errors=state.errors + 1)
        case _:
            return state


def _require_opened(state: Session, session_id: str) -> None:
    if state.opened is None:
        raise SessionUnknown(session_id)
