"""The life of one forked child: bind the streams, enter the jail, run one function, leave the result, end."""

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from tool_executor.sandboxes import jail, kernel
from tool_executor.sandboxes.sandbox import Access
from tool_executor.sandboxes.wire import REQUEST_FILE, RESULT_FILE, ExitCode, Order

Entry = Callable[[bytes, str], bytes]
DESCRIPTORS_MAX = 1 << 20


def live(order: Order, zygote: int, stdout: int, stderr: int) -> NoReturn:
    """Carry out the order in a freshly forked process and end it; nothing of the parent's stack runs again."""
    code = ExitCode.NOT_CONFINED
    try:
        _detach(zygote, stdout, stderr)
        payload = (Path(order.call_directory) / REQUEST_FILE).read_bytes()
        _enter(order)
        code = ExitCode.RAISED
        code = _carry_out(order, payload)
    except BaseException:  # noqa: BLE001  the edge of a process: what is not recorded here is lost
        traceback.print_exc()
    finally:
        # Without flush and exit handlers of the zygote: they are not this process's to run.
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _detach(zygote: int, stdout: int, stderr: int) -> None:
    """Hold no descriptor of the zygote, and do not outlive it."""
    os.setsid()
    kernel.die_with_parent(signal.SIGKILL)
    if os.getppid() != zygote:
        os._exit(ExitCode.NOT_CONFINED)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.closerange(3, DESCRIPTORS_MAX)
    for number in (signal.SIGXFSZ, signal.SIGPIPE, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def _enter(order: Order) -> None:
    workspace = Path(order.workspace) if order.workspace is not None else None
    os.chdir(workspace or "/")
    jail.limit_resources(order.bounds)
    if order.jailed:
        jail.confine(Path(order.call_directory) / RESULT_FILE, workspace, Access(order.access), order.readable)


def _carry_out(order: Order, payload: bytes) -> ExitCode:
    try:
        value = _resolve(order.entry)(payload, order.workspace or "")
        (Path(order.call_directory) / RESULT_FILE).write_bytes(value)
    except MemoryError:
        return ExitCode.OUT_OF_MEMORY
    except OSError as error:
        traceback.print_exc()
        return ExitCode.DENIED if error.errno == errno.EPERM else ExitCode.RAISED
    return ExitCode.DONE


def _resolve(entry: str) -> Entry:
    module, _, function = entry.partition(":")
    found: Entry = getattr(importlib.import_module(module), function)
    return found
