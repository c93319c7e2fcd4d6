"""The system in containers, built once and started once for each file of tests, under a project name of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from launcher.certificates import CLIENT, ensure, settings_of, utc_now
from launcher.keys import OBSERVER, nats_file
from launcher.layout import EDGE, EDGE_OFFSET, MODELS, MODELS_OFFSET, NATS_OFFSET, PORT_BASE, SERVICES, Layout
from launcher.testing import free_port_base
from synod_client import Endpoints, Synod

ROOT = Path(__file__).parents[2]
SECRETS = Path("deploy/compose/secrets")
PUBLISHED = ("compose.yaml", "deploy/compose/compose.dev.yaml")
REPLICATED = ("compose.yaml", "deploy/compose/compose.replicas.yaml", str(Path(__file__).parent / "reached.yaml"))
SECURED = (*PUBLISHED, "deploy/compose/compose.tls.yaml")
HASTY = Path(__file__).parent / "hasty.yaml"
PROJECT = "synod-e2e"
NEXT = "e2e-next"
"""The tag of images of the same code with another revision."""
NETWORKS = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
BUILD_S, START_S, COMMAND_S = 1500, 300, 180
STOP_GRACE_S = 15
"""As compose.yaml says."""
POLL_S = 0.5
PROGRAMS = {
    "docker": """#!/bin/sh
case "$1 $2 $3" in "compose -p synod") shift 3; exec {compose} "$@" ;; esac
exec {docker} "$@"
""",
    "make": """#!/bin/sh
case "$*" in
  "compose-down VOLUMES=1") exec {compose} down --volumes --remove-orphans ;;
  compose-up) exec {compose} up --detach ;;
  *) echo "make $*: not known here" >&2; exit 64 ;;
esac
""",
}
"""What stands in the place of those that a README names: the same for the project under test."""


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

    def __init__(
        self, port_base: int, folder: Path, variables: Mapping[str, str], files: tuple[str, ...] = PUBLISHED
    ) -> None:
        self.port_base, self.folder, self._tls = port_base, folder, files == SECURED
        files = tuple(part for file in (*files, str(HASTY)) for part in ("--file", file))
        project = (*compose_command(), "--project-name", PROJECT)
        self._closed, self._command = (*project, "--file", files[1]), (*project, *files)
        edge, models = port_base + EDGE_OFFSET, port_base + MODELS_OFFSET
        edges = {"SYNOD_EDGE_PORT": str(edge), "SYNOD_MODELS_PORT": str(models)}
        if REPLICATED[1] in files:
            edges = {"SYNOD_EDGE_PORT": f"{edge}-{edge + 3}", "SYNOD_MODELS_PORT": f"{edge + 4}-{edge + 7}"}
        ports = {"SYNOD_PORT_PREFIX": str(port_base // 100), **edges}
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

    @property
    def endpoints_of_replicas(self) -> Endpoints:
        """The addresses of the containers themselves: for a client, several of each service."""
        published = self.endpoints
        everywhere = {
            service.name: "ipv4:"
            + ",".join(f"{address}:{PORT_BASE + service.number}" for address in self.addresses(service.name))
            for service in SERVICES
        }
        (nats,) = self.addresses("nats")
        nats = published.nats.replace(f"127.0.0.1:{self.port_base + NATS_OFFSET}", f"{nats}:4222")
        return replace(
            published, services=everywhere, nats=nats, edge=self.edges(EDGE)[0], models=self.edges(MODELS)[0]
        )

    @classmethod
    def installed(
        cls, port_base: int, folder: Path, *, encrypt_at_rest: bool = False, files: tuple[str, ...] = PUBLISHED
    ) -> "Containers":
        """With secrets of its own in `folder`, so that those of the person who runs this stay as they are."""
        shutil.copy(ROOT / "compose.yaml", folder)
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns(SECRETS.name))
        containers = cls(port_base, folder, {"SYNOD_ENCRYPT_AT_REST": str(encrypt_at_rest).lower()}, files)
        containers.make_secrets()
        if files == SECURED:
            ensure(containers.certificates, utc_now())
        return containers

    def make_secrets(self) -> None:
        """Makes what is missing, as `make compose-secrets` does."""
        command = [sys.executable, "-m", "launcher.containers", "secrets", str(self.secrets)]
        subprocess.run(command, env=self._environment, check=True, timeout=60)

    def compose(self, *arguments: str, timeout_s: float = COMMAND_S, stdin: bytes | None = None) -> bytes:
        """Runs a command of Compose and answers what it printed; AssertionError with its words if it fails."""
        return self._printed((*self._command, *arguments), timeout_s, stdin)

    def _printed(self, command: Sequence[str], timeout_s: float = COMMAND_S, stdin: bytes | None = None) -> bytes:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            input=stdin,
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]!r}\n{done.stderr[-4000:].decode()}"
        return done.stdout

    def follow(self, commands: str) -> None:
        """Runs what a person is told to type, in this folder and for this project. AssertionError with its words."""
        programs = self.folder / "programs"
        programs.mkdir(exist_ok=True)
        for name, text in PROGRAMS.items():
            (programs / name).write_text(text.format(compose=" ".join(self._command), docker=shutil.which("docker")))
            (programs / name).chmod(0o755)
        path = f"{programs}:{self._environment['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env={**self._environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"

    def volumes(self) -> list[str]:
        """Their names, as the engine has them."""
        return engine("volume", "ls", "--quiet", *_labelled()).split()

    def up(self) -> None:
        self.compose("up", "--detach", timeout_s=START_S)
        for service in SERVICES:
            self.wait_ready(service.name)

    def down(self) -> None:
        """With all data, and without waiting for anybody to stop."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "0")

    def crash(self, container: str) -> None:
        """Kills it without a word. An engine does not restart what was killed by its own command."""
        self.compose("kill", "-s", "SIGKILL", container)

    def crash_one_of_each(self) -> None:
        engine("kill", *(self.ids(service.name)[0] for service in SERVICES))

    def leave_one_of_each(self) -> None:
        """Removes all containers of each service but one that serves."""
        for service in SERVICES:
            first, *others = sorted(self.ids(service.name), key=is_ready, reverse=True)
            assert is_ready(first)
            if others:
                engine("rm", "--force", *others)

    def build_next(self, *services: str) -> None:
        with_revision = {**self._environment, "SYNOD_VERSION": NEXT, "REVISION": NEXT}
        subprocess.run(
            [*self._command, "build", *services],
            cwd=ROOT,
            env=with_revision,
            check=True,
            timeout=BUILD_S,
            capture_output=True,
        )

    def roll(self, *services: str) -> None:
        """Replaces the containers of services by such as the next images make, as a person would."""
        compose = {"COMPOSE": " ".join(self._command), "SYNOD_VERSION": NEXT}
        done = subprocess.run(
            ["deploy/compose/roll.sh", *services],
            cwd=self.folder,
            env={**self._environment, **compose},
            capture_output=True,
            text=True,
            timeout=COMMAND_S * len(services) * 2,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    def revisions(self, service: str) -> list[str]:
        """Of the image of each container."""
        label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
        return inspected(label, *self.ids(service))

    def ids(self, service: str) -> list[str]:
        """Of its containers, running or not."""
        return engine("ps", "--all", "--quiet", *_labelled(oneoff="False", service=service)).split()

    def addresses(self, service: str) -> list[str]:
        """One of each of its containers, where this machine reaches it."""
        found = inspected(NETWORKS, *self.ids(service))
        return [addresses.split()[0] for addresses in found if addresses.strip()]

    def all_addresses(self) -> dict[str, str]:
        """The service that has each address, in any network."""
        running = engine("ps", "--quiet", *_labelled(oneoff="False")).split()
        named = '{{index .Config.Labels "com.docker.compose.service"}} ' + NETWORKS
        found = [line.split() for line in inspected(named, *running)]
        return {address: service for service, *addresses in found for address in addresses}

    def edges(self, service: str) -> list[str]:
        port = Layout(Path()).edge_ports()[service]
        return [f"http://{address}:{port}" for address in self.addresses(service)]

    def restart(self, service: str) -> tuple[int, float]:
        """Stops its only container as Compose does. Its exit code, and in how many seconds it was gone; then it is back."""
        (container,) = self.ids(service)
        begin = time.monotonic()
        engine("stop", "--time", str(STOP_GRACE_S), container)
        took_s, (code,) = time.monotonic() - begin, inspected("{{.State.ExitCode}}", container)
        engine("start", container)
        self.wait_ready(service)
        return int(code), took_s

    def start(self, service: str) -> None:
        self.compose("start", service)

    def run(self, service: str, *command: str) -> str:
        """What a command prints inside the first container of a service."""
        return engine("exec", self.ids(service)[0], *command)

    def run_closed(self, service: str, *command: str) -> str:
        """What a command prints in a container of its own, which compose.yaml describes and no file over it."""
        return self._printed((*self._closed, "run", "--rm", "--no-deps", "-T", service, *command)).decode()

    def published(self) -> set[tuple[str, int]]:
        """The addresses and ports of this machine that lead to a container."""
        form = "{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}} {{.HostPort}} {{end}}{{end}}"
        running = engine("ps", "--quiet", *_labelled(oneoff="False")).split()
        words = " ".join(inspected(form, *running)).split()
        return {(address, int(port)) for address, port in zip(words[::2], words[1::2], strict=True)}

    def wait_ready(self, service: str) -> None:
        end = time.monotonic() + START_S
        while unready := [each for each in self.ids(service) if not is_ready(each)]:
            assert time.monotonic() < end, f"{service}: {unready} not ready after {START_S} s"
            time.sleep(POLL_S)


def _labelled(**labels: str) -> Iterator[str]:
    """Options of `docker ps`: of this project, with these labels of Compose."""
    for name, value in {"project": PROJECT, **labels}.items():
        yield from ("--filter", f"label=com.docker.compose.{name}={value}")


def engine(*arguments: str) -> str:
    """What a command of the engine prints; AssertionError with its words if it fails."""
    done = subprocess.run(
        ["docker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-4000:]}"
    return done.stdout


def inspected(form: str, *containers: str) -> list[str]:
    """A line of each container that is still there: one may go between being listed and being looked at."""
    command = ["docker", "inspect", "--format", form, *containers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    others = [line for line in done.stderr.splitlines() if "no such object" not in line.casefold()]
    assert not others, done.stderr[-4000:]
    return done.stdout.splitlines()


def is_ready(container: str) -> bool:
    command = ["docker", "exec", container, "python", "-m", "servicekit.healthcheck"]
    return subprocess.run(command, capture_output=True, timeout=COMMAND_S, check=False).returncode == 0


@pytest.fixture(scope="session")
def port_base() -> int:
    """Where the images are built, and nothing listens."""
    if reason := missing():
        pytest.skip(reason)
    free = free_port_base(step=100)
    Containers(free, ROOT, {}).compose("build", timeout_s=BUILD_S)
    return free


@pytest.fixture(scope="module")
def containers(port_base: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with up(Containers.installed(port_base, tmp_path_factory.mktemp("synod"))) as started:
        yield started


@pytest.fixture(scope="module")
def replicas(port_base: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Two of every service."""
    with up(Containers.installed(port_base, tmp_path_factory.mktemp("synod"), files=REPLICATED)) as started:
        yield started


@contextmanager
def up(containers: Containers) -> Iterator[Containers]:
    containers.down()
    try:
        containers.up()
        yield containers
    finally:
        containers.down()


@pytest.fixture
async def synod(containers: Containers) -> AsyncIterator[Synod]:
    async with Synod.connect(containers.endpoints) as connected:
        yield connected
