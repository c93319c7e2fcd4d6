"""Unmodified clients: reflection as grpcurl uses it, and a bare NATS subscriber."""

import asyncio
import json

import grpc
import nats
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from nats.js.api import DeliverPolicy
from synod_client import Synod

from .definitions import CALCULATOR

pytestmark = pytest.mark.system
SERVICES = ("agent-registry", "agent-runtime", "llm-gateway", "tool-executor", "cost-ledger", "consensus", "ws-gateway")


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_lists_the_services(running, service: str) -> None:  # type: ignore[no-untyped-def]
    package = service.replace("-", "_")
    with grpc.insecure_channel(running.endpoints.address(service)) as channel:
        found = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"grpc.health.v1.Health", "synod.eventlog.v1.EventLog"} <= found
    assert any(name.startswith(f"synod.{package}.v1.") for name in found)


async def test_bare_subscriber_sees_cloud_events_in_order(running, synod: Synod) -> None:  # type: ignore[no-untyped-def]
    await synod.define(CALCULATOR)
    await synod.grant("calculator", "calc")
    run = await synod.wait((await synod.start("calculator", "go")).id)
    head = (await synod.read("agent-runtime", limit=1)).head_position
    client = await nats.connect(running.system.observer_url)
    try:
        subscription = await client.jetstream().subscribe(
            "synod.*.evt.agent-runtime.>", ordered_consumer=True, deliver_policy=DeliverPolicy.ALL
        )
        async with asyncio.timeout(20):
            messages = [await subscription.next_msg(timeout=20) for _ in range(head)]
    finally:
        await client.close()
    assert [message.metadata.sequence.stream for message in messages] == list(range(1, head + 1))
    for message in messages:
        headers = message.headers or {}
        assert headers["ce-specversion"] == "1.0"
        assert headers["ce-source"] == "/synod/agent-runtime"
        assert json.loads(message.data)
    completed = [m for m in messages if m.subject.endswith(f".{run.id}.RunCompleted")]
    assert json.loads(completed[0].data)["result_sha256"] == run.result_sha256
