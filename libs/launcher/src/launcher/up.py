"""`synod up`: starts the system, shows it, and stops it when it is told to."""

import asyncio
import os
import signal
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from launcher.errors import DataLocked, LauncherError, SettingInvalid
from launcher.layout import PORT_BASE, SERVICES, Layout, Limits, Service, default_data_directory
from launcher.status import LiveStatus, PlainStatus
from launcher.system import System

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ExitCode(IntEnum):
    """What `run` returns."""

    STOPPED = 0
    FAILED = 1
    SETTING_INVALID = 2
    ALREADY_UP = 3
    INTERRUPTED = 130
    """Told to stop before everything was ready."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What a person may choose. `plain` prints lines even on a terminal; elsewhere lines are printed anyway."""

    data: Path | None = None
    port_base: int = PORT_BASE
    fresh: bool = False
    simulator: bool = False
    tls: bool = False
    plain: bool = False
    services: tuple[Service, ...] = SERVICES
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    limits: Limits = field(default_factory=Limits)

    def layout(self) -> Layout:
        data = self.data or default_data_directory(self.environment)
        return Layout(
            data, self.port_base, self.services, self.simulator, self.environment, limits=self.limits, tls=self.tls
        )


def run(options: UpOptions, console: Console | None = None) -> int:
    """Runs the system until SIGINT, SIGTERM or SIGHUP; a second signal stops it without grace. Returns an ExitCode."""
    output = console or Console()
    try:
        return asyncio.run(_run(options, output))
    except LauncherError as error:
        _explain(error, output)
        return _code_of(error)


async def _run(options: UpOptions, console: Console) -> ExitCode:
    system = System(options.layout(), fresh=options.fresh)
    stop = _stop_on_signals(system)
    with _view(options, console) as view:
        if not await _finished_before(stop, system.up(view.changed)):
            return ExitCode.INTERRUPTED
        try:
            _welcome(system, console)
            await _finished_before(stop, system.wait_failed())
        finally:
            await system.down()
    return ExitCode.STOPPED


def _stop_on_signals(system: System) -> asyncio.Event:
    stop = asyncio.Event()

    def heard() -> None:
        if stop.is_set():
            system.hurry()
        stop.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, heard)
    return stop


async def _finished_before(stop: asyncio.Event, work: Coroutine[object, object, None]) -> bool:
    """True when the work ended first; a stop cancels it and waits for what it then cleans up."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        working.cancel()
    with suppress(asyncio.CancelledError):
        await working
        return True
    return False


def _view(options: UpOptions, console: Console) -> LiveStatus | PlainStatus:
    if console.is_terminal and not options.plain:
        return LiveStatus(console)
    return PlainStatus(lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))


def _welcome(system: System, console: Console) -> None:
    """Where everything is. The development key is shown at the first start only."""
    layout, endpoints = system.layout, dict(system.endpoints)
    order = [name for name in ("http", "models", "nats") if name in endpoints]
    lines = ["", *(f"{name:<18}  {endpoints[name]}" for name in order)]
    lines.append(f"{'data':<18}  {layout.data}")
    lines.append(f"{'logs':<18}  {layout.logs}")
    if system.credentials.dev_key_is_new:
        lines.append(f"{'development key':<18}  {system.dev_key}  (shown once; kept in {layout.keys / 'dev.key'})")
    else:
        lines.append(f"{'development key':<18}  in {layout.keys / 'dev.key'}")
    lines.append("Ready. Ctrl-C stops everything; the data stays.")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _explain(error: LauncherError, console: Console) -> None:
    console.print(f"[bold red]Synod did not start.[/] {escape(error.field)} = {escape(error.value)}", soft_wrap=True)
    console.print(error.problem, markup=False, highlight=False, soft_wrap=True)
    console.print(error.remedy, style="bold", markup=False, highlight=False, soft_wrap=True)


def _code_of(error: LauncherError) -> ExitCode:
    match error:
        case SettingInvalid():
            return ExitCode.SETTING_INVALID
        case DataLocked():
            return ExitCode.ALREADY_UP
        case _:
            return ExitCode.FAILED
