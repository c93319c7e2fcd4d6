"""The system in containers does what it does on one machine, also while a part of it dies."""

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import pytest
from launcher.layout import SERVICES
from openai import AsyncOpenAI
from synod.agent_runtime.v1.agent_runtime_pb2 import RUN_STATE_COMPLETED, Run
from synod.cost_ledger.v1.cost_ledger_pb2 import SetBudgetRequest
from synod.eventlog.v1.eventlog_pb2 import EventFilter
from synod_client import Synod

from .conftest import ROOT, Containers

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
WAIT_S = 180
STOP_S = 10
BACKUP = (
    "PGPASSWORD=$(cat /run/secrets/postgres.password) exec pg_basebackup --host=/var/run/postgresql "
    "--username=postgres --checkpoint=fast --wal-method=fetch --format=tar --pgdata=-"
)
RESTORE = 'umask 077 && mkdir -p "${PGDATA:=/var/lib/postgresql/18/docker}" && exec tar --extract --directory="$PGDATA"'
SAID = "The password of the vault is xyzzy."
KEEPER = f"""
apiVersion: synod/v1
kind: Agent
metadata: {{name: keeper}}
spec: {{behaviour: chat, model: {{name: simulator/sim-1}}, instructions: {SAID}}}
"""
IN_STREAMS = 'grep -rlF "$0" /data || true'
IN_LOG = (
    "PGPASSWORD=$(cat /run/secrets/postgres.password) exec psql --host=/var/run/postgresql --username=postgres "
    "--dbname=agent_registry --tuples-only --no-align --command="
    "\"select 1 from eventlog.events where position(convert_to('$0', 'UTF8') in data) > 0\""
)
REACH = """
import socket, sys
def reached(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        return False
    return True
print(" ".join(address for address in sys.argv[1:] if reached(address)))
"""
WORKER = """
apiVersion: synod/v1
kind: Agent
metadata: {name: porter}
spec:
  behaviour: react
  model: {name: simulator/sim-1}
  tools: [calc, python_exec]
  instructions: |
    1. call calc with {"expression": "2 ** 10"}
    2. call python_exec with {"code": "import time\\ntime.sleep(0.4)\\nresult = sum(range(1000))"}
    3. call calc with {"expression": "{{1.value}} + {{2.value}}"}
    answer: {"total": {{3.value}}}
---
apiVersion: synod/v1
kind: Team
metadata: {name: porters}
spec:
  pattern: parallel
  steps:
    - {id: left, agent: porter, task: "left {{input}}"}
    - {id: right, agent: porter, task: "right {{input}}"}
  aggregator: {id: sum, agent: porter, task: "{{steps.left.output}} and {{steps.right.output}}"}
"""


def test_the_demo_proves_itself(containers: Containers, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "synod"
    command = [program, "demo", "--running", "--data", str(containers.secrets), "--out", str(tmp_path)]
    environment = {"SYNOD_PORT_BASE": str(containers.port_base), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S * 2, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcome = json.loads((tmp_path / "demo.json").read_text())
    assert (outcome["state"], outcome["replay_equal"]) == ("completed", True)
    assert (outcome["views_equal"], outcome["logs_verified"]) == (True, True)


async def test_an_unmodified_sdk_is_served_at_the_published_edge(containers: Containers, synod: Synod) -> None:
    # By name: the image of cost-ledger has to know the time zones of the world.
    await synod.put_budget(
        SetBudgetRequest(budget_id="nightly", limit_nano_usd=10**9, hard=False, window="day", time_zone="Europe/Warsaw")
    )
    ends, said = (
        containers.endpoints,
        [{"role": "system", "content": "answer: 4"}, {"role": "user", "content": "2 + 2?"}],
    )
    async with AsyncOpenAI(api_key=ends.api_key, base_url=f"{ends.edge}/v1") as client:
        answered = await client.chat.completions.create(model="simulator/sim-1", messages=said)
    assert answered.choices[0].message.content == "4"
    nightly = await synod.budget("nightly")
    assert nightly.posted_nano_usd + nightly.pending_nano_usd > 0


@pytest.mark.parametrize("victim", ["agent-runtime", "tool-executor", "llm-gateway", "cost-ledger", "nats", "postgres"])
async def test_a_container_that_dies_in_the_middle_changes_nothing(
    containers: Containers, synod: Synod, victim: str
) -> None:
    await prepared(synod)
    undisturbed = await finished(synod, (await synod.start("porters", "the load")).id)
    started = await synod.start("porters", "the load")
    await seen(synod, started.id, "ToolCallIntended")
    await asyncio.to_thread(containers.crash, victim)
    await asyncio.to_thread(containers.start, victim)
    for service in SERVICES:
        await asyncio.to_thread(containers.wait_ready, service.name)
    disturbed = await finished(synod, started.id)
    assert disturbed.result_sha256 == undisturbed.result_sha256
    await assert_tools_ran_once(synod, started.id)
    assert (await synod.replay(started.id)).equal
    assert all([(await synod.verify_log(service)).ok for service in synod.services])


async def prepared(synod: Synod) -> None:
    await synod.define(WORKER)
    for tool in ("calc", "python_exec"):
        await synod.grant("porter", tool)
    await synod.set_price("simulator", "sim-1", 100_000, 400_000)


async def seen(synod: Synod, run_id: str, type: str) -> None:
    async with asyncio.timeout(WAIT_S):
        async for update in synod.watch(run_id):
            if update.type == type:
                return


async def finished(synod: Synod, run_id: str) -> Run:
    async with asyncio.timeout(WAIT_S):
        run = await synod.wait(run_id)
    assert run.state == RUN_STATE_COMPLETED, run.failure
    return run


async def assert_tools_ran_once(synod: Synod, run_id: str) -> None:
    where = EventFilter(types=("ToolCallCompleted",), correlation_id=run_id)
    page = await synod.read("tool-executor", limit=1000, where=where)
    outcomes = Counter(json.loads(event.data)["call_id"] for event in page.events)
    assert len(outcomes) == 9
    assert set(outcomes.values()) == {1}


def test_tool_executor_reaches_only_what_it_needs(containers: Containers) -> None:
    services = [f"{service.name}:{7100 + service.number}" for service in SERVICES]
    tried = [*services, "postgres:5432", "nats:4222", "provider-simulator:7199"]
    found = containers.run("tool-executor", "python", "-c", REACH, *tried).split()
    hosts = {address.partition(":")[0] for address in found}
    assert hosts == {"tool-executor", "agent-registry", "agent-runtime", "ws-gateway", "postgres", "nats"}


@pytest.mark.parametrize("name", [*(service.name for service in SERVICES), "nats"])
def test_a_program_has_no_power_over_its_container(containers: Containers, name: str) -> None:
    status = containers.run(name, "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["10001"] * 4
    assert (int(fields["CapEff"], 16), int(fields["CapBnd"], 16)) == (0, 0)
    assert fields["NoNewPrivs"].strip() == "1"
    mounts = [line.split() for line in containers.run(name, "cat", "/proc/mounts").splitlines()]
    assert "ro" in next(options for _, place, _, options, *_ in mounts if place == "/").split(",")


@pytest.mark.parametrize("service", [service.name for service in SERVICES])
def test_a_service_stops_in_time_when_asked(containers: Containers, service: str) -> None:
    container = containers.compose("ps", "-q", service).decode().strip()
    begin = time.monotonic()
    containers.compose("stop", service)
    took_s = time.monotonic() - begin
    state = subprocess.run(
        ["docker", "inspect", "--format", "{{.State.ExitCode}}", container], capture_output=True, text=True, check=True
    )
    containers.start(service)
    containers.wait_ready(service)
    assert state.stdout.strip() == "0"
    assert took_s < STOP_S


async def test_a_backup_restores_the_system_after_everything_was_destroyed(
    containers: Containers, synod: Synod
) -> None:
    await prepared(synod)
    run = await finished(synod, (await synod.start("porters", "the load")).id)
    backup = await asyncio.to_thread(containers.compose, "exec", "-T", "postgres", "sh", "-c", BACKUP)
    before = {service: await synod.verify_log(service) for service in synod.services}

    await asyncio.to_thread(containers.down)
    restore = ("run", "--rm", "--no-deps", "-T", "--entrypoint", "sh", "postgres", "-c", RESTORE)
    await asyncio.to_thread(lambda: containers.compose(*restore, stdin=backup))
    await asyncio.to_thread(containers.up)

    async with Synod.connect(containers.endpoints) as restored:
        for service, log in before.items():
            found = await restored.verify_log(service)
            assert found.ok
            assert found.events >= log.events
        assert (await restored.run(run.id)).result_sha256 == run.result_sha256
        again = await finished(restored, (await restored.start("porters", "the load")).id)
        assert again.result_sha256 == run.result_sha256


async def test_encryption_at_rest_leaves_no_payload_readable_on_disk(containers: Containers, tmp_path: Path) -> None:
    assert await where_it_is_readable(containers) == {"log", "streams"}
    await asyncio.to_thread(containers.down)
    encrypting = Containers.installed(containers.port_base, tmp_path, encrypt_at_rest=True)
    try:
        await asyncio.to_thread(encrypting.up)
        assert await where_it_is_readable(encrypting) == set()
    finally:
        await asyncio.to_thread(encrypting.down)
        await asyncio.to_thread(containers.up)


async def where_it_is_readable(containers: Containers) -> set[str]:
    """Has something said, waits until it is in the log and its stream, and looks at the bytes of both."""
    async with Synod.connect(containers.endpoints) as synod:
        await synod.define(KEEPER)
        async with asyncio.timeout(WAIT_S), aclosing(synod.follow("agent-registry")) as events:
            async for event in events:
                if SAID.encode() in event.data:
                    break
    found = {
        "log": await asyncio.to_thread(containers.run, "postgres", "sh", "-c", IN_LOG, SAID),
        "streams": await asyncio.to_thread(containers.run, "nats", "sh", "-c", IN_STREAMS, SAID),
    }
    return {place for place, printed in found.items() if printed.strip()}
