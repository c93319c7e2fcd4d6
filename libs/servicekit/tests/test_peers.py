"""A channel to a peer says who calls, for whom, in which trace and until when, and repeats what may be repeated."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import StringValue
from launcher.processes import free_port
from servicekit.auth import Principal, StaticToken
from servicekit.clock import SystemClock
from servicekit.context import Call, acting_as, current_call, enter_call
from servicekit.dependencies import Missing
from servicekit.errors import DeadlineExceeded, Unauthenticated, Unavailable, from_rpc_error, of_peer, trailers
from servicekit.limits import Limits
from servicekit.peers import CallTerms, KeyExchange, PeerChannel, Peers, PeerUnknown, is_idempotent
from servicekit.retry import Backoff
from servicekit.telemetry import Tracing, traceparent
from servicekit.testing import FakeClock
from synod.agent_registry.v1 import agent_registry_pb2

ADA = Principal("usr_ada", "acme", "user")
CLOCKS_S = 0.01
"""What is lost between Python's clock and gRPC's, which counts milliseconds of another."""


def terms(token: str = "", **limits: Any) -> CallTerms:
    return CallTerms(StaticToken(token), SystemClock(), Limits(**limits), Backoff(initial_s=0.001, max_s=0.001))


def text(value: str) -> StringValue:
    return StringValue(value=value)


@pytest.fixture
def witness(echo_type: Any) -> Any:
    class Witness(echo_type):
        """Remembers the calls it was given."""

        def __init__(self) -> None:
            self.calls: list[tuple[Call, str]] = []

        async def Unary(self, request: StringValue, context: Any) -> StringValue:
            self.calls.append((current_call(), traceparent()))
            return request

        async def Download(self, request: StringValue, context: Any) -> Any:
            self.calls.append((current_call(), traceparent()))
            yield request
            yield request

    return Witness()


async def test_a_call_carries_identity_tenant_actor_trace_and_correlation(
    serve_echo: Any, echo_stub: Any, witness: Any
) -> None:
    async with serve_echo(witness) as echo:
        token = echo.token(tenant="*", kind="service")
        async with PeerChannel(echo.address, terms(token)) as channel:
            with acting_as(ADA, correlation="run_1"), Tracing("caller").span("ask"):
                asked_in = traceparent()
                await echo_stub(channel).Unary(text("x"))
    ((call, answered_in),) = witness.calls
    assert (call.principal.tenant, call.principal.actor, call.correlation) == ("acme", "usr_ada", "run_1")
    assert answered_in.split("-")[1] == asked_in.split("-")[1]


async def test_a_service_that_cannot_say_who_it_is_may_still_call_with_its_callers_token(
    serve_echo: Any, echo_stub: Any
) -> None:
    class Nobody:
        async def token(self) -> str:
            raise Unauthenticated("no token can be had", reason="KEY_FILE_MISSING")

    nobody = CallTerms(Nobody(), SystemClock(), Limits(), Backoff())
    async with serve_echo() as echo, PeerChannel(echo.address, nobody) as channel:
        given = (("authorization", f"Bearer {echo.token()}"),)
        assert (await echo_stub(channel).Unary(text("x"), metadata=given)).value == "x"
        with pytest.raises(Unauthenticated):
            await echo_stub(channel).Unary(text("x"))


async def test_a_stream_carries_the_same_and_is_iterated(serve_echo: Any, echo_stub: Any, witness: Any) -> None:
    async with serve_echo(witness) as echo:
        token = echo.token(tenant="*", kind="service")
        async with PeerChannel(echo.address, terms(token)) as channel:
            with acting_as(ADA):
                received = [item.value async for item in echo_stub(channel).Download(text("x"))]
    assert received == ["x", "x"]
    assert witness.calls[0][0].principal.tenant == "acme"


async def test_both_sides_of_a_chat_can_be_read_and_written(serve_echo: Any, echo_stub: Any) -> None:
    async with serve_echo() as echo, PeerChannel(echo.address, terms(echo.token())) as channel:
        chat = echo_stub(channel).Chat()
        await chat.write(text("a"))
        first = await chat.read()
        await chat.done_writing()
        end = await chat.read()
    assert (first.value, end) == ("a", grpc.aio.EOF)


async def test_a_call_within_a_call_gets_no_more_time_than_is_left(
    serve_echo: Any, echo_stub: Any, witness: Any
) -> None:
    async with serve_echo(witness) as echo, PeerChannel(echo.address, terms(echo.token())) as channel:
        asked_at = SystemClock().monotonic()
        enter_call(Call(ADA, deadline=asked_at + 5))
        await echo_stub(channel).Unary(text("x"), metadata=(("synod-tenant", "local"),))
        answered_at = SystemClock().monotonic()
    # gRPC sends the time that is left, below 10 s rounded up to hundredths; the peer counts it from its arrival.
    assert witness.calls[0][0].deadline < answered_at + 5 + 0.01 + CLOCKS_S


async def test_a_call_without_any_deadline_gets_the_limit_for_peers(
    serve_echo: Any, echo_stub: Any, witness: Any
) -> None:
    async with serve_echo(witness) as echo, _patient_channel(echo) as channel:
        asked_at = SystemClock().monotonic()
        await echo_stub(channel).Unary(text("x"))
        answered_at = SystemClock().monotonic()
    assert asked_at + 7 - CLOCKS_S < witness.calls[0][0].deadline < answered_at + 7 + 0.01 + CLOCKS_S


def _patient_channel(echo: Any) -> PeerChannel:
    return PeerChannel(echo.address, terms(echo.token(), peer_deadline_s=7))


async def test_no_peer_is_asked_when_no_time_is_left(serve_echo: Any, echo_stub: Any, witness: Any) -> None:
    async with serve_echo(witness) as echo, PeerChannel(echo.address, terms(echo.token())) as channel:
        enter_call(Call(ADA, deadline=SystemClock().monotonic() - 1))
        with pytest.raises(DeadlineExceeded, match="no time left to ask a peer"):
            await echo_stub(channel).Unary(text("x"))
    assert witness.calls == []


class Flaky:
    """A transport that fails `failures` times with `code`, then answers."""

    def __init__(self, failures: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.failures = failures
        self.code = code
        self.attempts = 0

    def get_state(self, try_to_connect: bool) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.READY

    def unary_unary(self, method: str, *_: Any, **__: Any) -> Any:
        async def call(request: Any, **_: Any) -> Any:
            self.attempts += 1
            if self.attempts <= self.failures:
                raise grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), grpc.aio.Metadata())
            return request

        return call


def flaky_call(transport: Flaky, method: str) -> Any:
    channel: Any = transport
    return PeerChannel("nowhere", terms(peer_attempts_max=3), channel).unary_unary(method)


async def test_an_idempotent_call_is_repeated_while_the_peer_is_unavailable() -> None:
    transport = Flaky(failures=2)
    assert await flaky_call(transport, "/test.Echo/GetEcho")(text("x")) == text("x")
    assert transport.attempts == 3


@pytest.mark.parametrize(
    ("method", "code", "attempts"),
    [
        ("/test.Echo/GetEcho", grpc.StatusCode.UNAVAILABLE, 3),
        ("/test.Echo/GetEcho", grpc.StatusCode.INTERNAL, 1),
        ("/test.Echo/Create", grpc.StatusCode.UNAVAILABLE, 1),
    ],
    ids=["attempts are limited", "other errors are final", "orders are not repeated"],
)
async def test_a_call_that_cannot_be_saved_fails(method: str, code: grpc.StatusCode, attempts: int) -> None:
    transport = Flaky(failures=99, code=code)
    with pytest.raises(grpc.aio.AioRpcError):
        await flaky_call(transport, method)(text("x"))
    assert transport.attempts == attempts


async def test_a_peer_that_cannot_be_reached_is_named() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await flaky_call(Flaky(failures=99), "/synod.cost_ledger.v1.CostLedger/GetBudget")(text("x"))
    found = from_rpc_error(lost.value)
    assert isinstance(found, Unavailable)
    assert found.message.startswith("cost-ledger cannot be reached now, repeat in a moment: ")


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
async def test_a_proxy_for_the_web_does_not_come_between_services(
    variable: str, serve_echo: Any, echo_stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    async with serve_echo() as echo, PeerChannel(echo.address, terms(echo.token())) as channel:
        assert (await echo_stub(channel).Unary(text("hi"), timeout=5)).value == "hi"


async def test_a_stream_of_a_peer_that_cannot_be_reached_names_it() -> None:
    channel = PeerChannel(f"127.0.0.1:{free_port()}", terms(peer_connect_s=0.01))
    with pytest.raises(grpc.aio.AioRpcError, match="llm-gateway cannot be reached now"):
        async for _ in channel.unary_stream("/synod.llm_gateway.v1.LlmGateway/Stream")(b""):
            pass
    await channel.close()


async def test_what_a_peer_answers_itself_stays_its_own() -> None:
    told = Unavailable("the price book is being read")
    error = grpc.aio.AioRpcError(told.code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers(told, "cost-ledger")))
    assert of_peer(error, "/synod.cost_ledger.v1.CostLedger/GetBudget") is error


def test_an_order_with_a_request_id_may_be_repeated() -> None:
    method = "/synod.agent_registry.v1.AgentRegistry/CreatePrincipal"
    assert is_idempotent(method, agent_registry_pb2.CreatePrincipalRequest(request_id="req_1"))
    assert not is_idempotent(method, agent_registry_pb2.CreatePrincipalRequest())


class Registry:
    """An agent-registry that signs numbered tokens which live for 100 seconds."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.keys: list[str] = []

    def __getattr__(self, kind: str) -> Any:
        return lambda *_, **__: self.authenticate

    async def authenticate(self, request: agent_registry_pb2.AuthenticateRequest) -> Any:
        self.keys.append(request.api_key)
        expires_at = Timestamp()
        expires_at.FromDatetime(self.clock.now() + timedelta(seconds=100))
        return agent_registry_pb2.AuthenticateResponse(token=f"token {len(self.keys)}", expires_at=expires_at)


async def test_an_api_key_is_exchanged_once_and_again_at_80_percent_of_the_tokens_life(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("syn_1_secret\n")
    clock = FakeClock()
    registry: Any = Registry(clock)
    source = KeyExchange(tmp_path / "key", registry, clock)
    tokens = [await source.token(), await source.token()]
    clock.advance(79)
    tokens.append(await source.token())
    clock.advance(2)
    tokens.append(await source.token())
    assert tokens == ["token 1", "token 1", "token 1", "token 2"]
    assert registry.keys == ["syn_1_secret"] * 2


async def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    registry: Any = Registry(FakeClock())
    with pytest.raises(Unauthenticated, match=r"SYNOD_SERVICE_KEY_FILE=.*none cannot be read"):
        await KeyExchange(tmp_path / "none", registry, FakeClock()).token()


def test_an_unknown_peer_is_named_with_the_variable_to_set() -> None:
    peers = Peers({"consensus": "127.0.0.1:7106"}, SystemClock(), Limits())
    with pytest.raises(PeerUnknown, match=r"no address of peer 'cost-ledger' \(known: consensus\).*SYNOD_PEERS"):
        peers.channel("cost-ledger")


async def test_a_peer_that_does_not_answer_is_missing() -> None:
    peers = Peers({"consensus": "127.0.0.1:1"}, SystemClock(), Limits(probe_s=0.1))
    with pytest.raises(Missing, match=r"peer consensus at 127\.0\.0\.1:1 does not answer"):
        await peers.probe("consensus")
    await peers.close()
