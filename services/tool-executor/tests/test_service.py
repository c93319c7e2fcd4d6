"""The service as its clients see it: real gRPC, PostgreSQL and NATS, real tools in real sandboxes."""

import json
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import pytest
from launcher.testing import RunningNats
from servicekit.errors import ServiceError, from_rpc_error
from servicekit.testing import Served, serve_in_process, settings_for
from synod.tool_executor.v1 import tool_executor_pb2 as pb
from synod.tool_executor.v1.tool_executor_pb2_grpc import ToolExecutorStub
from tool_executor.main import compose
from tool_executor.settings import Settings

PRICES = b"model,usd\nsmall,1\nlarge,5\n"


def settings(postgres_dsn: str, nats: RunningNats, state_dir: Path, **values: Any) -> Settings:
    return settings_for(Settings, postgres_dsn, nats.url, state_dir=state_dir, warm=False, **values)


@pytest.fixture
async def service(postgres_dsn: str, fresh_nats: RunningNats, tmp_path: Path) -> AsyncIterator[Served[Settings]]:
    async with serve_in_process(compose, settings(postgres_dsn, fresh_nats, tmp_path)) as served:
        yield served


@pytest.fixture
def stub(service: Served[Settings]) -> ToolExecutorStub:
    return ToolExecutorStub(service.channel)


def execute(call_id: str, tool: str, arguments: object, **more: str) -> pb.ExecuteRequest:
    values = {"agent": "analyst", "workspace_id": "run_1"} | more
    return pb.ExecuteRequest(call_id=call_id, tool=tool, arguments_json=json.dumps(arguments), **values)


async def grant(stub: ToolExecutorStub, tool: str = "*", agent: str = "analyst") -> pb.Grant:
    return await stub.GrantTool(pb.GrantToolRequest(agent=agent, tool=tool))


async def refusal(call: Awaitable[object]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_lists_tools_with_schemas_and_what_the_sandboxes_can_do(stub: ToolExecutorStub) -> None:
    listed = await stub.ListTools(pb.ListToolsRequest())
    assert {"calc", "sql_query", "python_exec", "file_write"} <= {tool.name for tool in listed.tools}
    assert listed.best_level == "L2"
    calc = await stub.GetTool(pb.GetToolRequest(reference="calc@1.0.0"))
    assert json.loads(calc.parameters_json)["additionalProperties"] is False
    assert len(calc.digest) == 64


async def test_calculates_and_answers_the_recorded_result_the_second_time(stub: ToolExecutorStub) -> None:
    await grant(stub)
    first = await stub.Execute(execute("c1", "calc", {"expression": "6 * 7"}))
    assert (first.state, json.loads(first.result_json)["value"]) == (pb.TOOL_CALL_STATE_SUCCEEDED, 42)
    second = await stub.Execute(execute("c1", "calc", {"expression": "6 * 7"}))
    assert (first.replayed, second.replayed) == (False, True)
    assert second.result_json == first.result_json


async def test_queries_an_uploaded_file_with_sql(stub: ToolExecutorStub) -> None:
    await grant(stub, "sql_query")
    await stub.PutFile(pb.PutFileRequest(workspace_id="run_1", path="data/prices.csv", content=PRICES))
    query = {"sql": "select model from prices where usd > 2"}
    answer = await stub.Execute(execute("c1", "sql_query", query))
    assert "large" in answer.result_json, answer
