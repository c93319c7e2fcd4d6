"""Sessions: given what happened, when a command comes, then these events."""

import pytest
from synod.common.event import Event
from synod.ws_gateway.events import ClientErrorReported, SessionClosed, SessionOpened
from ws_gateway.domain import (
    DETAIL_CHARS_MAX,
    INITIAL,
    Close,
    Open,
    ReportError,
    Session,
    close_session,
    evolve,
    open_session,
    report_error,
)
from ws_gateway.errors import SessionUnknown

OPENED = SessionOpened(session_id="ses_1", principal_id="usr_1", transport="websocket", remote="127.0.0.1:5")
CLOSED = SessionClosed(session_id="ses_1", code=1000, reason="left", frames_sent=3, frames_dropped=1)
OPEN = Open("ses_1", "usr_1", "websocket", "127.0.0.1:5")
CLOSE = Close("ses_1", 1000, "left", 3, 1)


def given(*events: Event) -> Session:
    state = INITIAL
    for event in events:
        state = evolve(state, event)
    return state


def test_session_opens_once() -> None:
    assert list(open_session(INITIAL, OPEN)) == [OPENED]
    assert not open_session(given(OPENED), OPEN)


def test_session_closes_once_with_what_was_sent() -> None:
    assert list(close_session(given(OPENED), CLOSE)) == [CLOSED]
    assert not close_session(given(OPENED, CLOSED), CLOSE)


def test_session_that_was_never_opened_is_unknown() -> None:
    for decide in (
        lambda: close_session(INITIAL, CLOSE),
        lambda: report_error(INITIAL, ReportError("ses_1", "m", "d")),
    ):
        with pytest.raises(SessionUnknown, match="ses_1"):
            decide()


def test_report_is_kept_and_cut_to_what_a_log_can_bear() -> None:
    (event,) = report_error(given(OPENED), ReportError("ses_1", "broken", "d" * (DETAIL_CHARS_MAX + 1)))
    assert isinstance(event, ClientErrorReported)
    assert len(event.detail) == DETAIL_CHARS_MAX
    assert given(OPENED, event).errors == 1


def test_report_after_the_end_is_refused() -> None:
    with pytest.raises(SessionUnknown):
        report_error(given(OPENED, CLOSED), ReportError("ses_1", "m", ""))
