"""The WebSocket adapter: frames in, frames out, a heartbeat, and close codes. What messages mean is the dialogue's.

1001  the gateway stops; come back with your offsets     4401  not authenticated, or not any more
1009  a frame larger than is received at all             4403  the origin may not connect, or an operator said so
4400  too many frames that break the protocol            4408  the client reads too slowly; recover by offset
                                                         4429  too many connections
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from eventlog.ending import end
from httpedge.callers import Caller, credential_of
from servicekit.errors import ResourceExhausted, ServiceError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ws_gateway.dialogue import OVERFLOW, UNAUTHENTICATED, Backstage, Dialogue
from ws_gateway.errors import FrameRefused
from ws_gateway.hub import protocol
from ws_gateway.hub.outbox import Outbox, Policy
from ws_gateway.sessions import FULL, Live

VIOLATIONS: Final = 4400
FORBIDDEN: Final = 4403
GOING_AWAY: Final = 1001
REASON_BYTES_MAX: Final = 123
CLOSE_S: Final = 5.0
NOT_SENT: Final = frozenset({1005, 1006})
"""Codes that say that no close frame came; they are never sent in one (RFC 6455, 7.4.1)."""
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class WebSockets:
    """The endpoint of the protocol."""

    back: Backstage
    origins: frozenset[str]

    async def serve(self, socket: WebSocket) -> None:
        """One connection from handshake to end."""
        await socket.accept()
        if not origin_allowed(socket.headers.get("origin"), self.origins):
            await socket.close(FORBIDDEN, "this origin may not connect; an operator can allow it")
            return
        await Connection(self.back, socket).run()


@dataclass(slots=True)
class Connection:
    """One client. Frames are read one after the other; what is sent waits in a bounded outbox."""

    back: Backstage
    socket: WebSocket
    outbox: Outbox = field(init=False)
    dialogue: Dialogue | None = None
    violations: int = 0
    _something: asyncio.Event = field(default_factory=asyncio.Event)
    _ending: "asyncio.Future[tuple[int, str]]" = field(init=False)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.back.limits.outbox_frames_max, self.back.limits.outbox_bytes_max)
        self._ending = asyncio.get_running_loop().create_future()

    @property
    def channels(self) -> tuple[str, ...]:
        return self.dialogue.channels if self.dialogue else ()

    @property
    def frames_dropped(self) -> int:
        return self.outbox.dropped

    def end(self, code: int, reason: str) -> None:
        if not self._ending.done():
            self._ending.set_result((code, reason))

    def send(self, frame: bytes, policy: Policy) -> None:
        if not self.outbox.put(frame, policy):
            self.end(OVERFLOW, "the client reads too slowly; connect again and recover by offset")
        self._something.set()

    async def run(self) -> None:
        """Authenticate, talk, and end with a code that says why."""
        try:
            credential, caller, ref = await self._authenticate()
            async with self.back.register.session(caller, "websocket", self._remote(), self) as live:
                live.ended = await self._talk(live, credential, ref)
                await self._close(*live.ended)
        except WebSocketDisconnect:
            return
        except ResourceExhausted as error:
            await self._close(FULL, error.message)
        except ServiceError as error:
            await self._say_now(error.reason, error.message)
            await self._close(UNAUTHENTICATED, error.reason)

    async def _authenticate(self) -> tuple[str, Caller, str]:
        """By a header of the handshake, or by the first message."""
        if credential := credential_of(self.socket.headers):
            return credential, await self.back.callers.identify(credential), ""
        try:
            async with asyncio.timeout(self.back.limits.auth_wait_s):
                message = await self._read_auth()
        except TimeoutError:
            await self._close(UNAUTHENTICATED, f"no auth message within {self.back.limits.auth_wait_s:g} s")
            raise WebSocketDisconnect(UNAUTHENTICATED) from None
        return message.token, await self.back.callers.identify(message.token), message.id

    async def _read_auth(self) -> protocol.Auth:
        while True:
            try:
                message = protocol.read(await self._receive(), self.back.limits.frame_bytes_max)
                if isinstance(message, protocol.Auth):
                    return message
                raise FrameRefused(
                    "NOT_AUTHENTICATED",
                    'say who you are first: {"type": "auth", "id": "1", "token": "<API key or token>"}',
                    "type",
                    message.id,
                )
            except FrameRefused as refused:
                self.back.register.meters.violations.labels(refused.code).inc()
                await self._say_now(refused.code, refused.message, refused.ref, refused.field)
                self.violations += 1
                if self.violations >= self.back.limits.violations_max:
                    await self._close(VIOLATIONS, "too many frames that break the protocol")
                    raise WebSocketDisconnect(VIOLATIONS) from None

    async def _talk(self, live: Live, credential: str, ref: str) -> tuple[int, str]:
        dialogue = self.dialogue = Dialogue(self.back, live, credential, self.send, self.end)
        principal = live.caller.principal
        dialogue.say(
            protocol.Authenticated(
                id=dialogue.next_id(),
                ref=ref,
                session_id=live.id,
                principal_id=principal.id,
                tenant_id=principal.tenant,
                heartbeat_s=self.back.limits.heartbeat_s,
            )
        )
        works = (self._ended(), self._read_all(dialogue), self._write_all(live), self._beat(dialogue))
        tasks = [asyncio.create_task(work) for work in works]
        try:
            return await self._first_end(tasks)
        finally:
            await end(*tasks, again_s=CLOSE_S)
            await dialogue.close()

    async def _first_end(self, tasks: list["asyncio.Task[None]"]) -> tuple[int, str]:
        """How it ends: as somebody decided, or by the defect of a task."""
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and (error := task.exception()):
                self.back.log_.error("connection_failed", error=error)
                self.end(1011, "the gateway failed; its log has the cause")
        return await self._ending

    async def _ended(self) -> None:
        await asyncio.wait([self._ending])

    async def _read_all(self, dialogue: Dialogue) -> None:
        while True:
            try:
                frame = await self._receive()
            except WebSocketDisconnect as left:
                self.end(left.code, "the client left")
                return
            try:
                message = protocol.read(frame, self.back.limits.frame_bytes_max)
            except FrameRefused as refused:
                self._violated(dialogue, refused)
            else:
                await dialogue.answer(message)

    def _violated(self, dialogue: Dialogue, refused: FrameRefused) -> None:
        self.back.register.meters.violations.labels(refused.code).inc()
        dialogue.refuse(refused)
        self.violations += 1
        if self.violations >= self.back.limits.violations_max:
            self.end(VIOLATIONS, "too many frames that break the protocol")

    async def _write_all(self, live: Live) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            while (frame := self.outbox.take()) is not None:
                try:
                    await self.socket.send_text(frame.decode())
                except (WebSocketDisconnect, RuntimeError):
                    self.end(1006, "the connection was lost")
                    return
                self.back.register.count_sent(live)

    async def _beat(self, dialogue: Dialogue) -> None:
        """Shows that the gateway is there, and notices a credential that is no longer good."""
        while True:
            await asyncio.sleep(self.back.limits.heartbeat_s)
            try:
                await dialogue.caller()
            except ServiceError as error:
                self.back.log_.info("session_unverified", session=dialogue.live.id, reason=error.reason)
            dialogue.say(protocol.ServerPing(id=dialogue.next_id()), "drop_oldest")

    async def _receive(self) -> str | bytes:
        message = await self.socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1005)
        text: str | None = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def _say_now(self, code: str, text: str, ref: str = "", field: str = "") -> None:
        """An error before there is a dialogue."""
        error = protocol.ErrorFrame(id=f"pre:{self.violations}", ref=ref, code=code, message=text, field=field)
        await self.socket.send_text(protocol.write(error).decode())

    async def _close(self, code: int, reason: str) -> None:
        """Say what is left to say and why it ends; a client that reads nothing is not waited for."""
        if self.socket.application_state is not WebSocketState.CONNECTED or code in NOT_SENT:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                while code != OVERFLOW and (frame := self.outbox.take()) is not None:
                    await self.socket.send_text(frame.decode())
                await self.socket.close(code, reason.encode()[:REASON_BYTES_MAX].decode(errors="ignore"))
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return

    def _remote(self) -> str:
        return f"{self.socket.client.host}:{self.socket.client.port}" if self.socket.client else "unknown"


def origin_allowed(origin: str | None, allowed: frozenset[str]) -> bool:
    """Programs send no origin. Pages do, and must come from this machine or from where an operator allows."""
    if origin is None or origin in allowed:
        return True
    try:
        return urlsplit(origin).hostname in LOOPBACK
    except ValueError:
        return False
