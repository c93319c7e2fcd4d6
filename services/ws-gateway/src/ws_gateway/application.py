"""Use cases of sessions: each is opened, may report errors, and is closed, as events of its own stream."""

from eventlog.aggregates import Aggregates
from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.log import EventLog
from eventlog.records import Context
from synod.common.event import Event

from ws_gateway import domain
from ws_gateway.domain import Close, Open, ReportError, Session


class Sessions:
    """The history of connections of all tenants. Ids are globally unique."""

    def __init__(self, log: EventLog, codec: Codec[Event], clock: Clock) -> None:
        self._sessions: Aggregates[Session, Event] = Aggregates(log, "session", Session, domain.evolve, codec, clock)

    async def open(self, command: Open, context: Context) -> None:
        await self._sessions.execute(command.session_id, lambda state: domain.open_session(state, command), context)

    async def close(self, command: Close, context: Context) -> None:
        await self._sessions.execute(command.session_id, lambda state: domain.close_session(state, command), context)

    async def report_error(self, command: ReportError, context: Context) -> None:
        await self._sessions.execute(command.session_id, lambda state: domain.report_error(state, command), context)
