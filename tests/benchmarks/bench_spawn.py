"""Agents: how long one takes to create, how fast many are found by capability, and what an idle one costs in memory."""

import asyncio
import json
import tempfile
from pathlib import Path

from agent_registry.main import compose
from agent_registry.settings import Settings
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from harness import Load, Report, Row, Size, nats_server, postgres
from servicekit.testing import serve_in_process, settings_for
from synod.agent_registry.v1 import agent_registry_pb2 as pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub

AGENTS = {"tiny": 10, "small": 300, "full": 10_000}
ASKED = {"tiny": 10, "small": 500, "full": 500}
DEFINITION = """
apiVersion: synod/v1
kind: Agent
metadata: {name: worker}
spec:
  behaviour: chat
  model: {name: simulator/sim-1}
  capabilities: [translate]
  instructions: Help.
"""


async def measure(size: Size) -> Report:
    agents = AGENTS[size]
    async with postgres() as dsn, nats_server() as url:
        with tempfile.TemporaryDirectory(prefix="synod-bench-") as folder:
            key = Ed25519PrivateKey.generate()
            settings = registry_settings(dsn, url, Path(folder), key)
            async with serve_in_process(compose, settings, key=key) as served:
                stub = AgentRegistryStub(served.channel)
                await stub.Define(pb.DefineRequest(yaml=DEFINITION))
                before = resident_kib()
                alone = await timed(ASKED[size] // 5, 1, lambda n: create(stub, f"alone-{n}"))
                many = await timed(agents, 32, lambda n: create(stub, f"many-{n}"))
                after = resident_kib()
                found = await timed(ASKED[size], 1, lambda _: discover(stub))
    rows = (
        Row("create, 1 caller", "latency p50", "ms", alone.percentile_ms(50), 10),
        Row("create, 1 caller", "latency p99", "ms", alone.percentile_ms(99)),
        Row("create, 32 callers", "agents/s", "1/s", many.per_second),
        Row(f"{agents} agents", "memory for each idle agent", "KiB", (after - before) / (agents + ASKED[size] // 5)),
        Row(f"discover among {agents}", "latency p50 over gRPC", "ms", found.percentile_ms(50), 1),
    )
    return Report("spawn", "each agent's creation flushed to disk (fsync on)", rows)


async def create(stub: AgentRegistryStub, name: str) -> None:
    await stub.CreateAgent(pb.CreateAgentRequest(definition="worker", name=name, request_id=name))


async def discover(stub: AgentRegistryStub) -> None:
    found = await stub.DiscoverAgents(pb.DiscoverAgentsRequest(capabilities=["translate"], limit=5))
    assert len(found.agents) == 5


async def timed(calls: int, at_once: int, call) -> Load:  # type: ignore[no-untyped-def]
    load, loop = Load(), asyncio.get_running_loop()
    numbers = iter(range(calls))
    start = loop.time()

    async def caller() -> None:
        for number in numbers:
            begun = loop.time()
            await call(number)
            load.latencies_s.append(loop.time() - begun)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    load.took_s = loop.time() - start
    return load


def resident_kib() -> int:
    """Resident memory of this process, the registry and its caller together."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def registry_settings(dsn: str, nats_url: str, folder: Path, key: Ed25519PrivateKey) -> Settings:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = {"signing.pem": private, "dev.key": b"syn_dev_" + b"a" * 43, "service-keys.json": json.dumps({}).encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return settings_for(
        Settings,
        dsn,
        nats_url,
        signing_key_file=folder / "signing.pem",
        dev_key_file=folder / "dev.key",
        service_keys_file=folder / "service-keys.json",
    )
