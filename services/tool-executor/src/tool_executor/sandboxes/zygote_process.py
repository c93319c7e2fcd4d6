"""The executor's end of a zygote: start it, give orders, hear of exits."""

import asyncio
import contextlib
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tool_executor.errors import ToolCrashed
from tool_executor.sandboxes.wire import MESSAGE_BYTES_MAX, Exited, Kill, Order, Ready, decode

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

# Nothing of our own environment reaches tool code. One thread and one malloc arena keep the address space, which is
# what RLIMIT_AS counts, near what is really used.
ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "HOME": "/nonexistent",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MPLBACKEND": "Agg",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class Profile:
    """What a zygote imports before it forks; tools with the same imports share one.

    `readable` are paths beyond the usual whose files its calls may read.
    """

    name: str
    modules: tuple[str, ...] = ()
    readable: tuple[str, ...] = ()


class ZygoteProcess:
    """One zygote and the calls it carries. Not restarted: when it dies, its calls fail and `alive` turns false."""

    def __init__(self, profile: Profile, directory: Path) -> None:
        self._profile = profile
        self._directory = directory
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._log: BinaryIO | None = None
        self._ready: asyncio.Future[None] | None = None
        self._calls: dict[str, asyncio.Future[Exited]] = {}
        self._late: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    @property
    def profile(self) -> Profile:
        return self._profile

    @property
    def alive(self) -> bool:
        return self._control is not None

    @property
    def killed_by(self) -> int | None:
        """The signal that ended the process; None if it lives, or ended by itself."""
        code = self._process.returncode if self._process is not None else None
        return -code if code is not None and code < 0 else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Return when the zygote has imported its profile; ToolCrashed with its last words if it does not get there."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._log = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  open as long as the process
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", "tool_executor.sandboxes.zygote", *self._profile.modules),
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=self._log,
                env=ENVIRONMENT | {"MPLCONFIGDIR": str(self._directory)},
                cwd="/",
            )
        self._control = ours
        self._ready = loop.create_future()
        loop.add_reader(ours, self._hear)
        async with asyncio.timeout(START_TIMEOUT_S):
            await self._ready

    async def call(self, order: Order, stdout: int, stderr: int) -> Exited:
        """Have a child forked for the order, and wait for its end. ToolCrashed if the zygote itself dies."""
        if self._control is None:
            raise ToolCrashed(f"the {self._profile.name} zygote is not running")
        exited: asyncio.Future[Exited] = asyncio.get_running_loop().create_future()
        self._calls[order.call] = exited
        try:
            await self._send(order.encode(), [stdout, stderr])
            return await asyncio.shield(exited)
        except asyncio.CancelledError:
            self.kill(order.call)
            await asyncio.shield(exited)
            raise
        finally:
            self._calls.pop(order.call, None)

    def kill(self, call: str) -> None:
        """End the child of a call now; its exit is reported like any other. Nothing happens if it is gone."""
        if self._control is None or call not in self._calls:
            return
        try:
            self._control.send(Kill(call).encode())
        except BlockingIOError:
            # It has many orders to read before. Who asks does not wait for that, and is not forgotten.
            task = asyncio.create_task(self._kill_later(call), name=f"kill {call}")
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    async def _kill_later(self, call: str) -> None:
        with contextlib.suppress(ToolCrashed):  # with the zygote its children have died
            await self._send(Kill(call).encode(), [])

    async def stop(self) -> None:
        """Close our end, which makes the zygote kill its children and end, and see it gone."""
        self._hang_up()
        if self._process is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _send(self, datagram: bytes, descriptors: list[int]) -> None:
        async with self._turn:  # a loop wakes one writer of a socket, so one waits at a time
            while self._control is not None:
                try:
                    socket.send_fds(self._control, [datagram], descriptors)
                    return
                except BlockingIOError:
                    await self._writable(self._control)
                except OSError:
                    self._hang_up()
        raise ToolCrashed(f"the {self._profile.name} zygote died before it took the call")

    async def _writable(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(control, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(control)

    def _hear(self) -> None:
        while self._control is not None:
            try:
                datagram = self._control.recv(MESSAGE_BYTES_MAX)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            self._understand(datagram)

    def _understand(self, datagram: bytes) -> None:
        if not datagram:
            self._hang_up()
            return
        match decode(datagram):
            case Ready() if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
            case Exited() as exited if (waiting := self._calls.get(exited.call)) and not waiting.done():
                waiting.set_result(exited)
            case _:
                return

    def _hang_up(self) -> None:
        """The conversation is over: whoever waits for an answer gets the zygote's last words."""
        if self._control is None:
            return
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        self._control = None
        last_words = self._last_words()
        for waiting in (self._ready, *self._calls.values()):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ToolCrashed(f"the {self._profile.name} zygote died: {last_words}"))
                waiting.exception()  # seen: nobody may be waiting any more

    def _last_words(self) -> str:
        if self._log is None:
            return "it left no message"
        with contextlib.closing(self._log) as log:
            self._log = None
            log.seek(0)
            return log.read()[-500:].decode(errors="replace").strip() or "it left no message"
