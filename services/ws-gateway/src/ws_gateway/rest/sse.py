"""Server-sent events (WHATWG HTML, 9.2): `id` is the cursor with which a broken stream goes on (Last-Event-ID)."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from fastapi import Request
from httpedge.callers import Caller
from httpedge.problems import defect, problem_of
from pydantic import BaseModel
from servicekit.errors import InvalidArgument, ServiceError
from starlette.responses import StreamingResponse

from ws_gateway.clients import OWN, refusal
from ws_gateway.dialogue import Backstage
from ws_gateway.sessions import GONE

HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
KEEPALIVE: Final = b": keep-alive\n\n"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event; without `id` it is not repeated after a reconnect."""

    event: str
    data: BaseModel
    id: str = ""

    def encode(self) -> bytes:
        # JSON has no line breaks, so that data is always one line.
        head = f"id: {self.id}\n" if self.id else ""
        return f"{head}event: {self.event}\ndata: {self.data.model_dump_json()}\n\n".encode()


def last_event_id(text: str) -> int:
    """The cursor to go on after. Raises InvalidArgument when it is none of ours."""
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidArgument("Last-Event-ID", text, "must be the id of an event of this stream, a whole number")
    return int(text)


@dataclass(slots=True, eq=False)
class Streamed:
    """A stream to one client, as the register sees it."""

    channels: tuple[str, ...]
    frames_dropped: int = 0
    ended: "asyncio.Future[tuple[int, str]]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, code: int, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result((code, reason))


def stream(
    request: Request, back: Backstage, caller: Caller, channel: str, events: AsyncIterator[ServerEvent]
) -> StreamingResponse:
    """Answer with `events` as they come; an error in the middle is the last event, named error."""
    return StreamingResponse(
        _session(request, back, caller, channel, events), headers=HEADERS, media_type="text/event-stream"
    )


async def _session(
    request: Request, back: Backstage, caller: Caller, channel: str, events: AsyncIterator[ServerEvent]
) -> AsyncIterator[bytes]:
    remote = f"{request.client.host}:{request.client.port}" if request.client else "unknown"
    connection = Streamed((channel,))
    async with back.register.session(caller, "sse", remote, connection) as live:
        async with aclosing(_kept_alive(events, connection, back.limits.sse_keepalive_s)) as chunks:
            try:
                async for chunk in chunks:
                    yield chunk
                    back.register.count_sent(live)
            except Exception as error:  # noqa: BLE001 - the edge of a stream: told to the client
                yield _failure(request, refusal(error) or defect(error, back.log_, OWN)).encode()
        live.ended = connection.ended.result() if connection.ended.done() else (GONE, "the stream has ended")


async def _kept_alive(
    events: AsyncIterator[ServerEvent], connection: Streamed, pause_s: float
) -> AsyncGenerator[bytes, None]:
    """The events encoded, and a comment whenever there was none for a while, so that proxies keep the line open."""
    following = asyncio.ensure_future(anext(events))
    ending = asyncio.ensure_future(_ended(connection))
    try:
        while not ending.done():
            await asyncio.wait([following, ending], timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                yield KEEPALIVE
                continue
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            yield event.encode()
            following = asyncio.ensure_future(anext(events))
    finally:
        following.cancel()
        ending.cancel()
        await asyncio.wait([following, ending])


async def _ended(connection: Streamed) -> None:
    await asyncio.wait([connection.ended])


def _failure(request: Request, error: ServiceError) -> ServerEvent:
    return ServerEvent("error", problem_of(error, request.url.path))
