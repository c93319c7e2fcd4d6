"""Events of ws-gateway."""

from typing import ClassVar, Literal

from synod.common.event import Event


class SessionOpened(Event):
    AGGREGATE: ClassVar[str] = "session"

    session_id: str
    principal_id: str
    transport: Literal["websocket", "sse"]
    remote: str


class SessionClosed(Event):
    AGGREGATE: ClassVar[str] = "session"

    session_id: str
    code: int
    reason: str
    frames_sent: int
    frames_dropped: int


class ClientErrorReported(Event):
    """What a page reported with log_error."""

    AGGREGATE: ClassVar[str] = "session"

    session_id: str
    message: str
    detail: str


EVENTS: tuple[type[Event], ...] = (SessionOpened, SessionClosed, ClientErrorReported)
