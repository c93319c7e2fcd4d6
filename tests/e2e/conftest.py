"""The system in containers, built and started once for all tests of this folder, under a project name of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest
from launcher.certificates import CLIENT, ensure, settings_of, utc_now
from launcher.keys import OBSERVER, nats_file
from launcher.layout import NATS_OFFSET, PORT_BASE, SERVICES
from launcher.testing import free_port_base
from synod_client import Endpoints, Synod

ROOT = Path(__file__).parents[2]
SECRETS = Path("deploy/compose/secrets")
FILES = ("compose.yaml", "deploy/compose/compose.dev.yaml")
TLS_FILE = "deploy/compose/compose.tls.yaml"
PROJECT = "synod-e2e"
BUILD_S, START_S, COMMAND_S = 1500, 300, 180
POLL_S = 0.5


def missing() -> str:
    """Why these tests cannot run here; empty if they can."""
    if not os.environ.get("SYNOD_E2E"):
        return "builds images and takes minutes; run `make e2e`"
    if shutil.which("docker") is None:
        return "needs a container engine: there is no `docker` on PATH"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "needs a container engine: `docker info` fails, is it running?"
    return "" if compose_command() else "needs Docker Compose: neither `docker compose` nor `docker-compose` works"


def compose_command() -> tuple[str, ...]:
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    return ()


class Containers:
    """The project, run from `folder` with `variables`, and what a person would do to it."""

    def __init__(self, port_base: int, folder: Path, variables: Mapping[str, str], *, tls: bool = False) -> None:
        self.port_base, self.folder, self._tls = port_base, folder, tls
        files = (part for file in (*FILES, *[TLS_FILE] * tls) for part in ("--file", file))
        self._command = (*compose_command(), "--project-name", PROJECT, *files)
        ports = {"SYNOD_PORT_PREFIX": str(port_base // 100), "SYNOD_EDGE_PORT": str(port_base + 980)}
        self._environment = {**os.environ, **ports, **variables}

    @property
    def secrets(self) -> Path:
        return self.folder / SECRETS

    @property
    def endpoints(self) -> Endpoints:
        """Where it is published, with the login to NATS of who may read all events."""
        observer = nats_file(self.secrets / "keys", OBSERVER).read_text()
        nats = observer.replace(f":{PORT_BASE + NATS_OFFSET}", f":{self.port_base + NATS_OFFSET}")
        variables = {"SYNOD_PORT_BASE": str(self.port_base), "SYNOD_NATS_URL": nats}
        return Endpoints.discover(variables | self.client_certificate, self.secrets)

    @property
    def certificates(self) -> Path:
        return self.secrets / "tls"

    @property
    def client_certificate(self) -> dict[str, str]:
        """The variables that have a client speak TLS; none where the system does not."""
        return dict(settings_of(self.certificates, CLIENT)) if self._tls else {}

    @classmethod
    def installed(cls, port_base: int, folder: Path, *, encrypt_at_rest: bool, tls: bool = False) -> "Containers":
        """With secrets of its own in `folder`, so that those of the person who runs this stay as they are."""
        shutil.copy(ROOT / "compose.yaml", folder)
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns(SECRETS.name))
        containers = cls(port_base, folder, {"SYNOD_ENCRYPT_AT_REST": str(encrypt_at_rest).lower()}, tls=tls)
        command = [sys.executable, "-m", "launcher.containers", "secrets", str(containers.secrets)]
        subprocess.run(command, env=containers._environment, check=True, timeout=60)
        if tls:
            ensure(containers.certificates, utc_now())
        return containers

    def compose(self, *arguments: str, timeout_s: float = COMMAND_S, stdin: bytes | None = None) -> bytes:
        """Runs a command of Compose and answers what it printed; AssertionError with its words if it fails."""
        command = (*self._command, *arguments)
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            input=stdin,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-2000:]!r}\n{done.stderr[-4000:].decode()}"
        return done.stdout

    def up(self) -> None:
        self.compose("up", "--detach", timeout_s=START_S)
        for service in SERVICES:
            self.wait_ready(service.name)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans")

    def crash(self, container: str) -> None:
        """Kills it without a word. An engine does not restart what was killed by its own command."""
        self.compose("kill", "-s", "SIGKILL", container)

    def start(self, container: str) -> None:
        self.compose("start", container)

    def run(self, container: str, *command: str) -> str:
        """What a command prints inside a running container."""
        return self.compose("exec", "-T", container, *command).decode()

    def wait_ready(self, service: str) -> None:
        end = time.monotonic() + START_S
        while True:
            try:
                self.run(service, "python", "-m", "servicekit.healthcheck")
            except AssertionError:
                if time.monotonic() > end:
                    raise
                time.sleep(POLL_S)
            else:
                return


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    if reason := missing():
        pytest.skip(reason)
    port_base = free_port_base(step=100)
    Containers(port_base, ROOT, {}).compose("build", timeout_s=BUILD_S)
    started = Containers.installed(port_base, tmp_path_factory.mktemp("synod"), encrypt_at_rest=False)
    started.down()
    try:
        started.up()
        yield started
    finally:
        started.down()


@pytest.fixture
async def synod(containers: Containers) -> AsyncIterator[Synod]:
    async with Synod.connect(containers.endpoints) as connected:
        yield connected
