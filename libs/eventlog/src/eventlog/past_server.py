"""Answers for the owner of a log to those who need what its stream no longer holds (past.py)."""

from __future__ import annotations

import logging
from typing import Final

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from synod.common.streams import PAST_EVENTS_MAX
from synod.common.subjects import past_subject

from eventlog.errors import EventLogError
from eventlog.log import EventLog
from eventlog.past import END, ERROR, POSITION
from eventlog.records import EVERYTHING
from eventlog.relay import EventUnpublishable, as_message, send
from eventlog.sources import read_page

PAGE_BYTES: Final = 4 * 1024 * 1024
"""Data after which an answer ends."""
REQUESTS_MAX: Final = 64
"""That wait in one process; what is more than that gets no answer, and is asked again."""
QUEUE: Final = "past"
"""Replicas of a service share its requests."""

_log = logging.getLogger(__name__)


class PastServer:
    """Answers from `log` for `service`, one request after another. Owns no connection."""

    def __init__(self, log: EventLog, client: Client, service: str) -> None:
        self._log = log
        self._client = client
        self._service = service

    async def run(self) -> None:
        """Answer for ever."""
        requests = await self._client.subscribe(
            past_subject(self._service), queue=QUEUE, pending_msgs_limit=REQUESTS_MAX
        )
        try:
            async for request in requests.messages:
                if request.reply:
                    await self._answer(request)
        finally:
            if not self._client.is_closed:
                await requests.unsubscribe()

    async def _answer(self, request: Msg) -> None:
        try:
            messages = await self._messages(request)
        except (ValueError, EventLogError, EventUnpublishable) as error:
            _log.info("the past of %s could not be told: %r", self._service, error)
            messages = [_message(request.reply, f"{ERROR}: {_line(error)}\r\n")]
        try:
            await send(self._client, messages)
        except (nats.errors.Error, OSError) as error:
            _log.info("the past of %s could not be sent: %r", self._service, error)

    async def _messages(self, request: Msg) -> list[bytes]:
        after, limit = _asked(request.data)
        page = await read_page(self._log, after, limit, EVERYTHING, PAGE_BYTES)
        to, payload_max = request.reply, self._client.max_payload
        told = [
            as_message(event, self._service, to, f"{POSITION}: {event.position}\r\n", "", payload_max)
            for event in page.events
        ]
        return [*told, _message(to, f"{END}: {len(told)}\r\n")]


def _asked(data: bytes) -> tuple[int, int]:
    """What is asked for. Raises ValueError."""
    asked = orjson.loads(data)
    after, limit = (asked.get("after"), asked.get("limit")) if isinstance(asked, dict) else (None, None)
    if type(after) is not int or after < 0:
        raise ValueError(f"after must be a position, 0 or more, and not {_short(after)}")
    if type(limit) is not int or not 1 <= limit <= PAST_EVENTS_MAX:
        raise ValueError(f"limit must be 1 to {PAST_EVENTS_MAX}, and not {_short(limit)}")
    return after, limit


def _message(reply: str, lines: str) -> bytes:
    block = f"NATS/1.0\r\n{lines}\r\n".encode()
    return b"HPUB %b %d %d\r\n%b\r\n" % (reply.encode(), len(block), len(block), block)


def _short(value: object) -> str:
    """What was sent, as far as it fits into an answer whoever sent it."""
    return ascii(value)[:40]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
