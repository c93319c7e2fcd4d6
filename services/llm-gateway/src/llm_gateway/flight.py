"""A call in flight: what it has delivered so far, who waits for it, and when it stops waiting for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from eventlog.errors import LogUnavailable, QueueFull
from eventlog.signal import settle
from synod.common.values import Failure

from llm_gateway.domain import (
    Abort,
    Answer,
    CacheUse,
    Delta,
    ReasoningDone,
    ToolCallDelta,
)
from llm_gateway.errors import CallEnded, CallFailed, GatewayStopping, StoreUnavailable

FLUSH_S: Final = 0.015
FLUSH_BYTES: Final = 256
STOPPED: Final = Failure(reason="STOPPING", message=str(GatewayStopping()), retryable=True)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Began:
    """The first content is there; `attempt` delivers it, and no other will. `warnings` are those known by then."""

    model: str
    attempt: int
    reservation_id: str
    cache: CacheUse = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Broken:
    """Ends a stream that had delivered content."""

    failure: Failure


CallEvent: TypeAlias = Began | Delta | Answer | Broken


class Flight:
    """One call being carried out by `task`, shared by all who asked for it.

    Deltas are joined before they are shown: the first is shown at once, later ones after FLUSH_S or FLUSH_BYTES,
    because a gRPC message costs more than the tokens in it. Times are on the clock of the event loop.
    """

    def __init__(self, request_sha256: str, ends_at: float) -> None:
        self.request_sha256 = request_sha256
        self.ends_at = ends_at
        self.wanted_until = 0.0
        self.callers = 0
        self.abandoned = False
        # Until an attempt is begun nothing is paid for.
        self.abort: Abort = "free"
        self.began: Began | None = None
        self.first_content_at: float | None = None
        self._shown: list[Began | Delta] = []
        self._pending: list[Delta] = []
        self._pending_bytes = 0
        self._flush_timer: asyncio.TimerHandle | None = None
        # Only where somebody follows.
        self._grown: asyncio.Event | None = None
        self._task: asyncio.Task[Answer] | None = None
        self._waiting: list[asyncio.Future[bool]] = []
        self._landed = False
        self._recording = False
        self._ending = False
        # It was to end while something was being recorded, and has not heard so yet.
        self._is_to_end = False
        self._is_stopping = False
        self._is_over = False

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """All content so far, shown or not."""
        return (*(part for part in self._shown if not isinstance(part, Began)), *self._pending)

    def carry(self, task: asyncio.Task[Answer], landed: Callable[[], None]) -> None:
        """The task that carries the call out; `landed` is called when it is done."""
        self._task = task

        def done(task: asyncio.Task[Answer]) -> None:
            self._landed = True
            self._flush()
            landed()
            for waiting in self._waiting:
                settle(waiting)
            if not task.cancelled():
                task.exception()  # who waited has it; when nobody did, it is in the log

        task.add_done_callback(done)

    def want_until(self, deadline: float | None) -> None:
        """A caller waits until `deadline`, or as long as the call may take."""
        self.wanted_until = max(self.wanted_until, min(deadline or self.ends_at, self.ends_at))

    def show(self, began: Began, delta: Delta, ahead: Sequence[ReasoningDone] = ()) -> None:
        """Deliver content of the attempt `began`; `ahead` is what came before its first."""
        if self.began is None:
            self.began = began
            self.first_content_at = asyncio.get_running_loop().time()
            self._shown.append(began)
            self._pending.extend((*ahead, delta))
            self._flush()
        else:
            self._join(delta)

    async def answer(self) -> Answer:
        """Raises what the call ended with."""
        assert self._task is not None
        if not self._task.done():
            # A future of its own for each caller, so that one who leaves does not cancel the task: what `shield` is for,
            # at a fifth of its price.
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        return self._task.result()

    async def events(self) -> AsyncIterator[CallEvent]:
        """What was delivered from the start, then what comes, then the end. Raises only before the first event."""
        seen = 0
        while True:
            grown = self._grown = self._grown or asyncio.Event()
            while seen < len(self._shown):
                yield self._shown[seen]
                seen += 1
            # Not as soon as the task is done: what it showed last is flushed by its callback, which comes later.
            if self._landed and seen == len(self._shown):
                break
            await grown.wait()
        yield self._end_of_events(shown=seen > 0)

    def _end_of_events(self, *, shown: bool) -> Answer | Broken:
        """How the call ended; raises what it ended with, if nothing was shown."""
        assert self._task is not None
        try:
            return self._task.result()
        # The call was cancelled, and not whoever asks here, since nothing is waited for: by a stop, for `abandon` ends it
        # with CallCancelled.
        except (CallEnded, LogUnavailable, QueueFull, StoreUnavailable, asyncio.CancelledError) as error:
            if not shown:
                raise
            return Broken(_failure_of(error))

    def abandon(self) -> None:
        """Nobody waits any more: end the call. If it ends with the process anyway, callers leave for that reason."""
        self.abandoned = self.abandoned or not self._is_stopping
        self._end()

    def keep(self) -> None:
        """Somebody waits again: go on, if it has not heard yet that nobody did."""
        if self.abandoned and self._is_to_end and not self._is_stopping:
            self.abandoned = self._is_to_end = False

    def stop(self) -> None:
        """The process stops: end the call, unless it is just being recorded how it ended."""
        self._is_stopping = True
        self._end()

    async def step(self, recording: Awaitable[T]) -> T:
        """Records a step to its end. Raises CancelledError after it, if the call was to end meanwhile.

        What was sent to the log cannot be taken back: broken off, it may be on record after what was to follow it.
        """
        self._recording = True
        try:
            return await recording
        finally:
            self._recording = False
            if not self._ending:
                await self.heed()

    async def unbroken(self, recording: Awaitable[T]) -> T:
        """Records what ends the call, even if nobody waits for it any more. If it did not end it: `heed`."""
        self._ending = True
        try:
            return await recording
        finally:
            self._ending = False

    async def last(self, recording: Awaitable[None]) -> None:
        """Records how a call ends that was to end; nothing ends it again."""
        self._is_over, self._is_to_end = True, False
        await recording

    async def heed(self) -> None:
        """Raises CancelledError if the call was to end while something was being recorded."""
        if self._is_to_end and self._task is not None:
            self._is_to_end = False
            self._task.cancel()
            await asyncio.sleep(0)

    async def landed(self) -> None:
        """Wait for the end, whatever it is."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def _end(self) -> None:
        if self._task is None or self._is_over:
            return
        if self._recording or self._ending:
            self._is_to_end = True
        else:
            self._task.cancel()

    def _join(self, delta: Delta) -> None:
        joined = _joined(self._pending[-1], delta) if self._pending else None
        if joined is not None:
            self._pending[-1] = joined
        else:
            self._pending.append(delta)
        self._pending_bytes += _length(delta)
        if self._pending_bytes >= FLUSH_BYTES:
            self._flush()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def _flush(self) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._shown.extend(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        grown, self._grown = self._grown, None
        if grown is not None:
            grown.set()


def _failure_of(error: BaseException) -> Failure:
    """The reasons are those that callers who have seen nothing are told by gRPC."""
    match error:
        case CallFailed():
            return error.failure
        case CallEnded():
            return Failure(reason="CALL_CANCELLED", message=str(error))
        case asyncio.CancelledError():
            return STOPPED
        case QueueFull():
            reason = "LOG_QUEUE_FULL"
        case StoreUnavailable():
            reason = "STORE_UNAVAILABLE"
        case _:
            reason = "LOG_UNAVAILABLE"
    message = f"how the call ended could not be recorded: {error}; repeat it with the same request_id"
    return Failure(reason=reason, message=message, retryable=True)


def _length(delta: Delta) -> int:
    if isinstance(delta, ToolCallDelta):
        return len(delta.arguments)
    # Nobody reads along while a part ends: it goes with what is shown next.
    return 0 if isinstance(delta, ReasoningDone) else len(delta.text)


def _joined(before: Delta, after: Delta) -> Delta | None:
    """One delta that says what both say; None when they belong to different things."""
    if isinstance(before, ToolCallDelta):
        if not isinstance(after, ToolCallDelta) or before.index != after.index:
            return None
        return ToolCallDelta(before.index, before.id, before.name, before.arguments + after.arguments)
    kind = type(before)
    if isinstance(before, ReasoningDone) or isinstance(after, ToolCallDelta | ReasoningDone) or kind is not type(after):
        return None
    return kind(before.text + after.text)
