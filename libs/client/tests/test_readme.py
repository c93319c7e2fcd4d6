"""The README's examples run as they stand, against services that answer as they would."""

import ast
import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
from eventlog.codec import Codec
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, StreamId
from eventlog.relay import Relay
from servicekit.clock import SystemClock
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_runtime.events import RunCancelled
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod_client.cli.output import Exit
from synod_client.testing import FakeSystem, Fault

README = Path(__file__).parents[1] / "README.md"
FIRST, ERRORS, SERVE, ASK, FOLLOW = range(5)


def block(number: int) -> str:
    found: list[str] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(found) == FOLLOW + 1
    return found[number]


async def run(number: int) -> dict[str, Any]:
    """Runs an example as a program of its own; what it defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    code = compile(block(number), f"README.md example {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result
    return names


@pytest.fixture
def system(fakes: FakeSystem, bus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    """The examples find it as they would find a system that is up on this machine."""
    data = tmp_path / "data"
    fakes.write(data)
    (data / "keys" / "observer.nats").write_text(bus.url("observer"))
    (data / "keys" / "client.nats").write_text(bus.url("client"))
    monkeypatch.setenv("SYNOD_DATA", str(data))
    for name in ("SYNOD_API_KEY", "SYNOD_HOST", "SYNOD_PORT_BASE", "SYNOD_NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    return fakes


async def test_a_run_is_started_watched_and_its_output_printed(
    system: FakeSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    system.answer("agent-runtime", "StartRun", runtime_pb.Run(id="run_1"))
    system.answer("agent-runtime", "WatchRun", [runtime_pb.RunUpdate(cursor=1, summary="run started")])
    system.answer("agent-runtime", "GetRun", runtime_pb.Run(id="run_1", output="42"))
    await run(FIRST)
    assert capsys.readouterr().out == "run started\n42\n"


async def test_an_error_is_told_by_its_type(system: FakeSystem, capsys: pytest.CaptureFixture[str]) -> None:
    unknown = Fault(grpc.StatusCode.NOT_FOUND, "no definition 'nobody'", "NOT_FOUND")
    system.answer("agent-runtime", "StartRun", unknown)
    await run(ERRORS)
    assert capsys.readouterr().out == "NOT_FOUND no definition 'nobody'\n"


async def test_the_translator_serves_and_is_asked(system: FakeSystem, capsys: pytest.CaptureFixture[str]) -> None:
    translator = registry_pb.Agent(id="agt_1", name="translator", incarnation=1, external=True)
    system.answer("agent-registry", "RegisterExternalAgent", translator)
    system.answer("agent-registry", "GetAgent", translator)
    system.answer("agent-registry", "Heartbeat", registry_pb.HeartbeatResponse(interval_ms=1000))
    serving = asyncio.create_task((await run(SERVE))["serve"]())
    await run(ASK)
    await end(serving)
    assert capsys.readouterr().out == "guten Tag\nUNKNOWN_PHRASE no translation for 'good night'\n"


@pytest.fixture
async def cancelled_run(bus: Any) -> AsyncIterator[RunCancelled]:
    event = RunCancelled(run_id="run_1", root_run_id="run_1", definition_name="helper", epoch=1, reason="by hand")
    client, log, codec = await nats.connect(bus.url("agent-runtime")), MemoryEventLog(), Codec[Any]([RunCancelled])
    new = codec.encode(event, at=SystemClock().now())
    await log.append(Append(StreamId("run", "run_1"), ANY, (new,), Context(tenant="local", actor="ada")))
    relay = asyncio.create_task(Relay(log, client, "agent-runtime").run())
    yield event
    await end(relay)
    await client.close()


async def test_ends_of_runs_are_followed(system: FakeSystem, cancelled_run: RunCancelled) -> None:
    printed: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()
    names = await run(FOLLOW)
    names["print"] = lambda *values: printed.put_nowait(values)
    following = asyncio.create_task(names["print_ends"]())
    assert await asyncio.wait_for(printed.get(), 30) == (1, cancelled_run)
    await end(following)


def test_the_table_of_exit_codes_is_the_programs() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README.read_text(), re.MULTILINE)}
    assert listed == {int(code) for code in Exit}
