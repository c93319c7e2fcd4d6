"""What a system consists of: every program, its surroundings and how to know that it is ready."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from launcher.bus import authorization
from launcher.certificates import NATS_ADMIN, files_of, settings_of
from launcher.databases import provision
from launcher.keys import (
    ADMINISTRATOR,
    SUPERUSER,
    Credentials,
    checkpoint_key_file,
    former_checkpoint_key_files,
    former_master_key_files,
    master_key_file,
)
from launcher.layout import AUTHORITY, SIMULATOR, Layout, Service
from launcher.nats import EmbeddedNats, NatsUser, url
from launcher.postgres import DURABLE, VOLATILE, EmbeddedPostgres
from launcher.processes import Command
from launcher.streams import make_streams
from launcher.supervisor import Program, Readiness

POSTGRES, NATS = "postgres", "nats"
SIMULATOR_PRICES = {"simulator/sim-1": (100_000, 400_000), "simulator/sim-embed": (20_000, 0)}
"""No price book has the simulator: those of small models, so that costs are of a real size. Pico-USD per token, in and out."""
PROBE_TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 64 * 1024
INHERITED = frozenset(
    {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR"}
    | {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "LD_LIBRARY_PATH"}
)
"""What of the caller's environment every service is given. Other people's secrets stay out of their reach."""
INHERITED_PREFIXES = ("SYNOD_", "OTEL_", "LC_")
OF_CLIENTS = "SYNOD_TLS_"
"""What the caller's environment says for clients of another system, and a service must not take for its own."""


def postgres_of(layout: Layout, credentials: Credentials) -> EmbeddedPostgres:
    settings = DURABLE if layout.durable else VOLATILE
    password = credentials.postgres[SUPERUSER]
    return EmbeddedPostgres(layout.data / POSTGRES, layout.postgres_port, password, settings, layout.durable)


def nats_of(layout: Layout, credentials: Credentials) -> EmbeddedNats:
    who_may_what = authorization(layout.services, credentials.nats)
    tls = files_of(layout.certificates, NATS) if layout.tls else None
    storage_key = credentials.nats_storage
    return EmbeddedNats(layout.data / NATS, layout.nats_port, who_may_what, storage_key=storage_key, tls=tls)


def programs(layout: Layout, credentials: Credentials) -> tuple[Program, ...]:
    """All programs of the system, in the order in which people expect to see them."""
    servers = (_postgres(layout, credentials), _nats(layout, credentials))
    simulator = (_simulator(layout),) if layout.simulator else ()
    services = tuple(_service(layout, credentials, service) for service in layout.services)
    return (*servers, *simulator, *services)


def environment(layout: Layout, credentials: Credentials, service: Service) -> Mapping[str, str]:
    """The settings of a service (servicekit's ServiceSettings), with what it inherits of the caller's environment."""
    peers = {other.name: layout.grpc_address(other) for other in needed(layout, service)}
    dsn = postgres_of(layout, credentials).dsn(service.module, service.module, credentials.postgres[service.module])
    return {
        **_inherited(layout, service.secrets),
        "PYTHONUNBUFFERED": "1",
        "SYNOD_SERVICE": service.name,
        "SYNOD_GRPC_PORT": str(layout.grpc_port(service)),
        "SYNOD_HTTP_PORT": str(layout.http_port(service)),
        "SYNOD_POSTGRES_DSN": dsn,
        "SYNOD_NATS_URL": f"nats://127.0.0.1:{layout.nats_port}",
        "SYNOD_NATS_USER": service.name,
        "SYNOD_NATS_PASSWORD": credentials.nats[service.name],
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(layout.keys / "public.pem"),
        "SYNOD_STATE_DIR": str(layout.state(service)),
        "SYNOD_ARCHIVE_DIRECTORY": str(layout.archive(service)),
        "SYNOD_PEERS": json.dumps(peers),
        **_identity(layout, service),
        **_log_keys(layout, service),
        **(settings_of(layout.certificates, service.name) if layout.tls else {}),
        **_edge(layout, service),
        **_own_settings(layout, service),
    }


def needed(layout: Layout, service: Service) -> tuple[Service, ...]:
    """The services that this one calls: those it needs, and those that they need.

    A service waits for its peers when it starts, so that none may be given one that waits for it in turn.
    """
    by_name = {other.name: other for other in layout.services}
    direct = [by_name[name] for name in service.needs if name in by_name]
    found = {other.name: other for near in direct for other in (near, *needed(layout, near))}
    return tuple(found.values())


def _identity(layout: Layout, service: Service) -> Mapping[str, str]:
    """The authority signs tokens for itself; everybody else exchanges a key for one."""
    if service.name == AUTHORITY:
        return {}
    return {"SYNOD_SERVICE_KEY_FILE": str(layout.keys / f"{service.name}.key")}


def _log_keys(layout: Layout, service: Service) -> Mapping[str, str]:
    """What signs the checkpoints of its event log, and what wraps the keys of the persons in it."""
    keys, name = layout.keys, service.name
    former = {
        "SYNOD_FORMER_CHECKPOINT_KEY_FILES": former_checkpoint_key_files(keys, name),
        "SYNOD_FORMER_MASTER_KEY_FILES": former_master_key_files(keys, name),
    }
    return {
        "SYNOD_CHECKPOINT_KEY_FILE": str(checkpoint_key_file(keys, name)),
        "SYNOD_MASTER_KEY_FILE": str(master_key_file(keys, name)),
        "SYNOD_REQUIRE_SEALING": "true",
        **{variable: json.dumps([str(file) for file in files]) for variable, files in former.items() if files},
    }


def _edge(layout: Layout, service: Service) -> Mapping[str, str]:
    port = layout.edge_ports().get(service.name)
    return {} if port is None else {"SYNOD_EDGE_HOST": "127.0.0.1", "SYNOD_EDGE_PORT": str(port)}


def _own_settings(layout: Layout, service: Service) -> Mapping[str, str]:
    match service.name:
        case name if name == AUTHORITY:
            return {
                "SYNOD_SIGNING_KEY_FILE": str(layout.keys / "signing.pem"),
                "SYNOD_SERVICE_KEYS_FILE": str(layout.keys / "service-keys.json"),
                "SYNOD_DEV_KEY_FILE": str(layout.keys / "dev.key"),
            }
        case "cost-ledger" if layout.simulator:
            return {"SYNOD_FIRST_PRICES": json.dumps(SIMULATOR_PRICES)}
        case "llm-gateway" if layout.simulator:
            return {"SYNOD_SIMULATOR_URL": layout.simulator_url}
        case _:
            return {}


def _inherited(layout: Layout, secrets: tuple[str, ...]) -> Mapping[str, str]:
    prefixes = (*INHERITED_PREFIXES, *secrets)
    return {
        name: value
        for name, value in layout.environment.items()
        if name in INHERITED or (name.startswith(prefixes) and not name.startswith(OF_CLIENTS))
    }


def _postgres(layout: Layout, credentials: Credentials) -> Program:
    server = postgres_of(layout, credentials)
    roles = {service.module: credentials.postgres[service.module] for service in layout.services}
    return Program(
        POSTGRES,
        server.command(),
        _local(server.is_ready),
        f"127.0.0.1:{server.port}",
        prepare=server.prepare,
        provision=partial(provision, server.dsn(), roles),
    )


def _nats(layout: Layout, credentials: Credentials) -> Program:
    server = nats_of(layout, credentials)
    login = NatsUser(ADMINISTRATOR, credentials.nats[ADMINISTRATOR])
    tls = files_of(layout.certificates, NATS_ADMIN) if layout.tls else None
    return Program(
        NATS,
        server.command(),
        _local(server.is_ready),
        f"127.0.0.1:{server.port}",
        prepare=server.prepare,
        provision=partial(make_streams, url(server.port, login), layout.services, tls),
    )


def _simulator(layout: Layout) -> Program:
    argv = (layout.python, "-m", SIMULATOR.replace("-", "_"), "--port", str(layout.simulator_port))
    command = Command(argv, {**_inherited(layout, ()), "PYTHONUNBUFFERED": "1"}, layout.data)
    return Program(SIMULATOR, command, _http(layout.simulator_port), f"127.0.0.1:{layout.simulator_port}")


def _service(layout: Layout, credentials: Credentials, service: Service) -> Program:
    state = layout.state(service)
    argv = (layout.python, "-m", service.module)
    return Program(
        service.name,
        Command(argv, environment(layout, credentials, service), state),
        _http(layout.http_port(service)),
        layout.grpc_address(service),
        needs=(POSTGRES, NATS, *service.needs, *((SIMULATOR,) if service.name == "llm-gateway" else ())),
        prepare=partial(state.mkdir, mode=0o700, parents=True, exist_ok=True),
        attempts_max=layout.limits.start_attempts_max,
    )


def _local(is_ready: Callable[[int], bool]) -> Callable[[int], Awaitable[Readiness]]:
    async def probe(pid: int) -> Readiness:
        return Readiness(is_ready(pid))

    return probe


def _http(port: int) -> Callable[[int], Awaitable[Readiness]]:
    async def probe(_pid: int) -> Readiness:
        return await ask_ready(port)

    return probe


async def ask_ready(port: int) -> Readiness:
    """Asks GET /ready on a loopback port. Ready is status 200; what else it says is for people."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            head, body = await _get(port, "/ready")
    except (OSError, TimeoutError, EOFError) as error:
        return Readiness(False, str(error) or "does not answer /ready")
    return Readiness(head.split(maxsplit=2)[1:2] == ["200"], body)


async def _get(port: int, path: str) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = await _read_to_end(reader)
    finally:
        writer.close()
    head, _, body = answer.decode(errors="replace").partition("\r\n\r\n")
    return head, body.strip()


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Head and body may come in pieces; what is beyond the limit is left unread."""
    answer = b""
    while len(answer) < ANSWER_BYTES_MAX and (piece := await reader.read(ANSWER_BYTES_MAX - len(answer))):
        answer += piece
    return answer
