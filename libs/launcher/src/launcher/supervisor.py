"""Keeps a set of programs running: starts them in the order of their needs, restarts what crashed, stops all of it.

Each program has one _Keeper, a task that lives through the program's lives:

    WAITING ──needs ready──▶ STARTING ──ready──▶ READY ◀──▶ DEGRADED      (its own word, asked every 2 s)
                                ▲  │                 │
                                │  └────ended────────┤
                                └──backoff── RESTARTING        ──stop──▶ STOPPING ──▶ STOPPED
    FAILED: ended, or was not ready in time, before it was ever ready, as often as its attempts allow
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from time import monotonic

from launcher.errors import LauncherError, StartFailed
from launcher.layout import Limits
from launcher.logs import Logs
from launcher.processes import Command, Warden, explain, kill_group


class State(Enum):
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Readiness:
    """A program's answer to whether it is ready; `said` is what it said about it, for people."""

    is_ready: bool
    said: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """What to run and how to know that it is ready.

    `prepare` runs before each start and `provision` after each time it became ready, both in a thread; others that need
    this program wait for `provision` too. `attempts_max` counts the starts that may fail before it was ever ready.
    """

    name: str
    command: Command
    probe: Callable[[int], Awaitable[Readiness]]
    address: str
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None
    provision: Callable[[], None] | None = None
    attempts_max: int = 1


@dataclass(frozen=True, slots=True)
class Status:
    """How a program is, at one moment. `problem` is why it is not ready, empty otherwise."""

    name: str
    address: str
    state: State = State.WAITING
    pid: int | None = None
    restarts: int = 0
    problem: str = ""

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the program's own process, 0 if it has none."""
        if self.pid is None:
            return 0
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")


OnChange = Callable[[Status], None]


class Supervisor:
    """Runs programs until `stop`. `on_change` hears of every change of a Status, on the event loop.

    All children are started by the thread of the event loop and die with it (see processes.py).
    """

    def __init__(
        self, programs: Sequence[Program], limits: Limits, logs: Logs, warden: Warden, on_change: OnChange | None = None
    ) -> None:
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._limits = limits
        heard = on_change or (lambda status: None)
        self._keepers = {program.name: _Keeper(program, limits, logs, warden, heard) for program in programs}
        for keeper in self._keepers.values():
            keeper.needs = tuple(self._keepers[name] for name in keeper.program.needs if name in self._keepers)

    @property
    def statuses(self) -> Mapping[str, Status]:
        return {name: keeper.status for name, keeper in self._keepers.items()}

    async def start(self) -> None:
        """Starts all programs and returns when all are ready. Raises the first failure; `stop` is still to follow."""
        for keeper in self._keepers.values():
            keeper.begin(self._fail)
        all_ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait((all_ready, self._failure), return_when=asyncio.FIRST_COMPLETED)
        finally:
            all_ready.cancel()
        if self._failure.done():
            self._failure.result()

    async def stop(self, grace_s: float | None = None) -> None:
        """Stops all programs, each after those that need it; kills what has not ended `grace_s` after it was asked."""
        keepers = self._keepers.values()
        grace = self._limits.stop_grace_s if grace_s is None else grace_s
        await asyncio.gather(*(k.stop(grace, [other for other in keepers if k in other.needs]) for k in keepers))
        # A failure was either raised by `start` or is of no interest any more.
        if not self._failure.cancel() and not self._failure.cancelled():
            self._failure.exception()

    def kill(self, name: str) -> None:
        """Kills a program as a crash would, with its whole process group; it is then restarted."""
        self._keepers[name].kill()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a program a signal; nothing if it does not run just now."""
        self._keepers[name].signal(number)

    def kill_all(self) -> None:
        """Kills every program at once, for a stop that shall take no time."""
        for keeper in self._keepers.values():
            keeper.kill()

    async def restart(self, name: str) -> None:
        """Stops one program, starts it again, and returns when it is ready."""
        await self._keepers[name].restart()

    async def switch_off(self, name: str, grace_s: float | None = None) -> None:
        """Stops one program for good; the others stay, whatever they needed it for."""
        await self._keepers[name].stop(self._limits.stop_grace_s if grace_s is None else grace_s, ())

    async def wait_ready(self, name: str, timeout_s: float) -> None:
        """Returns when the program is ready; TimeoutError if it is not within the time."""
        await asyncio.wait_for(self._keepers[name].ready.wait(), timeout_s)

    async def wait_failed(self) -> None:
        """Raises when a keeper itself fails, which only a defect of ours makes it do once all were ready."""
        await asyncio.shield(self._failure)

    async def _all_ready(self) -> None:
        for keeper in self._keepers.values():
            await keeper.ready.wait()

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)


class _Keeper:
    """Keeps one program running."""

    def __init__(self, program: Program, limits: Limits, logs: Logs, warden: Warden, on_change: OnChange) -> None:
        self.program = program
        self.needs: tuple[_Keeper, ...] = ()
        self.status = Status(program.name, program.address)
        self.ready = asyncio.Event()
        self.stopped = asyncio.Event()
        self._limits = limits
        self._logs = logs
        self._warden = warden
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._is_stopping = False
        self._hurry = asyncio.Event()
        """Set by a stop and by a wanted restart: neither waits for a backoff."""
        self._problem: LauncherError | None = None
        self._was_ready = False
        self._failures = 0

    def begin(self, on_failure: Callable[[BaseException], None]) -> None:
        self._show(State.WAITING)
        self._task = asyncio.create_task(self._keep(), name=f"keeper of {self.program.name}")
        self._task.add_done_callback(
            lambda task: None if task.cancelled() or (error := task.exception()) is None else on_failure(error)
        )

    def kill(self) -> None:
        self._leave_ready()
        if self._process is not None:
            kill_group(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def restart(self) -> None:
        self._leave_ready()
        self._hurry.set()
        if (process := self._process) is not None:
            self._ask_to_stop()
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), self._limits.stop_grace_s)
            kill_group(process.pid)
        await asyncio.wait_for(self.ready.wait(), self._limits.ready_timeout_s)

    async def stop(self, grace_s: float, dependents: Sequence["_Keeper"]) -> None:
        self._is_stopping = True
        for dependent in dependents:
            await dependent.stopped.wait()
        self._leave_ready()
        if self._task is not None and not self._task.done():
            await self._end(self._task, grace_s)
        if self.status.state is not State.FAILED:
            self._show(State.STOPPED)
        self.stopped.set()

    async def _end(self, task: asyncio.Task[None], grace_s: float) -> None:
        if self.status.state is State.WAITING:
            task.cancel()
        self._show(State.STOPPING, self.status.pid)
        self._hurry.set()
        self._ask_to_stop()
        done, _ = await asyncio.wait({task}, timeout=grace_s)
        if not done:
            self.kill()
            await asyncio.wait({task})

    def _ask_to_stop(self) -> None:
        self.signal(self.program.command.stop_signal)

    async def _keep(self) -> None:
        for need in self.needs:
            await need.ready.wait()
        while not self._is_stopping:
            error = await self._live()
            if self._is_stopping:
                return
            if not self._was_ready and self._failures >= self.program.attempts_max:
                self._show(State.FAILED, problem=str(error))
                raise error
            await self._back_off(error)

    async def _back_off(self, error: LauncherError) -> None:
        if not self._hurry.is_set():
            self.status = replace(self.status, restarts=self.status.restarts + 1)
        self._show(State.RESTARTING, problem=error.problem)
        delay_s = min(self._limits.backoff_max_s, self._limits.backoff_initial_s * 2 ** max(0, self._failures - 1))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), delay_s)
        self._hurry.clear()

    async def _live(self) -> LauncherError:
        """One life of the program, from its start to its end; returns why it ended."""
        self._show(State.STARTING)
        self._problem = None
        began = monotonic()
        error = await self._end_of_run()
        is_steady = self._was_ready and monotonic() - began > self._limits.steady_s
        self._failures = 1 if is_steady else self._failures + 1
        return error

    async def _end_of_run(self) -> LauncherError:
        try:
            if self.program.prepare is not None:
                await asyncio.to_thread(self.program.prepare)
            code = await self._run()
        except LauncherError as error:
            return error
        except OSError as error:
            return explain(self.program.name, error.errno or 1, str(error))
        return self._problem or explain(self.program.name, code, self._logs.last_words(self.program.name))

    async def _run(self) -> int:
        reading, writing = os.pipe()
        try:
            self._process = process = await self._spawn(writing)
        finally:
            os.close(writing)
        self._warden.watch_group(process.pid)
        if self._is_stopping:
            kill_group(process.pid)
        self._show(State.STARTING, process.pid)
        pump = asyncio.create_task(self._logs.pump(self.program.name, reading))
        self._watch = asyncio.create_task(self._watch_readiness(process.pid))
        code = await process.wait()
        self._process = None
        self._leave_ready()
        # What the program started and left behind would hold its ports and its log.
        kill_group(process.pid)
        self._warden.release_group(process.pid)
        await pump
        return code

    async def _spawn(self, output: int) -> asyncio.subprocess.Process:
        command = self.program.command
        return await asyncio.create_subprocess_exec(
            *command.shielded(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=command.directory,
            env=dict(command.environment) or None,
            start_new_session=True,
        )

    async def _watch_readiness(self, pid: int) -> None:
        try:
            await self._until_ready(pid)
            if self.program.provision is not None:
                await asyncio.to_thread(self.program.provision)
        except LauncherError as error:
            self._problem = error
            kill_group(pid)
            return
        self._was_ready = True
        while True:
            self.ready.set()
            self._show(State.READY, pid)
            await self._until_degraded_and_back(pid)

    async def _until_ready(self, pid: int) -> None:
        end = monotonic() + self._limits.ready_timeout_s
        while not (answer := await self.program.probe(pid)).is_ready:
            if monotonic() > end:
                raise self._not_ready(answer)
            await asyncio.sleep(self._limits.ready_poll_s)

    def _not_ready(self, answer: Readiness) -> StartFailed:
        problem = f"was not ready within {self._limits.ready_timeout_s:g} s: {answer.said or 'it did not answer'}"
        return StartFailed(
            self.program.name, self.program.address, problem, f"See {self._logs.path(self.program.name)}."
        )

    async def _until_degraded_and_back(self, pid: int) -> None:
        while (await self._next_answer(pid)).is_ready:
            pass
        while not (answer := await self._next_answer(pid)).is_ready:
            self._show(State.DEGRADED, pid, problem=answer.said or "does not answer")

    async def _next_answer(self, pid: int) -> Readiness:
        await asyncio.sleep(self._limits.health_poll_s)
        return await self.program.probe(pid)

    def _leave_ready(self) -> None:
        self.ready.clear()
        if self._watch is not None:
            self._watch.cancel()

    def _show(self, state: State, pid: int | None = None, problem: str = "") -> None:
        self.status = replace(self.status, state=state, pid=pid, problem=problem)
        self._on_change(self.status)
