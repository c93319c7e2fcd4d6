"""The levels L1 and L2: both run a job in a child of a zygote.

L2 keeps one warm zygote per profile and jails every child. L1 starts a fresh process for every call, with resource
limits but without a jail, where the kernel offers none; it is for our own trusted tools.
"""

import asyncio
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tool_executor.errors import CallCancelled, OutputLimit, ToolCrashed
from tool_executor.sandboxes.capture import Capture
from tool_executor.sandboxes.jail import Bounds
from tool_executor.sandboxes.sandbox import (
    Level,
    Limits,
    OnOutput,
    SandboxJob,
    SandboxResult,
    StreamName,
    Transcript,
    Usage,
)
from tool_executor.sandboxes.verdict import Ending, KilledFor, failure
from tool_executor.sandboxes.wire import REQUEST_FILE, RESULT_FILE, Exited, Order
from tool_executor.sandboxes.zygote_process import Profile, ZygoteProcess

CHUNK_BYTES = 64 * 1024
START_AGAIN_MAX = 2
"""Starts of a zygote after one that a signal ended."""


class _ProcessSandbox:
    """What both levels share: the calls that run now, and how they are ended when the executor stops."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: set[_Call] = set()
        self._closed = False

    async def _run_through(
        self, zygote: ZygoteProcess, job: SandboxJob, on_output: OnOutput | None, *, jailed: bool
    ) -> SandboxResult:
        with _call(self._directory, job, jailed=jailed, on_output=on_output) as call:
            self._running.add(call)
            try:
                return await call.through(zygote)
            finally:
                self._running.discard(call)

    async def _end_running(self) -> None:
        self._closed = True
        for call in self._running:
            call.end(KilledFor.STOP)
        await asyncio.gather(*(call.ended.wait() for call in self._running))

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise CallCancelled("the executor is stopping", retryable=True)


class ZygoteSandbox(_ProcessSandbox):
    """L2: a jailed fork of a warm zygote per call. The zygote starts with the first call, and again if it died."""

    level = Level.L2

    def __init__(self, profile: Profile, directory: Path) -> None:
        super().__init__(directory)
        self._profile = profile
        self._zygote: ZygoteProcess | None = None
        self._starting = asyncio.Lock()

    @property
    def zygote_pid(self) -> int | None:
        return self._zygote.pid if self._zygote is not None else None

    async def start(self) -> None:
        await self._warm()

    async def run(self, job: SandboxJob, on_output: OnOutput | None = None) -> SandboxResult:
        return await self._run_through(await self._warm(), job, on_output, jailed=True)

    async def aclose(self) -> None:
        await self._end_running()
        async with self._starting:
            if self._zygote is not None:
                await self._zygote.stop()

    async def _warm(self) -> ZygoteProcess:
        async with self._starting:
            self._refuse_when_closed()
            if self._zygote is None or not self._zygote.alive:
                if self._zygote is not None:
                    await self._zygote.stop()
                self._zygote = await _started(self._profile, self._directory)
                self._refuse_when_closed()  # meanwhile: who closes waits here, to stop it
            return self._zygote


class SubprocessSandbox(_ProcessSandbox):
    """L1: a fresh process per call, with resource limits and an empty environment. Only for trusted tools."""

    level = Level.L1

    async def start(self) -> None:
        """Every call has a process of its own: there is nothing to warm."""

    async def run(self, job: SandboxJob, on_output: OnOutput | None = None) -> SandboxResult:
        self._refuse_when_closed()
        zygote = await _started(Profile("single call"), self._directory)
        try:
            self._refuse_when_closed()
            return await self._run_through(zygote, job, on_output, jailed=False)
        finally:
            await zygote.stop()

    async def aclose(self) -> None:
        await self._end_running()


async def _started(profile: Profile, directory: Path) -> ZygoteProcess:
    """ToolCrashed if it cannot start. One that a signal ends meanwhile has run no call yet, so another is started."""
    for _ in range(START_AGAIN_MAX):
        zygote = ZygoteProcess(profile, directory)
        try:
            return await _start(zygote)
        except ToolCrashed:
            if zygote.killed_by is None:
                raise
    return await _start(ZygoteProcess(profile, directory))


async def _start(zygote: ZygoteProcess) -> ZygoteProcess:
    starting = asyncio.create_task(zygote.start(), name=f"zygote {zygote.profile.name}")
    try:
        # Shielded, because asyncio loses sight of a process if it is cancelled while it makes one.
        await asyncio.shield(starting)
    except BaseException:
        await asyncio.gather(starting, return_exceptions=True)
        await zygote.stop()
        raise
    return zygote


@contextmanager
def _call(directory: Path, job: SandboxJob, *, jailed: bool, on_output: OnOutput | None) -> Iterator["_Call"]:
    """The private directory of one call: the request in it, and an empty file for the result."""
    own = Path(tempfile.mkdtemp(prefix="call-", dir=directory))
    try:
        (own / REQUEST_FILE).write_bytes(job.payload)
        (own / RESULT_FILE).touch(mode=0o600)
        yield _Call(own, job, jailed, on_output)
    finally:
        shutil.rmtree(own)


@dataclass(eq=False)
class _Call:
    """One job on its way: who killed it, what it printed, how it ended."""

    directory: Path
    job: SandboxJob
    jailed: bool
    on_output: OnOutput | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _zygote: ZygoteProcess | None = None
    _killed_for: KilledFor | None = None

    async def through(self, zygote: ZygoteProcess) -> SandboxResult:
        self._zygote = zygote
        began = time.monotonic()
        stdout, stderr = (Capture(self.job.limits.output_kept_bytes) for _ in range(2))
        try:
            exited = await self._carry_out(zygote, _Pipe("stdout", stdout), _Pipe("stderr", stderr))
        finally:
            self.ended.set()
        usage = _usage(exited, time.monotonic() - began)
        transcript = Transcript(stdout=stdout.output(), stderr=stderr.output(), usage=usage)
        if failed := failure(Ending(exited.status, self._killed_for, transcript), self.job.limits):
            raise failed
        return SandboxResult(self._value(transcript), transcript)

    def end(self, reason: KilledFor) -> None:
        """Kill the child; the first reason given is the one that is reported."""
        self._killed_for = self._killed_for or reason
        if self._zygote is not None:
            self._zygote.kill(self.directory.name)

    async def _carry_out(self, zygote: ZygoteProcess, stdout: "_Pipe", stderr: "_Pipe") -> Exited:
        pipes = (stdout, stderr)
        timer = asyncio.get_running_loop().call_later(self.job.limits.wall_s, self.end, KilledFor.WALL)
        readers = [asyncio.create_task(self._drain(pipe)) for pipe in pipes]
        try:
            exited = await self._forked(zygote, stdout, stderr)
            await asyncio.gather(*readers)
            return exited
        finally:
            timer.cancel()
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            for pipe in pipes:
                pipe.close()

    async def _forked(self, zygote: ZygoteProcess, stdout: "_Pipe", stderr: "_Pipe") -> Exited:
        try:
            return await zygote.call(self._order(zygote.profile.readable), stdout.writing, stderr.writing)
        finally:
            # Ours are the last copies once the child is gone: closing them is what lets the readers see the end.
            stdout.close_writing()
            stderr.close_writing()

    async def _drain(self, pipe: "_Pipe") -> None:
        while chunk := await pipe.read():
            pipe.capture.feed(chunk)
            if self.on_output is not None:
                self.on_output(pipe.name, chunk)
            # Once: who floods us would have us flood the zygote.
            if self._killed_for is None and pipe.capture.size_bytes > self.job.limits.output_bytes:
                self.end(KilledFor.OUTPUT)

    def _order(self, readable: tuple[str, ...]) -> Order:
        return Order(
            call=self.directory.name,
            entry=self.job.entry,
            call_directory=str(self.directory),
            workspace=str(self.job.workspace) if self.job.workspace is not None else None,
            access=self.job.access.value,
            jailed=self.jailed,
            readable=readable,
            bounds=_bounds(self.job.limits),
        )

    def _value(self, transcript: Transcript) -> bytes:
        """Read after death, and as data: the child may have put anything in the place of its result file."""
        descriptor = os.open(self.directory / RESULT_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not found.st_size:
                raise ToolCrashed("the process ended without leaving a result", transcript=transcript)
            if found.st_size > self.job.limits.result_bytes:
                message = (
                    f"the result is {found.st_size} bytes, the limit is {self.job.limits.result_bytes}; return less"
                )
                raise OutputLimit(message, transcript=transcript)
            return file.read()


class _Pipe:
    """One output stream of a child: we read, it writes."""

    def __init__(self, name: StreamName, capture: Capture) -> None:
        self.name = name
        self.capture = capture
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)

    async def read(self) -> bytes:
        """The next bytes, or none when every writer is gone."""
        while True:
            try:
                return os.read(self._reading, CHUNK_BYTES)
            except BlockingIOError:
                await self._readable()

    def close_writing(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        self.close_writing()
        os.close(self._reading)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._reading, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._reading)


def _bounds(limits: Limits) -> Bounds:
    return Bounds(limits.cpu_s, limits.memory_bytes, limits.file_bytes, limits.descriptors)


def _usage(exited: Exited, wall_s: float) -> Usage:
    return Usage(
        wall_s=wall_s,
        cpu_user_s=exited.cpu_user_s,
        cpu_system_s=exited.cpu_system_s,
        memory_peak_bytes=exited.memory_peak_bytes,
    )
