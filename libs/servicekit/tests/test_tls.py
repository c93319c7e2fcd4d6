"""Nobody gets in without a certificate that names who it is, and certificates are renewed while calls go on."""

import asyncio
import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from launcher import certificates
from launcher.testing import RunningNats, running_nats
from nats.errors import Error as NatsError
from servicekit.app import StartFailed
from servicekit.auth import ANY_TENANT, Principal, issue, service_principal
from servicekit.clock import SystemClock
from servicekit.errors import ServiceError, Unauthenticated, from_rpc_error
from servicekit.health import Health
from servicekit.host import Host
from servicekit.limits import Limits
from servicekit.nats_admin import IN_STEP, UNREACHABLE, main
from servicekit.peers import open_channel
from servicekit.settings import ServiceSettings
from servicekit.telemetry import Logger, Metrics
from servicekit.testing import FakeClock, serve_in_process, settings_for
from servicekit.tls import Tls, TlsFiles, TlsInvalid, follow

SERVER, CALLER = "cost-ledger", "agent-runtime"
WAIT_S = 30


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servicekit.tls.CHECK_S", 0.05)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The certificates of everybody; those of a month ago are beside it, in "expired"."""
    certificates.ensure(tmp_path / "tls", now() - certificates.LIFE - timedelta(minutes=1))
    shutil.copytree(tmp_path / "tls", tmp_path / "expired")
    certificates.ensure(tmp_path / "tls", now())
    return tmp_path / "tls"


@pytest.fixture
def files(directory: Path) -> Callable[[str], TlsFiles]:
    return lambda name: certificates.files_of(directory, name)


@pytest.fixture
def tls(files: Callable[[str], TlsFiles]) -> Callable[[str], Tls]:
    return lambda name: Tls(files(name), SystemClock())


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """The certificates of another authority."""
    certificates.ensure(tmp_path / "strangers", now())
    return tmp_path / "strangers"


def text(value: str) -> StringValue:
    return StringValue(value=value)


async def refusal(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - files and servers are asked, as whoever uses them would
            await asyncio.sleep(0.01)


async def test_who_holds_a_certificate_is_let_in(serve_echo: Any, echo_stub: Any, tls: Any) -> None:
    async with (
        serve_echo(tls=tls(SERVER)) as echo,
        open_channel(echo.address, SERVER, Limits(), tls(CALLER)) as channel,
    ):
        answer = await echo_stub(channel).Unary(text("x"), metadata=echo.metadata())
        words = [item.value async for item in echo_stub(channel).Download(text("a b"), metadata=echo.metadata())]
    assert (answer.value, words) == ("x", ["a", "b"])


def without_certificate(files: TlsFiles, _strangers: Path) -> grpc.aio.Channel:
    return with_credentials(grpc.ssl_channel_credentials(files.ca.read_bytes()))


def by_another_authority(files: TlsFiles, strangers: Path) -> grpc.aio.Channel:
    theirs = certificates.files_of(strangers, CALLER)
    pair = theirs.key.read_bytes(), theirs.certificate.read_bytes()
    return with_credentials(grpc.ssl_channel_credentials(files.ca.read_bytes(), *pair))


def expired(files: TlsFiles, _strangers: Path) -> grpc.aio.Channel:
    its = certificates.files_of(files.ca.parents[2] / "expired", CALLER)
    pair = its.key.read_bytes(), its.certificate.read_bytes()
    return with_credentials(grpc.ssl_channel_credentials(files.ca.read_bytes(), *pair))


def of_a_server(files: TlsFiles, _strangers: Path) -> grpc.aio.Channel:
    """NATS may be called with its certificate, and may not call with it."""
    its = certificates.files_of(files.ca.parents[1], certificates.NATS)
    pair = its.key.read_bytes(), its.certificate.read_bytes()
    return with_credentials(grpc.ssl_channel_credentials(files.ca.read_bytes(), *pair))


def in_the_clear(_files: TlsFiles, _strangers: Path) -> Callable[[str], grpc.aio.Channel]:
    return grpc.aio.insecure_channel


def with_credentials(credentials: grpc.ChannelCredentials) -> Callable[[str], grpc.aio.Channel]:
    options = (("grpc.ssl_target_name_override", SERVER),)
    return lambda address: grpc.aio.secure_channel(address, credentials, options=options)


@pytest.mark.parametrize("caller", [without_certificate, by_another_authority, expired, of_a_server, in_the_clear])
async def test_nobody_else_is(
    serve_echo: Any, echo_stub: Any, tls: Any, files: Any, strangers: Path, caller: Any
) -> None:
    async with serve_echo(tls=tls(SERVER)) as echo, caller(files(CALLER), strangers)(echo.address) as channel:
        error = await refusal(echo_stub(channel).Unary(text("x"), metadata=echo.metadata()))
        fine = await echo.stub.Unary(text("x"), metadata=echo.metadata())
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert "Socket closed" in error.message or "reset" in error.message
    assert fine.value == "x"


async def test_a_caller_insists_on_the_service_that_it_calls(serve_echo: Any, echo_stub: Any, tls: Any) -> None:
    async with (
        serve_echo(tls=tls("consensus")) as echo,
        open_channel(echo.address, SERVER, Limits(), tls(CALLER)) as channel,
    ):
        error = await refusal(echo_stub(channel).Unary(text("x"), metadata=echo.metadata()))
    assert "Hostname Verification Check failed" in error.message


async def test_a_services_token_is_good_over_its_own_connection_only(serve_echo: Any, echo_stub: Any, tls: Any) -> None:
    async with (
        serve_echo(tls=tls(SERVER)) as echo,
        open_channel(echo.address, SERVER, Limits(), tls(CALLER)) as own,
        open_channel(echo.address, SERVER, Limits(), tls("tool-executor")) as another,
    ):
        principal = Principal(service_principal(CALLER), ANY_TENANT, "service", ("*",))
        token = issue(echo.key, principal, timedelta(minutes=1), now=now())
        stolen = (("authorization", f"Bearer {token}"),)
        fine = await echo_stub(own).Unary(text("x"), metadata=stolen)
        error = await refusal(echo_stub(another).Unary(text("x"), metadata=stolen))
        of_a_person = await echo_stub(another).Unary(text("y"), metadata=echo.metadata())
    assert (fine.value, of_a_person.value) == ("x", "y")
    assert isinstance(error, Unauthenticated)
    assert error.reason == "TOKEN_OF_ANOTHER"
    assert error.metadata == {"principal": "svc-agent-runtime", "holder": "tool-executor"}


async def test_certificates_and_their_authority_are_renewed_under_load_without_a_failed_call(
    serve_echo: Any, echo_stub: Any, tls: Any, directory: Path
) -> None:
    server, caller = tls(SERVER), tls(CALLER)
    shown: list[int] = []
    answered = 0
    done = asyncio.Event()

    def took_up() -> None:
        shown.append(server.refresh() and caller.refresh())

    brief = Limits(connection_age_s=1)
    async with (
        serve_echo(tls=server, limits=brief) as echo,
        open_channel(echo.address, SERVER, Limits(), caller) as channel,
    ):
        stub, signed = echo_stub(channel), echo.metadata()

        async def load() -> None:
            nonlocal answered
            while not done.is_set():
                await stub.Unary(text("x"), metadata=signed)
                answered += 1

        async def follow_on_the_first_connection() -> int:
            watching = stub.WatchWords(text("a"), metadata=signed)
            [first] = [await anext(aiter(watching))]
            await done.wait()
            watching.cancel()
            return len(first.value)

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(load())
            following = group.create_task(follow_on_the_first_connection())
            former = caller.current.serial
            for step in (certificates.renew, certificates.introduce, renewed_by_the_next, certificates.retire):
                before = answered
                step(directory, now())
                took_up()
                await until(lambda at=before: answered > at + 50)
            assert former not in {caller.current.serial, server.current.serial}
            done.set()
        assert following.result() == 1
    assert shown == [True] * 4


def renewed_by_the_next(directory: Path, at: datetime) -> None:
    certificates.renew(directory, at + certificates.SETTLE)


async def test_a_new_handshake_shows_the_new_certificate(serve_echo: Any, tls: Any, directory: Path) -> None:
    server, caller = tls(SERVER), tls(CALLER)

    async def shown(address: str) -> int:
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=caller.current.context, server_hostname=SERVER)
        tls_object: ssl.SSLObject = writer.get_extra_info("ssl_object")
        serial = int(str(tls_object.getpeercert()["serialNumber"]), 16)  # type: ignore[index]
        writer.transport.abort()
        return serial

    async with serve_echo(tls=server) as echo:
        first = await shown(echo.address)
        certificates.renew(directory, now())
        server.refresh()
        second = await shown(echo.address)
    assert first != second == server.current.serial


async def test_files_that_do_not_fit_are_reported_and_the_former_ones_go_on(files: Any, directory: Path) -> None:
    tls, clock, health = Tls(files(SERVER), SystemClock()), SystemClock(), Health(Metrics().ready, Metrics().problem)
    former, heard = tls.current, []
    watching = asyncio.create_task(follow(tls, health, Metrics(), Logger("x"), heard.append, clock)())
    good = files(SERVER).key.read_bytes()
    files(SERVER).key.write_bytes(files(CALLER).key.read_bytes())
    await until(lambda: "tls" in health.problems)
    problem, used = health.problems["tls"], tls.current
    files(SERVER).key.write_bytes(good)
    certificates.renew(directory, now())
    await until(lambda: "tls" not in health.problems and tls.current is not former)
    watching.cancel()
    assert "is not the key of SYNOD_TLS_CERTIFICATE_FILE" in problem
    assert used is former
    assert heard == [tls.current]


async def test_a_certificate_that_was_not_renewed_degrades_health(files: Any) -> None:
    clock, health, metrics = FakeClock(now()), Health(Metrics().ready, Metrics().problem), Metrics()
    tls = Tls(files(SERVER), clock)
    clock.advance(certificates.LIFE.total_seconds() * 0.95)
    watching = asyncio.create_task(follow(tls, health, metrics, Logger("x"), lambda _: None, clock)())
    await until(lambda: "tls" in health.problems)
    watching.cancel()
    ends = f"{tls.current.expires_at:%Y-%m-%d %H:%M} UTC"
    assert health.problems["tls"] == f"the certificate of cost-ledger ends at {ends}; renew it, no restart is needed"
    assert metrics.registry.get_sample_value("tls_certificate_expires_seconds") == tls.current.expires_at.timestamp()


def missing(files: TlsFiles, _other: TlsFiles) -> None:
    files.ca.unlink()


def no_certificate(files: TlsFiles, _other: TlsFiles) -> None:
    files.certificate.write_text("hello")


def no_key(files: TlsFiles, _other: TlsFiles) -> None:
    files.key.write_text("hello")


def key_of_another(files: TlsFiles, other: TlsFiles) -> None:
    files.key.write_bytes(other.key.read_bytes())


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (missing, ("SYNOD_TLS_CA_FILE=", "ca.crt", "cannot be read (No such file", "synod tls init")),
        (no_certificate, ("SYNOD_TLS_CERTIFICATE_FILE=", "tls.crt", "is not a certificate in PEM", "synod tls init")),
        (no_key, ("SYNOD_TLS_KEY_FILE=", "tls.key", "is not a private key in PEM", "synod tls init")),
        (key_of_another, ("SYNOD_TLS_KEY_FILE=", "is not the key of SYNOD_TLS_CERTIFICATE_FILE=", "give both")),
    ],
)
def test_a_wrong_file_is_named_with_its_setting_and_the_remedy(files: Any, harm: Any, words: tuple[str, ...]) -> None:
    harm(files(SERVER), files(CALLER))
    with pytest.raises(TlsInvalid) as caught:
        Tls(files(SERVER), SystemClock())
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_certificate_out_of_its_time_is_refused_at_the_start(files: Any) -> None:
    with pytest.raises(TlsInvalid, match=r"SYNOD_TLS_CERTIFICATE_FILE=.* holds from .* to .* UTC, and it is"):
        files(SERVER).read(now() + certificates.LIFE)


def test_a_certificate_must_name_its_holder(files: Any, directory: Path) -> None:
    ca = directory / "ca"
    authority = TlsFiles(files(SERVER).ca, ca / "authority.crt", ca / "authority.key")
    with pytest.raises(TlsInvalid, match="needs the URI spiffe://synod/<service>"):
        authority.read(now())


def test_tls_is_all_or_nothing() -> None:
    assert TlsFiles.of_environment({}) is None
    with pytest.raises(TlsInvalid, match="SYNOD_TLS_CA_FILE and SYNOD_TLS_KEY_FILE must be set too"):
        TlsFiles.of_environment({"SYNOD_TLS_CERTIFICATE_FILE": "tls.crt"})


class Settings(ServiceSettings):
    service: str = SERVER


def settings(files: TlsFiles, dsn: str, nats_url: str) -> Settings:
    named = {"tls_ca_file": files.ca, "tls_certificate_file": files.certificate, "tls_key_file": files.key}
    return settings_for(Settings, dsn, nats_url, **named)


@pytest.fixture
def secured_nats(launcher_directory: Path, launcher_warden: Any, directory: Path, files: Any) -> Any:
    with running_nats(launcher_directory / f"nats-{directory.parent.name}", launcher_warden, files("nats")) as server:
        yield server


async def test_a_service_with_tls_speaks_it_to_nats_and_outlives_its_renewal(
    postgres_dsn: str, secured_nats: RunningNats, files: Any, directory: Path, add_echo: Any, echo_type: Any
) -> None:
    async def compose(host: Host[Settings]) -> None:
        host.add_rpc(
            add_echo, echo_type(), dict.fromkeys(("Unary", "Download", "Upload", "Chat", "WatchWords"), "echo")
        )

    async with serve_in_process(compose, settings(files(SERVER), postgres_dsn, secured_nats.url)) as service:
        host = service.host
        channel, connected_as = service.channel, host.nats.options["tls"]
        await call_unary(channel)
        certificates.renew(directory, now())
        secured_nats.reload()
        await until(lambda: host.nats.options["tls"] is not connected_as)
        secured_nats.stop()
        await until(lambda: "nats" in host.health.problems)
        secured_nats.start()
        await until(lambda: "nats" not in host.health.problems)
        await host.nats.flush()
        await call_unary(channel)
        assert host.tls is not None
        assert host.nats.options["tls"] is host.tls.current.context


async def call_unary(channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/test.Echo/Unary", StringValue.SerializeToString, StringValue.FromString)
    assert (await call(text("x"))).value == "x"


async def test_nats_refuses_who_has_no_certificate_and_who_speaks_in_the_clear(
    secured_nats: RunningNats, files: Any, strangers: Path
) -> None:
    theirs = certificates.files_of(strangers, CALLER)
    stranger = replace(theirs, ca=files(CALLER).ca).read(now()).nats_options()
    nobody = {"tls": ssl.create_default_context(cafile=str(files(CALLER).ca)), "tls_handshake_first": True}
    told: list[Exception] = []

    async def note(error: Exception) -> None:
        told.append(error)

    terms = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0, "error_cb": note}
    for options in (stranger, nobody, {}):
        with pytest.raises((NatsError, OSError)):
            await nats.connect(secured_nats.url, **terms, **options)
    assert told
    client = await nats.connect(secured_nats.url, **terms, **files(CALLER).read(now()).nats_options())
    await client.flush()
    await client.close()


async def test_who_insists_on_tls_tells_a_server_in_the_clear_no_password(nats_url: str, files: Any) -> None:
    secured = files(CALLER).read(now()).nats_options()
    with pytest.raises((NatsError, OSError, ssl.SSLError)):
        await nats.connect(nats_url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0, **secured)


async def test_a_service_that_nats_does_not_let_in_says_what_tls_needs(
    postgres_dsn: str, nats_url: str, files: Any
) -> None:
    async def compose(host: Host[Settings]) -> None:
        raise AssertionError("not reached")

    given = settings(files(SERVER), postgres_dsn, nats_url).model_copy(
        update={"limits": Limits(startup_s=0.5, probe_s=1)}
    )
    with pytest.raises(StartFailed, match="with TLS it needs `handshake_first: auto`"):
        async with serve_in_process(compose, given):
            raise AssertionError("not reached")


async def test_a_key_that_does_not_fit_stops_the_start(postgres_dsn: str, nats_url: str, files: Any) -> None:
    async def compose(host: Host[Settings]) -> None:
        raise AssertionError("not reached")

    key_of_another(files(SERVER), files(CALLER))
    with pytest.raises(StartFailed, match=r"keys: SYNOD_TLS_KEY_FILE=.* is not the key of"):
        async with serve_in_process(compose, settings(files(SERVER), postgres_dsn, nats_url)):
            raise AssertionError("not reached")


async def test_the_administrator_of_nats_speaks_tls_too(
    secured_nats: RunningNats, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = tmp_path / "streams.json"
    document.write_text('{"streams": []}')
    monkeypatch.setenv("SYNOD_NATS_URL", secured_nats.url)
    plain = await asyncio.to_thread(main, ["check", str(document)])
    for name, value in certificates.settings_of(directory, certificates.NATS_ADMIN).items():
        monkeypatch.setenv(name, value)
    assert await asyncio.to_thread(main, ["check", str(document)]) == IN_STEP
    assert plain == UNREACHABLE
