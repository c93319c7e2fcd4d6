"""Calls that are in flight while a service is stopped and started again, and what is on record of each afterwards.

Each of IN_FLIGHT is entered with the service at work and left with it there again: what is begun before the `yield` is what
the service holds when it is told to stop, what is asserted after it is what has become of that.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
import grpc
from synod.agent_registry.v1.agent_registry_pb2 import PRINCIPAL_KIND_AGENT, CreatePrincipalRequest
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.common.ids import new_id
from synod.consensus.v1.consensus_pb2 import ProposeRequest, Voter
from synod.cost_ledger.v1.cost_ledger_pb2 import Attribution, SetBudgetRequest
from synod.eventlog.v1.eventlog_pb2 import Event, EventFilter
from synod.llm_gateway.v1.llm_gateway_pb2 import ROLE_SYSTEM, ROLE_USER, GenerateRequest, Message, Part, StreamRequest
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb
from synod.tool_executor.v1.tool_executor_pb2_grpc import ToolExecutorStub
from synod_client import Synod, TryAgain
from synod_client.connection import Limits
from websockets.asyncio.client import connect

from .conftest import Containers
from .definitions import WAIT_S, assert_tools_ran_once, finished, prepared, seen

InFlight = Callable[[Containers, Synod], AbstractAsyncContextManager[None]]
Write = Callable[[Synod, str], Awaitable[object]]
"""Asks for something under an id, by which the service knows it again."""
SLOW = "simulator/sim-slow"
"""It begins after two seconds, and then says twenty words a second."""
SHORT, LONG = 8, 2000
"""Words of an answer that is complete before its gateway has to be gone, and of one that is not."""
SPOKEN = 300
"""Words of an answer that takes longer than the runtime that waits for it may take to stop."""
BUSY_S, ENDLESS_S = 2, 25
"""How long a tool runs that ends before its service has to be gone, and one that does not."""
WRITERS = 4
LOOK_S = 0.1
GOING_AWAY = 1001
PATIENT = Limits(attempts=100)
"""Of a client that goes on asking until the service is there again."""


@asynccontextmanager
async def model_calls(containers: Containers, synod: Synod) -> AsyncIterator[None]:
    """The one that can be completed is, and delivered; the other is on record as ended, and its caller is told."""
    await synod.set_price("simulator", "sim-slow", 100_000, 400_000)
    position = await head(synod, "llm-gateway")
    short, long = (asyncio.create_task(said(synod, words)) for words in (SHORT, LONG))
    begun = await on_record(synod, "llm-gateway", position, "ModelCallAttemptStarted", count=2)
    yield
    assert (await short).split() == ["word"] * SHORT
    assert await long == ""
    ended = await since(synod, "llm-gateway", position, "ModelCallCompleted", "ModelCallAttemptFailed")
    assert sorted(map(attempt_of, ended)) == sorted(map(attempt_of, begun))
    assert sorted(event.type for event in ended) == ["ModelCallAttemptFailed", "ModelCallCompleted"]
    (failed,) = [json.loads(event.data) for event in ended if event.type == "ModelCallAttemptFailed"]
    assert failed["failure"]["message"]


async def said(synod: Synod, words: int) -> str:
    """The whole answer to one call, empty if it is broken off."""
    messages = (("answer: " + "word " * words, ROLE_SYSTEM), ("Speak.", ROLE_USER))
    request = GenerateRequest(
        request_id=new_id("req"),
        model=SLOW,
        messages=[Message(role=role, parts=[Part(text=text)]) for text, role in messages],
    )
    stub = LlmGatewayStub(synod.connection.channel("llm-gateway"))
    try:
        async for event in synod.connection.stream(stub.Stream, StreamRequest(request=request)):
            if event.HasField("completed"):
                return "".join(part.text for part in event.completed.message.parts)
    except TryAgain:
        return ""
    return ""


def attempt_of(event: Event) -> tuple[str, int]:
    data = json.loads(event.data)
    return data["request_id"], data["attempt"]


@asynccontextmanager
async def tool_calls(containers: Containers, synod: Synod) -> AsyncIterator[None]:
    """The tool that can end does. The other is stopped, and runs once more when its caller asks again under the same id."""
    await prepared(synod)
    position = await head(synod, "tool-executor")
    short, long = executing(BUSY_S), executing(ENDLESS_S)
    answers = [asyncio.create_task(executed(synod, request)) for request in (short, long)]
    await on_record(synod, "tool-executor", position, "ToolCallStarted", count=2)
    yield
    finished, stopped = await asyncio.gather(*answers)
    assert (finished, stopped) == (tools_pb.TOOL_CALL_STATE_SUCCEEDED, None)
    stub = ToolExecutorStub(synod.connection.channel("tool-executor"))
    again = await synod.connection.call(stub.Execute, long, timeout_s=WAIT_S)
    assert (again.state, again.attempt) == (tools_pb.TOOL_CALL_STATE_SUCCEEDED, 2), again
    ended = await since(
        synod, "tool-executor", position, "ToolCallCompleted", "ToolCallFailed", "ToolCallOutcomeUnknown"
    )
    ends = {data["call_id"]: (event.type, data["attempt"]) for event in ended if (data := json.loads(event.data))}
    assert ends == {short.call_id: ("ToolCallCompleted", 1), long.call_id: ("ToolCallCompleted", 2)}
    assert len(ended) == len(ends)


def executing(busy_s: float) -> tools_pb.ExecuteRequest:
    """A call whose tool runs until so many seconds from now, whenever it is begun."""
    code = f"import time\ntime.sleep(max(0, {time.time() + busy_s} - time.time()))\nresult = 1"
    id = new_id("req")
    arguments = json.dumps({"code": code})
    return tools_pb.ExecuteRequest(
        call_id=id, tool="python_exec", arguments_json=arguments, agent="porter", workspace_id=id
    )


async def executed(synod: Synod, request: tools_pb.ExecuteRequest) -> int | None:
    """The state that the call is answered with; None if the service is gone before."""
    stub = ToolExecutorStub(synod.connection.channel("tool-executor"))
    try:
        answer = await stub.Execute(request, metadata=await synod.connection.metadata(), timeout=WAIT_S)
    except grpc.aio.AioRpcError:
        return None
    return answer.state


@asynccontextmanager
async def listeners(containers: Containers, synod: Synod) -> AsyncIterator[None]:
    """An answer that is being streamed is streamed to its end; who listens is told to come back, and that is on record."""
    headers = {"Authorization": f"Bearer {containers.endpoints.required_key()}"}
    edge = containers.endpoints.edge
    position = await head(synod, "ws-gateway")
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=WAIT_S)) as client,
        connect(edge.replace("http", "ws") + "/ws", additional_headers=headers) as socket,
    ):
        await socket.recv()
        asked = {
            "model": SLOW,
            "stream": True,
            "messages": [{"role": "system", "content": "answer: " + "word " * SHORT}],
        }
        async with client.post(f"{edge}/v1/chat/completions", json=asked) as answer:
            assert answer.ok
            yield
            text = await answer.text()
        async with asyncio.timeout(WAIT_S):
            await socket.wait_closed()
    *frames, last = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert last == "[DONE]"
    assert streamed(frames).split() == ["word"] * SHORT
    assert socket.close_code == GOING_AWAY
    closed = await on_record(synod, "ws-gateway", position, "SessionClosed", count=1)
    assert [json.loads(event.data)["code"] for event in closed] == [GOING_AWAY]


SPEAKER = f"""
apiVersion: synod/v1
kind: Agent
metadata: {{name: speaker}}
spec: {{behaviour: chat, model: {{name: {SLOW}}}, instructions: "answer: {"word " * SPOKEN}"}}
"""


@asynccontextmanager
async def runs(containers: Containers, synod: Synod) -> AsyncIterator[None]:
    """They go on where they were: no tool runs twice, and a model that has not answered yet is asked no second time."""
    await prepared(synod)
    await synod.set_price("simulator", "sim-slow", 100_000, 400_000)
    await synod.define(SPEAKER)
    position = await head(synod, "llm-gateway")
    speaking = await synod.start("speaker", "Speak.")
    working = await synod.start("porters", "the load")
    await seen(synod, speaking.id, "ModelCallRequested")
    await seen(synod, working.id, "ToolCallIntended")
    yield
    for run in (await finished(synod, working.id), await finished(synod, speaking.id)):
        assert (await synod.replay(run.id)).equal
    await assert_tools_ran_once(synod, working.id)
    asked = await since(synod, "llm-gateway", position, "ModelCallAttemptStarted")
    assert sum(event.correlation_id == speaking.id for event in asked) == 1


def streamed(frames: Iterable[str]) -> str:
    """The text of an answer in chunks, of which one may hold several words."""
    choices = [choice for frame in frames for choice in json.loads(frame)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def writes(service: str, event_type: str, write: Write) -> InFlight:
    """Clients that write without a pause: none of them fails, and what each wrote is on record once."""

    @asynccontextmanager
    async def written(containers: Containers, synod: Synod) -> AsyncIterator[None]:
        position, done, stop = await head(synod, service), list[str](), asyncio.Event()
        async with Synod.connect(containers.endpoints, PATIENT) as client:

            async def work() -> None:
                while not stop.is_set():
                    id = new_id("req")
                    await write(client, id)
                    done.append(id)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(WRITERS):
                    tasks.create_task(work())
                await on_record(synod, service, position, event_type, count=WRITERS)
                yield
                stop.set()
        text = [event.data.decode() for event in await since(synod, service, position, event_type)]
        assert {id: sum(id in each for each in text) for id in done} == dict.fromkeys(done, 1)

    return written


async def create_principal(synod: Synod, id: str) -> object:
    registry = AgentRegistryStub(synod.connection.channel("agent-registry"))
    request = CreatePrincipalRequest(name=id, kind=PRINCIPAL_KIND_AGENT, roles=["viewer"], request_id=id)
    return await synod.connection.call(registry.CreatePrincipal, request)


async def set_budget(synod: Synod, id: str) -> object:
    # For nothing that anybody spends: a cost names each budget that it counts against, and these may be thousands.
    nobody = Attribution(run_id=id)
    return await synod.put_budget(SetBudgetRequest(budget_id=id, scope=nobody, limit_nano_usd=10**9, window="day"))


async def propose(synod: Synod, id: str) -> object:
    voter = Voter(id=synod.connection.principal or "somebody")
    return await synod.propose(ProposeRequest(request_id=id, run_id=id, title="a proposal", electorate=[voter]))


async def head(synod: Synod, service: str) -> int:
    return (await synod.read(service, limit=1)).head_position


async def since(synod: Synod, service: str, position: int, *types: str) -> list[Event]:
    """All events of these types after a position."""
    found, where = list[Event](), EventFilter(types=types)
    while True:
        page = await synod.read(service, after=position, limit=1000, where=where)
        found += page.events
        if page.next_after_position in (position, page.head_position):
            return found
        position = page.next_after_position


async def on_record(synod: Synod, service: str, position: int, type: str, *, count: int) -> list[Event]:
    """The events of this type after a position, once there are so many."""
    async with asyncio.timeout(WAIT_S):
        while len(found := await since(synod, service, position, type)) < count:  # noqa: ASYNC110 - a log is asked
            await asyncio.sleep(LOOK_S)
    return found


IN_FLIGHT: Mapping[str, InFlight] = {
    "agent-registry": writes("agent-registry", "PrincipalCreated", create_principal),
    "cost-ledger": writes("cost-ledger", "BudgetSet", set_budget),
    "consensus": writes("consensus", "ProposalOpened", propose),
    "tool-executor": tool_calls,
    "llm-gateway": model_calls,
    "agent-runtime": runs,
    "ws-gateway": listeners,
}
"""What each service is asked for while it is told to stop."""
