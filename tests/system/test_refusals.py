"""Wrong input is refused well: each message names the field, the value and what to do."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.agent_runtime.v1.agent_runtime_pb2_grpc import AgentRuntimeStub
from synod_client import Endpoints, InvalidInput, NotAllowed, Synod, TryAgain
from synod_client.errors import from_rpc

from .definitions import CALCULATOR

pytestmark = pytest.mark.system


def changed(**replaced: str) -> str:
    text = CALCULATOR
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text


async def test_unknown_tool_is_named_with_its_neighbours(synod: Synod) -> None:
    with pytest.raises(InvalidInput) as caught:
        await synod.define(changed(calc="clac"))
    assert "clac" in str(caught.value.details) + caught.value.message
    assert "calc" in str(caught.value.details) + caught.value.message


async def test_wrong_type_is_named_with_its_line(synod: Synod) -> None:
    with pytest.raises(InvalidInput) as caught:
        await synod.define(changed(react="dance"))
    text = str(caught.value.details) + caught.value.message
    assert "behaviour" in text
    assert "line" in text


async def test_cycle_is_shown_as_a_path(synod: Synod) -> None:
    team = """
---
apiVersion: synod/v1
kind: Team
metadata: {name: ring}
spec:
  steps:
    - {id: a, agent: calculator, task: go, after: [b]}
    - {id: b, agent: calculator, task: go, after: [a]}
"""
    with pytest.raises(InvalidInput) as caught:
        await synod.define(CALCULATOR + team)
    assert "->" in str(caught.value.details) + caught.value.message


async def test_run_over_budget_ends_before_it_spends(synod: Synod, command) -> None:  # type: ignore[no-untyped-def]
    await synod.define(CALCULATOR)
    await synod.grant("calculator", "calc")
    await synod.set_price("simulator", "sim-1", 100_000, 400_000)
    found = command("run", "calculator", "go", "--budget", "0.000001")
    assert found.returncode == 8
    assert "BUDGET_EXHAUSTED" in found.stderr


async def test_unknown_model_lists_near_ones(synod: Synod) -> None:
    await synod.define(changed(calculator="lost-agent", **{"simulator/sim-1": "simulator/sim-l"}))
    run = await synod.wait((await synod.start("lost-agent", "go")).id)
    assert run.failure.reason == "UNKNOWN_MODEL"
    assert "simulator/sim-1" in run.failure.message


async def test_malformed_frame_is_answered_and_the_connection_lives(running) -> None:  # type: ignore[no-untyped-def]
    headers = {"Authorization": f"Bearer {running.system.dev_key}"}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{running.endpoints.edge}/ws", headers=headers) as ws,
    ):
        await ws.send_str("{not json")
        async with asyncio.timeout(10):
            while (frame := await ws.receive_json()).get("type") != "system_error":
                continue
            assert "JSON" in json.dumps(frame)
            await ws.send_json({"type": "ping", "id": "1"})
            while (await ws.receive_json()).get("type") != "pong":
                continue


async def test_expired_key_says_when_and_what_to_do(running, synod: Synod) -> None:  # type: ignore[no-untyped-def]
    registry = AgentRegistryStub(synod.connection.channel("agent-registry"))
    principal = (await synod.connection.call(registry.ListPrincipals, registry_pb.ListPrincipalsRequest())).principals[
        0
    ]
    key = await short_lived_key(synod, principal.id)
    endpoints = running.endpoints
    with pytest.raises(NotAllowed) as caught:
        async with asyncio.timeout(60):
            while True:
                stale = Endpoints(endpoints.services, endpoints.nats, endpoints.edge, key.secret)
                async with Synod.connect(stale) as connected:
                    await connected.connection.metadata()
    assert caught.value.reason == "KEY_EXPIRED"
    assert "expired" in caught.value.message


async def short_lived_key(synod: Synod, principal_id: str) -> registry_pb.CreateApiKeyResponse:
    """A key that expires as soon as this machine allows: one that has expired on the way is refused."""
    registry = AgentRegistryStub(synod.connection.channel("agent-registry"))
    for life_s in (1, 5, 30):
        expires = Timestamp()
        expires.FromDatetime(datetime.now(UTC) + timedelta(seconds=life_s))
        request = registry_pb.CreateApiKeyRequest(
            principal_id=principal_id, label="short", expires_at=expires, request_id=f"short {life_s}"
        )
        try:
            return await synod.connection.call(registry.CreateApiKey, request)
        except InvalidInput as refused:
            late = refused
    raise late


async def test_request_past_its_deadline_is_refused_as_such(synod: Synod) -> None:
    runtime = AgentRuntimeStub(synod.connection.channel("agent-runtime"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await runtime.ListRuns(
            runtime_pb.ListRunsRequest(), timeout=0.000001, metadata=await synod.connection.metadata()
        )
    error = from_rpc(caught.value)
    assert isinstance(error, TryAgain)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_command_explains_a_bad_file(command, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "bad.yaml"
    path.write_text("apiVersion: synod/v1\nkind: Agent\nmetadata: {name: x}\nspec: {behaviour: react}\n")
    found = command("define", str(path))
    assert found.returncode == 3
    assert "instructions" in found.stderr
    assert "model" in found.stderr
