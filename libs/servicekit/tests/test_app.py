"""A service starts in order, says what is missing, and stops so that nothing is lost."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import nats
import psycopg
import pytest
from aiohttp import ClientSession
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servicekit.app import EXIT_OK, EXIT_SETTINGS_INVALID, EXIT_START_FAILED, GRACE_LEAST_S, Grace, StartFailed, running
from servicekit.context import current_principal, event_context
from servicekit.errors import InvalidArgument
from servicekit.host import Host
from servicekit.limits import Limits
from servicekit.settings import ServiceSettings
from servicekit.testing import serve_in_process, settings_for, write_public_key

SLOW_SERVICE = Path(__file__).parent / "slow_service.py"
CLOSED_DSN = "postgresql://ledger:secret@127.0.0.1:1/ledger"
CLOSED_NATS = "nats://127.0.0.1:1"
# Where nothing listens an attempt ends at once; where something does it may take its time.
IMPATIENT = Limits(startup_s=0.05, peers_wait_s=0.05, probe_s=30)
WAIT_S = 30


class Settings(ServiceSettings):
    service: str = "ledger"


async def nothing(host: Host[Settings]) -> None:
    """A service without parts."""


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return write_public_key(Ed25519PrivateKey.generate(), tmp_path)


def phases(records: list[logging.LogRecord]) -> list[tuple[str, str]]:
    lines = [record.fields for record in records if record.getMessage() == "phase"]  # type: ignore[attr-defined]
    return [(line["phase"], line["state"]) for line in lines]


async def failure(settings: Settings, compose: Any = nothing) -> StartFailed:
    with pytest.raises(StartFailed) as caught:
        async with running(settings, compose):
            pass
    return caught.value


async def test_a_missing_postgresql_is_named_by_address_with_a_remedy(
    key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(Settings, CLOSED_DSN, CLOSED_NATS, auth_public_key_file=key_file, limits=IMPATIENT)
    with caplog.at_level(logging.INFO, "synod.ledger"):
        failed = await failure(settings)
    assert failed.phase == "postgres"
    assert "PostgreSQL at 127.0.0.1:1/ledger does not answer" in failed.missing
    assert "`synod up` starts one" in failed.missing
    assert "SYNOD_POSTGRES_DSN" in failed.missing
    assert "secret" not in failed.missing
    assert phases(caplog.records) == [
        ("http", "ok"),
        ("keys", "ok"),
        ("postgres", "waiting"),
        ("postgres", "failed"),
    ]


async def test_a_missing_nats_is_named_by_address_with_a_remedy(postgres_dsn: str, key_file: Path) -> None:
    settings = settings_for(Settings, postgres_dsn, CLOSED_NATS, auth_public_key_file=key_file, limits=IMPATIENT)
    failed = await failure(settings)
    assert failed.phase == "nats"
    assert "NATS at 127.0.0.1:1 does not answer" in failed.missing
    assert "SYNOD_NATS_URL" in failed.missing


async def test_a_start_that_waits_tells_ready_what_for_and_goes_on_when_it_comes(
    postgres_dsn: str, nats_url: str, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = psycopg.conninfo.make_conninfo(postgres_dsn, dbname="not_yet")
    settings = settings_for(Settings, late, nats_url, auth_public_key_file=key_file)
    stop = asyncio.Event()

    async def serve() -> None:
        async with running(settings, nothing, stop=stop):
            await stop.wait()

    with caplog.at_level(logging.INFO, "synod.ledger"):
        serving = asyncio.create_task(serve())
        await until(lambda: ("postgres", "waiting") in phases(caplog.records))
        stop.set()
        with pytest.raises(StartFailed, match='database "not_yet" does not exist'):
            await serving


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - a log has no event to wait for
            await asyncio.sleep(0.01)


async def test_a_taken_port_fails_the_start_by_name(postgres_dsn: str, nats_url: str, key_file: Path) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    settings = settings_for(Settings, postgres_dsn, nats_url, auth_public_key_file=key_file)
    failed_http = await failure(settings.model_copy(update={"http_port": port}))
    failed_grpc = await failure(settings.model_copy(update={"grpc_port": port}))
    taken.close()
    assert (failed_http.phase, failed_grpc.phase) == ("http", "grpc")
    assert f"127.0.0.1:{port}" in failed_http.missing
    assert f"127.0.0.1:{port}" in failed_grpc.missing


async def test_what_compose_opened_is_closed_when_a_later_phase_fails(
    postgres_dsn: str, nats_url: str, key_file: Path
) -> None:
    closed: list[str] = []

    async def compose(host: Host[Settings]) -> None:
        async def close() -> None:
            closed.append("it")

        host.on_stop(close)
        raise ValueError("bad composition")

    settings = settings_for(Settings, postgres_dsn, nats_url, auth_public_key_file=key_file)
    failed = await failure(settings, compose)
    assert (failed.phase, failed.missing, closed) == ("compose", "ValueError('bad composition')", ["it"])


async def test_a_missing_peer_is_named_and_the_service_starts_degraded(postgres_dsn: str, nats_url: str) -> None:
    settings = settings_for(
        Settings,
        postgres_dsn,
        nats_url,
        peers={"consensus": "127.0.0.1:1"},
        limits=Limits(peers_wait_s=0.1, probe_s=0.1),
    )
    async with serve_in_process(nothing, settings) as service:
        health = service.host.health
        assert (health.ready, health.status) == (True, "degraded")
        assert "peer consensus at 127.0.0.1:1 does not answer" in health.problems["peer consensus"]


async def test_a_service_calls_its_peer_as_itself_for_the_tenant_and_actor_it_serves(
    postgres_dsn: str, nats_url: str, add_echo: Any, echo_type: Any, echo_stub: Any
) -> None:
    key, seen = Ed25519PrivateKey.generate(), []
    permissions = dict.fromkeys(("Unary", "Download", "Upload", "Chat", "WatchWords"), "echo.all")

    class Witness(echo_type):
        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            seen.append(current_principal())
            return request

    class Forwarder(echo_type):
        def __init__(self, channel: Any) -> None:
            self.peer = echo_stub(channel)

        async def Unary(self, request: StringValue, context: Any) -> Any:
            return await self.peer.Unary(request)

    async def behind(host: Host[Settings]) -> None:
        host.add_rpc(add_echo, Witness(), permissions)

    async def before(host: Host[Settings]) -> None:
        host.add_rpc(add_echo, Forwarder(host.channel("behind")), permissions)

    async with serve_in_process(behind, settings_for(Settings, postgres_dsn, nats_url), key=key) as peer:
        settings = settings_for(Settings, postgres_dsn, nats_url, service="front", peers={"behind": peer.address})
        async with serve_in_process(before, settings, key=key) as front:
            answer = await echo_stub(front.channel).Unary(StringValue(value="x"))
    assert answer.value == "x"
    assert (seen[0].id, seen[0].tenant, seen[0].actor) == ("svc-front", "local", "usr_test")


async def test_a_ready_service_answers_health_and_ends_its_hooks_in_order(postgres_dsn: str, nats_url: str) -> None:
    told: list[str] = []

    async def compose(host: Host[Settings]) -> None:
        async def ready() -> None:
            told.append("ready")

        async def stopped() -> None:
            told.append("stopped")

        async def work() -> None:
            told.append("working")
            try:
                await asyncio.Event().wait()
            finally:
                told.append("put down")

        host.on_ready(ready)
        host.on_stop(stopped)
        host.add_task("worker", work)

    async with serve_in_process(compose, settings_for(Settings, postgres_dsn, nats_url)) as service:
        stub = health_pb2_grpc.HealthStub(service.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert sorted(told[:2]) == ["ready", "working"]
    assert told[2:] == ["put down", "stopped"]


async def test_replicas_that_start_at_once_compose_one_after_the_other(postgres_dsn: str, nats_url: str) -> None:
    composing: list[str] = []

    async def compose(host: Host[Settings]) -> None:
        composing.append("begin")
        async with host.pool.connection() as connection:
            await connection.execute("select pg_sleep(0.05)")
        composing.append("end")

    async def replica() -> None:
        async with serve_in_process(compose, settings_for(Settings, postgres_dsn, nats_url)):
            pass

    await asyncio.gather(replica(), replica())
    assert composing == ["begin", "end"] * 2


async def test_a_service_without_a_tenant_cannot_make_an_event_context() -> None:
    with pytest.raises(InvalidArgument, match="must name it in this metadata key"):
        event_context()


class Process:
    """slow_service.py as a process, with its log lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def line(self, **wanted: Any) -> dict[str, Any]:
        """The next log line with these fields."""
        assert self.process.stderr
        async with asyncio.timeout(WAIT_S):
            async for raw in self.process.stderr:
                self.lines.append(json.loads(raw))
                if wanted.items() <= self.lines[-1].items():
                    return self.lines[-1]
        raise AssertionError(f"the process ended without {wanted}: {self.lines}")


@asynccontextmanager
async def slow_service(**environment: str) -> AsyncIterator[Process]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SYNOD_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SLOW_SERVICE), env=inherited | environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield Process(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_all_that_is_closed_at_a_stop_shares_one_time_and_the_last_has_some_of_it() -> None:
    now_s = 100.0
    grace = Grace(10, lambda: now_s)
    assert (grace.left_s(), grace.left_to_finish_s()) == (10, 6.5)
    grace.begin()
    now_s += 4
    assert (grace.left_s(), grace.left_to_finish_s()) == (6, 2.5)
    now_s += 10
    assert (grace.left_s(), grace.left_to_finish_s()) == (GRACE_LEAST_S, GRACE_LEAST_S)
    assert (Grace(0.2).left_s(), Grace(0.2).left_to_finish_s()) == (0.2, 0.2)


async def test_sigterm_drains_the_call_in_flight_and_refuses_new_ones(
    postgres_dsn: str, nats_url: str, key_file: Path
) -> None:
    environment = {
        "SYNOD_POSTGRES_DSN": postgres_dsn,
        "SYNOD_NATS_URL": nats_url,
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(key_file),
        "SYNOD_GRPC_PORT": "0",
        "SYNOD_HTTP_PORT": "0",
    }
    async with slow_service(**environment) as service:
        ready = await service.line(event="phase", phase="ready", state="ok")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ready['grpc_port']}") as channel:
            answer = channel.unary_unary("/test.Slow/Answer", StringValue.SerializeToString, StringValue.FromString)
            call = answer(StringValue(value="kept"), timeout=20)
            subject = (await service.line(event="in_flight"))["subject"]
            service.process.send_signal(signal.SIGTERM)
            await service.line(event="phase", phase="stop", state="draining")
            client = await nats.connect(nats_url)
            await client.publish(subject, b"go")
            await client.close()
            kept = await call
        await service.line(event="phase", phase="stop", state="ok")
        code = await asyncio.wait_for(service.process.wait(), WAIT_S)
    assert (kept.value, code) == ("kept", EXIT_OK)


async def test_a_process_that_is_told_to_stop_serves_on_while_it_says_that_it_is_not_ready(
    postgres_dsn: str, nats_url: str, key_file: Path
) -> None:
    environment = {
        "SYNOD_POSTGRES_DSN": postgres_dsn,
        "SYNOD_NATS_URL": nats_url,
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(key_file),
        "SYNOD_GRPC_PORT": "0",
        "SYNOD_HTTP_PORT": "0",
        "SYNOD_SHUTDOWN_DRAIN_S": "2",
    }
    async with slow_service(**environment) as service:
        ready = await service.line(event="phase", phase="ready", state="ok")
        service.process.send_signal(signal.SIGTERM)
        await service.line(event="phase", phase="stop", state="draining")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{ready['grpc_port']}") as channel, ClientSession() as session:
            request = health_pb2.HealthCheckRequest()
            served = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=WAIT_S)
            async with session.get(f"http://127.0.0.1:{ready['http_port']}/ready") as answer:
                status = answer.status
        code = await asyncio.wait_for(service.process.wait(), WAIT_S)
    assert (served.status, status, code) == (health_pb2.HealthCheckResponse.NOT_SERVING, 503, EXIT_OK)


async def test_a_process_that_only_prepares_ends_by_itself_and_serves_nobody(
    postgres_dsn: str, nats_url: str, key_file: Path
) -> None:
    environment = {
        "SYNOD_POSTGRES_DSN": postgres_dsn,
        "SYNOD_NATS_URL": nats_url,
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(key_file),
        "SYNOD_GRPC_PORT": "0",
        "SYNOD_HTTP_PORT": "0",
        "SYNOD_PREPARE_ONLY": "true",
    }
    async with slow_service(**environment) as service:
        prepared = await service.line(event="phase", phase="prepared", state="ok")
        await service.line(event="phase", phase="stop", state="ok")
        code = await asyncio.wait_for(service.process.wait(), WAIT_S)
    assert (prepared["grpc_port"], code) == (0, EXIT_OK)
    assert not {"grpc", "commands", "announce", "ready"} & {line.get("phase") for line in service.lines}


async def test_a_process_without_settings_names_each_variable_and_exits_2() -> None:
    async with slow_service(SYNOD_GRPC_PORT="many") as service:
        missing = [(await service.line(event="phase", phase="settings"))["missing"] for _ in range(5)]
        code = await asyncio.wait_for(service.process.wait(), WAIT_S)
    assert code == EXIT_SETTINGS_INVALID
    assert "SYNOD_POSTGRES_DSN is not set" in missing
    assert any(line.startswith('SYNOD_GRPC_PORT = "many": ') for line in missing)


async def test_a_process_that_lacks_its_database_says_so_and_exits_1(key_file: Path) -> None:
    environment = {
        "SYNOD_POSTGRES_DSN": CLOSED_DSN,
        "SYNOD_NATS_URL": CLOSED_NATS,
        "SYNOD_AUTH_PUBLIC_KEY_FILE": str(key_file),
        "SYNOD_GRPC_PORT": "0",
        "SYNOD_HTTP_PORT": "0",
        "SYNOD_LIMITS__STARTUP_S": "0.1",
    }
    async with slow_service(**environment) as service:
        failed = await service.line(event="phase", phase="postgres", state="failed")
        code = await asyncio.wait_for(service.process.wait(), WAIT_S)
    assert code == EXIT_START_FAILED
    assert "PostgreSQL at 127.0.0.1:1/ledger does not answer" in failed["missing"]
