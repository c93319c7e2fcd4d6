"""Tokens, retries, and streams that are resumed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, closing, suppress
from pathlib import Path

import grpc
import pytest
from synod.agent_registry.v1.agent_registry_pb2 import AuthenticateResponse
from synod.agent_runtime.v1.agent_runtime_pb2 import Run, RunUpdate
from synod.agent_runtime.v1.agent_runtime_pb2_grpc import AgentRuntimeServicer, add_AgentRuntimeServicer_to_server
from synod.eventlog.v1.eventlog_pb2 import Event
from synod_client import Broken, Endpoints, Limits, NotFound, Synod, TryAgain
from synod_client.connection import Connection
from synod_client.testing import FakeSystem, Fault

AWAY = Fault(grpc.StatusCode.UNAVAILABLE, "restarting", "UNAVAILABLE")
STOPPING = Fault(grpc.StatusCode.CANCELLED, "CANCELLED", "")
"""What becomes of a call that comes in as a server stops, or that has outlasted its patience."""


class Hours:
    """A monotonic clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def token(life_s: int) -> AuthenticateResponse:
    answer = AuthenticateResponse(token="token")
    answer.expires_at.FromSeconds(int(time.time()) + life_s)
    return answer


async def test_a_token_is_asked_for_once_and_renewed_after_four_fifths_of_its_life(fakes: FakeSystem) -> None:
    fakes.answer("agent-registry", "Authenticate", token(1000))
    clock = Hours()
    connection = Connection(fakes.endpoints, monotonic=clock)
    await asyncio.gather(*(connection.metadata() for _ in range(5)))
    clock.now_s = 790
    await connection.metadata()
    assert len(fakes.requests("Authenticate")) == 1
    clock.now_s = 801
    assert await connection.metadata() == (("authorization", "Bearer token"),)
    assert len(fakes.requests("Authenticate")) == 2
    await connection.close()


async def test_who_one_is_is_known_after_the_first_call(fakes: FakeSystem, synod: Synod) -> None:
    fakes.answer("agent-runtime", "GetRun", Run(id="run_1"))
    await synod.run("run_1")
    assert (synod.connection.tenant, synod.connection.principal) == ("local", "usr_test")
    assert fakes.requests("Authenticate")[0].api_key == "syn_test_key"


async def test_a_call_is_repeated_while_the_service_stops_or_is_unavailable(fakes: FakeSystem, synod: Synod) -> None:
    fakes.answer("agent-runtime", "StartRun", STOPPING, AWAY, Run(id="run_1"))
    assert (await synod.start("helper", "hello")).id == "run_1"
    assert len({request.request_id for request in fakes.requests("StartRun")}) == 1


async def test_a_call_is_given_up_after_its_attempts(fakes: FakeSystem, synod: Synod) -> None:
    fakes.answer("agent-runtime", "StartRun", AWAY)
    with pytest.raises(TryAgain, match="restarting"):
        await synod.start("helper", "hello")
    assert len(fakes.requests("StartRun")) == synod.connection.limits.attempts


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(grpc.StatusCode.NOT_FOUND, "no run 'run_1'"), NotFound),
        (Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many"), TryAgain),
        (Fault(grpc.StatusCode.ABORTED, "changed"), TryAgain),
        (Fault(grpc.StatusCode.INTERNAL, "broken"), Broken),
    ],
    ids=lambda value: value.code.name if isinstance(value, Fault) else "",
)
async def test_other_failures_are_not_repeated(
    fakes: FakeSystem, synod: Synod, fault: Fault, kind: type[Exception]
) -> None:
    fakes.answer("agent-runtime", "GetRun", fault)
    with pytest.raises(kind):
        await synod.run("run_1")
    assert len(fakes.requests("GetRun")) == 1


def test_pauses_grow_to_a_cap_and_are_never_shorter_than_the_service_asked(fakes: FakeSystem) -> None:
    connection = Connection(fakes.endpoints, Limits(backoff_first_s=0.1, backoff_max_s=2.0))
    longest = [max(connection.pause_s(attempt) for _ in range(300)) for attempt in (1, 2, 6, 50)]
    assert all(low < seen <= cap for seen, low, cap in zip(longest, (0.05, 0.1, 1, 1), (0.1, 0.2, 2, 2), strict=True))
    assert connection.pause_s(1, floor_s=3.0) == 3.0


async def test_a_repeat_waits_as_long_as_the_service_asked(fakes: FakeSystem, synod: Synod) -> None:
    busy = Fault(grpc.StatusCode.UNAVAILABLE, "starting", "UNAVAILABLE", retry_after_s=0.05)
    fakes.answer("agent-runtime", "GetRun", busy, Run(id="run_1"))
    before = time.monotonic()
    await synod.run("run_1")
    assert time.monotonic() - before >= 0.05


class Gateway:
    """Answers every request of HTTP/2 with 404, as what stands between and knows no gRPC. RFC 9113, section 4.1."""

    SETTINGS, NOT_FOUND, ENDS = b"\0\0\0\4\0\0\0\0\0", b"\x8d", 0x5

    def __init__(self) -> None:
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError), closing(writer):
            await reader.readexactly(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            writer.write(self.SETTINGS)
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == 1:  # HEADERS
                    self.requests += 1
                    writer.write(b"\0\0\1\1" + bytes([self.ENDS]) + head[5:] + self.NOT_FOUND)


async def test_who_answers_in_the_place_of_a_service_is_no_word_of_it() -> None:
    gateway = Gateway()
    async with await asyncio.start_server(gateway.serve, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        endpoints = Endpoints(dict.fromkeys(("agent-registry", "agent-runtime"), address), "", "", "syn_key")
        async with Synod.connect(endpoints, Limits(attempts=3, backoff_first_s=0.001)) as synod:
            with pytest.raises(TryAgain, match="something on the way to it, with HTTP 404") as answered:
                await synod.run("run_1")
    assert (answered.value.reason, gateway.requests) == ("ANSWERED_BETWEEN", 3)


async def test_when_nothing_listens_the_message_says_how_to_start(tmp_path: Path) -> None:
    endpoints = Endpoints.discover({"SYNOD_PORT_BASE": "1", "SYNOD_API_KEY": "syn_key"}, tmp_path)
    async with Synod.connect(endpoints, Limits(attempts=1)) as synod:
        with pytest.raises(
            TryAgain, match=r"^agent-registry at 127\.0\.0\.1:2 does not answer; .*`synod up` starts it"
        ) as absent:
            await synod.runs()
    assert absent.value.reason == "NOT_RUNNING"


async def test_a_service_that_is_down_is_named(fakes: FakeSystem) -> None:
    endpoints = Endpoints({**fakes.addresses, "cost-ledger": "127.0.0.1:3"}, "", "", "syn_key")
    async with Synod.connect(endpoints, Limits(attempts=1)) as synod:
        with pytest.raises(TryAgain, match=r"^cost-ledger at 127\.0\.0\.1:3 does not answer"):
            await synod.budgets()


async def test_a_service_that_is_too_slow_is_not_waited_for(fakes: FakeSystem) -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(_request: object) -> Run:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(30)
        return Run()

    fakes.answer("agent-runtime", "GetRun", slow)
    async with Synod.connect(fakes.endpoints, Limits(timeout_s=0.2)) as synod:
        with pytest.raises(TryAgain, match="did not answer in time") as late:
            await synod.run("run_1")
    released.set()
    assert late.value.reason == "DEADLINE_EXCEEDED"


async def test_a_watch_goes_on_at_its_cursor_after_its_stream_broke(fakes: FakeSystem, synod: Synod) -> None:
    first = [RunUpdate(cursor=3, type="RunStarted"), RunUpdate(type="Token"), RunUpdate(cursor=5), AWAY]
    fakes.answer("agent-runtime", "WatchRun", first, AWAY, [RunUpdate(cursor=9, type="RunCompleted")])
    seen = [update.cursor async for update in synod.watch("run_1", after=2, tokens=True)]
    assert seen == [3, 0, 5, 9]
    assert [request.after_cursor for request in fakes.requests("WatchRun")] == [2, 5, 5]


async def test_a_subscription_goes_on_without_gap_or_duplicate_also_when_the_service_ends_it(
    fakes: FakeSystem, synod: Synod
) -> None:
    def events_after(request: object) -> list[Event | Fault]:
        position = getattr(request, "after_position")  # noqa: B009 - the fake is not typed by method
        following: list[Event | Fault] = [Event(position=position + step) for step in (1, 2)]
        return following if position == 2 else [*following, AWAY]

    fakes.answer("cost-ledger", "Subscribe", events_after)
    events = synod.subscribe("cost-ledger")
    seen = [(await anext(events)).position for _ in range(7)]
    await events.aclose()
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert [request.after_position for request in fakes.requests("Subscribe")] == [0, 2, 4, 6]


async def test_a_stream_that_only_breaks_is_given_up(fakes: FakeSystem, synod: Synod) -> None:
    fakes.answer("agent-runtime", "WatchRun", AWAY)
    with pytest.raises(TryAgain, match="restarting"):
        await synod.wait("run_1")
    assert len(fakes.requests("WatchRun")) == synod.connection.limits.stream_attempts + 1


class Endless(AgentRuntimeServicer):
    async def WatchRun(self, request: object, context: object) -> AsyncIterator[RunUpdate]:
        yield RunUpdate(cursor=1)
        await asyncio.Event().wait()


async def test_what_one_client_failed_at_keeps_no_other_waiting(fakes: FakeSystem) -> None:
    # As a proxy does whose server is still starting, the port takes connections and ends them.
    proxy = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    endpoints = Endpoints({**fakes.addresses, "agent-runtime": f"127.0.0.1:{port}"}, "", "", "syn_key")
    async with Synod.connect(endpoints, Limits(attempts=1)) as early:
        with pytest.raises(TryAgain, match="does not answer"):
            await early.run("run_1")
        proxy.close()
        await proxy.wait_closed()
        server = grpc.aio.server()
        add_AgentRuntimeServicer_to_server(Endless(), server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        async with (
            Synod.connect(endpoints, Limits(stream_attempts=0)) as late,
            aclosing(late.watch("run_1")) as updates,
        ):
            assert (await anext(updates)).cursor == 1
        await server.stop(None)


async def test_a_stream_that_a_stopping_server_cancels_is_one_to_resume(fakes: FakeSystem) -> None:
    server = grpc.aio.server()
    add_AgentRuntimeServicer_to_server(Endless(), server)  # type: ignore[no-untyped-call]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    endpoints = Endpoints({**fakes.addresses, "agent-runtime": address}, "", "", "syn_key")
    async with Synod.connect(endpoints, Limits(stream_attempts=0)) as synod:
        updates = synod.watch("run_1")
        assert (await anext(updates)).cursor == 1
        await server.stop(None)
        with pytest.raises(TryAgain):
            await anext(updates)


async def test_a_proxy_for_the_web_does_not_come_between_a_client_and_the_system(
    fakes: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    fakes.answer("agent-registry", "Authenticate", token(1000))
    connection = Connection(fakes.endpoints)
    assert await connection.metadata() == (("authorization", "Bearer token"),)
    await connection.close()
