"""A warm process that forks one child per call: `python -I -m tool_executor.sandboxes.zygote [module ...]`.

It is exec'ed fresh with an empty environment, so a fork of it inherits no secret, no connection and no descriptor.
It imports the modules of its profile once, then answers orders read from descriptor 0 until that is closed. It runs no
call itself, and stays single-threaded, because a fork copies only the calling thread.
"""

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from dataclasses import dataclass

from tool_executor.sandboxes import child, kernel
from tool_executor.sandboxes.wire import MESSAGE_BYTES_MAX, Exited, Kill, Order, Ready, decode


@dataclass(frozen=True, slots=True)
class Child:
    call: str
    pid: int


class Zygote:
    """Owns its children: forks, kills and reaps them, and reports each exit as the kernel tells it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, Child] = {}  # by pidfd, which becomes readable when the child ends
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def serve(self) -> None:
        """Answer until the executor closes its end (or dies), then end all children."""
        self._control.send(Ready().encode())
        while True:
            for key, _ in self._selector.select():
                if key.fd != self._control.fileno():
                    self._reap(key.fd)
                elif not self._obey():
                    return self._end_all()

    def _obey(self) -> bool:
        datagram, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES_MAX, 2)
        if not datagram:
            return False
        match decode(datagram):
            case Order() as order:
                self._fork(order, descriptors[0], descriptors[1])
            case Kill(call=call):
                self._kill(call)
        return True

    def _fork(self, order: Order, stdout: int, stderr: int) -> None:
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            child.live(order, zygote, stdout, stderr)
        os.close(stdout)
        os.close(stderr)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = Child(order.call, pid)
        self._selector.register(pidfd, selectors.EVENT_READ)

    def _kill(self, call: str) -> None:
        """Kill the call's whole session. Its leader is not reaped yet, so the id cannot belong to another process."""
        for each in self._children.values():
            if each.call == call:
                _kill_session(each.pid)

    def _reap(self, pidfd: int) -> None:
        ended = self._children.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status, usage = os.wait4(ended.pid, 0)
        report = Exited(ended.call, status, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)
        self._control.send(report.encode())

    def _end_all(self) -> None:
        for each in self._children.values():
            _kill_session(each.pid)


def _kill_session(pid: int) -> None:
    """A child that is too young to lead its session yet has no process group of its own."""
    os.kill(pid, signal.SIGKILL)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(modules: list[str]) -> int:
    kernel.hide_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the executor decides when to stop
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # what is warm stays shared between children: the collector would touch, and so copy, every page
    try:
        Zygote(socket.socket(fileno=0)).serve()
    except BrokenPipeError:
        return 0  # the executor is gone, and PDEATHSIG of the children takes care of them
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
