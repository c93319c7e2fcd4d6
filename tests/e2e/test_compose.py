"""The system in containers does what it does on one machine, also while a part of it dies."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launcher.figures import measured, table
from launcher.layout import EDGE, EDGE_OFFSET, MODELS_OFFSET, NATS_OFFSET, SERVICES, Layout
from launcher.programs import needed
from openai import AsyncOpenAI, AuthenticationError, Omit
from openai.types.chat import ChatCompletionMessageParam
from synod.agent_registry.v1.agent_registry_pb2 import (
    PRINCIPAL_KIND_USER,
    CreatePrincipalRequest,
    ListPrincipalsRequest,
)
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.cost_ledger.v1.cost_ledger_pb2 import SetBudgetRequest
from synod_client import Synod

from .conftest import PROJECT, ROOT, Containers, engine
from .definitions import WAIT_S, assert_tools_ran_once, finished, prepared, seen
from .disks import where_it_is_readable
from .inflight import IN_FLIGHT
from .reach import BEYOND, LISTENING, connects, machine_addresses, machine_listening, probe

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]
STOP_S = 10
README = (ROOT / "deploy/README.md").read_text()
PYTHON = (*(service.name for service in SERVICES), "provider-simulator")
"""The containers that can run a probe."""
AT_ONCE = 3
SERVERS = {"postgres": 999, "nats": 10001}
"""Their users."""
WORKSPACES = "/var/lib/synod"
ARCHIVE = "/var/lib/synod-archive"
ARCHIVED = (
    "python",
    "-m",
    "eventlog",
    "archive",
    "@/run/secrets/postgres.dsn",
    ARCHIVE,
    "--keep",
    "5",
    "--segment",
    "20",
)


def test_the_demo_proves_itself(containers: Containers, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "synod"
    command = [str(program), "demo", "--running", "--data", str(containers.secrets), "--out", str(tmp_path)]
    environment = {"SYNOD_PORT_BASE": str(containers.port_base), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S * 2, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    outcome = json.loads((tmp_path / "demo.json").read_text())
    assert (outcome["state"], outcome["replay_equal"]) == ("completed", True)
    assert (outcome["views_equal"], outcome["logs_verified"]) == (True, True)


each_edge = pytest.mark.parametrize("edge", ["edge", "models"])
"""That of ws-gateway, and that of llm-gateway itself."""
SAID: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "answer: 4"},
    {"role": "user", "content": "2 + 2?"},
]


@each_edge
async def test_an_unmodified_sdk_is_served_at_a_published_edge(containers: Containers, synod: Synod, edge: str) -> None:
    budget = f"nightly-{edge}"
    # By name: the image of cost-ledger has to know the time zones of the world.
    await synod.put_budget(
        SetBudgetRequest(budget_id=budget, limit_nano_usd=10**9, hard=False, window="day", time_zone="Europe/Warsaw")
    )
    async with sdk(containers, edge, containers.endpoints.required_key()) as client:
        answered = await client.chat.completions.create(model="simulator/sim-1", messages=SAID)
        assert "simulator/sim-1" in {model.id async for model in client.models.list()}
    assert answered.choices[0].message.content == "4"
    nightly = await synod.budget(budget)
    assert nightly.posted_nano_usd + nightly.pending_nano_usd > 0


@each_edge
@pytest.mark.parametrize("headers", [{"Authorization": Omit()}, {}], ids=["no key", "a key of nobody"])
async def test_nobody_is_served_without_a_key_at_a_published_edge(
    containers: Containers, edge: str, headers: dict[str, str | Omit]
) -> None:
    async with sdk(containers, edge, "syn_of_nobody") as client:
        with pytest.raises(AuthenticationError) as refused:
            await client.chat.completions.create(model="simulator/sim-1", messages=SAID, extra_headers=headers)
    assert refused.value.status_code == 401


def sdk(containers: Containers, edge: str, api_key: str) -> AsyncOpenAI:
    return AsyncOpenAI(api_key=api_key, base_url=f"{getattr(containers.endpoints, edge)}/v1", max_retries=0)


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


@pytest.mark.parametrize("name", PYTHON)
def test_a_container_reaches_whom_it_calls_and_who_calls_it_and_nobody_else(containers: Containers, name: str) -> None:
    """Under no address that any container has in any network."""
    owners = {address: other for address, other in containers.all_addresses().items() if other in LISTENING}
    tried = [f"{address}:{LISTENING[other]}" for address, other in owners.items()]
    found = containers.run(name, *probe(tried)).split()
    assert {owners[address.partition(":")[0]] for address in found} - {name} == those_that_may_meet(name)


def test_no_container_of_the_inside_reaches_this_machine_or_what_is_beyond(containers: Containers) -> None:
    """As compose.yaml alone has them, without the networks that publish more ports for development."""
    with machine_listening() as port, ThreadPoolExecutor(AT_ONCE) as pool:
        machine, beyond = {f"{address}:{port}" for address in machine_addresses()}, f"{BEYOND}:443"
        command = probe([*machine, beyond])
        found = pool.map(lambda name: set(containers.run_closed(name, *command).split()), PYTHON)
        reached = dict(zip(PYTHON, found, strict=True))
    assert {name for name, addresses in reached.items() if addresses & machine} == {"llm-gateway", EDGE}
    assert {name for name, addresses in reached.items() if beyond in addresses} <= {"llm-gateway"}


def test_only_the_ports_that_are_published_answer_and_on_loopback_only(containers: Containers) -> None:
    numbers = (*(service.number for service in SERVICES), NATS_OFFSET, EDGE_OFFSET, MODELS_OFFSET)
    ports = {containers.port_base + number for number in numbers}
    assert containers.published() == {("127.0.0.1", port) for port in ports}
    assert {port for port in ports if connects("127.0.0.1", port)} == ports
    assert [(address, port) for address in machine_addresses() for port in ports if connects(address, port)] == []


def those_that_may_meet(name: str) -> set[str]:
    callees = {service.name: {other.name for other in needed(Layout(Path()), service)} for service in SERVICES}
    for service in SERVICES:
        callees[service.name] |= {"postgres", "nats"}
    callees["llm-gateway"] |= {"provider-simulator"}
    return callees.get(name, set()) | {caller for caller, others in callees.items() if name in others}


@pytest.mark.parametrize("name", [*(service.name for service in SERVICES), *SERVERS])
def test_a_program_has_no_power_over_its_container(containers: Containers, name: str) -> None:
    status = containers.run(name, "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split() == [str(SERVERS.get(name, 10001))] * 4
    assert (int(fields["CapEff"], 16), int(fields["CapBnd"], 16)) == (0, 0)
    assert fields["NoNewPrivs"].strip() == "1"
    mounts = [line.split() for line in containers.run(name, "cat", "/proc/mounts").splitlines()]
    assert "ro" in next(options for _, place, _, options, *_ in mounts if place == "/").split(",")


def test_what_each_container_costs_is_told(containers: Containers) -> None:
    found = measured(PROJECT)
    assert set(found) == set(LISTENING)
    assert [name for name, figures in found.items() if None in astuple(figures)] == []
    sys.stdout.write(table(found))


def test_a_permission_that_somebody_widens_in_a_running_server_is_reported(containers: Containers) -> None:
    """Also once its file says again what it should."""
    file = containers.folder / "deploy/nats/nats.conf"
    made = file.read_text()
    assert drift_of_nats(containers) == (0, 0)
    file.write_text(made.replace('"synod.*.evt.consensus.>"', '"synod.*.evt.>"'))
    assert drift_of_nats(containers) == (1, 1)
    have_nats_read(containers)
    assert drift_of_nats(containers) == (1, 0)
    file.write_text(made)
    assert drift_of_nats(containers) == (0, 1)
    have_nats_read(containers)
    assert drift_of_nats(containers) == (0, 0)


def have_nats_read(containers: Containers) -> None:
    """Its configuration, which it does some time after it was told to."""
    containers.compose("kill", "-s", "HUP", "nats")
    end = time.monotonic() + WAIT_S
    while drift_of_nats(containers)[1]:
        assert time.monotonic() < end


def drift_of_nats(containers: Containers) -> tuple[int, int]:
    """The exit codes of what `make compose-check` asks about the configuration, and about what the server runs of it."""
    (nats,) = containers.ids("nats")
    says = containers.run("nats", "cat", "/etc/nats/synod.conf")
    checks = [sys.executable, "-m", "launcher.containers", "check"], ["docker", "exec", "-i", nats, "sh"]
    given = says, (ROOT / "deploy/nats/check.sh").read_text()
    done = [
        subprocess.run(command, input=text, text=True, capture_output=True, timeout=60, check=False)
        for command, text in zip(checks, given, strict=True)
    ]
    return done[0].returncode, done[1].returncode


@pytest.mark.parametrize("service", [service.name for service in SERVICES])
async def test_a_service_that_is_told_to_stop_does_so_in_time_and_loses_no_call(
    containers: Containers, synod: Synod, service: str
) -> None:
    async with IN_FLIGHT[service](containers, synod):
        code, took_s = await asyncio.to_thread(containers.restart, service)
    sys.stdout.write(f"{service} stopped in {took_s:.1f} s\n")
    assert (code, took_s < STOP_S) == (0, True), took_s


async def test_a_backup_as_the_readme_says_restores_what_was_wholly_destroyed(
    containers: Containers, synod: Synod
) -> None:
    back_up, restore, _look = commands_of("Back up, restore")
    await prepared(synod)
    run = await finished(synod, (await synod.start("porters", "the load")).id)
    assert "1 to 20: " in await asyncio.to_thread(containers.run, "agent-runtime", *ARCHIVED)
    await asyncio.to_thread(containers.run, "tool-executor", "sh", "-c", f"echo the load > {WORKSPACES}/kept")
    before = {service: await synod.verify_log(service) for service in synod.services}
    async with IN_FLIGHT["cost-ledger"](containers, synod):
        await asyncio.to_thread(containers.follow, back_up)

    await asyncio.to_thread(containers.down)
    assert containers.volumes() == []
    shutil.rmtree(containers.secrets)
    await asyncio.to_thread(containers.follow, restore)
    await asyncio.to_thread(containers.up)

    async with Synod.connect(containers.endpoints) as restored:
        for service, log in before.items():
            found = await restored.verify_log(service)
            assert found.ok
            assert found.events >= log.events
        assert (await restored.run(run.id)).result_sha256 == run.result_sha256
        again = await finished(restored, (await restored.start("porters", "the load")).id)
        assert again.result_sha256 == run.result_sha256
    assert await asyncio.to_thread(containers.run, "tool-executor", "cat", f"{WORKSPACES}/kept") == "the load\n"


def commands_of(heading: str) -> list[str]:
    """The blocks of commands under a heading of deploy/README.md."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


async def test_keys_of_a_log_are_rotated_and_what_the_old_ones_did_still_holds(
    containers: Containers, synod: Synod
) -> None:
    registry = AgentRegistryStub(synod.connection.channel("agent-registry"))
    ada = CreatePrincipalRequest(name="Ada Byron", kind=PRINCIPAL_KIND_USER, roles=["viewer"], request_id="ada")
    await synod.connection.call(registry.CreatePrincipal, ada)
    before = await synod.verify_log("agent-registry")
    keys = containers.secrets / "keys"
    (keys / "agent-registry.checkpoint.pub.pem").rename(keys / "agent-registry.checkpoint.former.pub.pem")
    (keys / "agent-registry.checkpoint.pem").unlink()
    (keys / "agent-registry.master.key").rename(keys / "agent-registry.master.former.key")
    assert sum(await asyncio.to_thread(rewrapped_at_a_restart, containers, "agent-registry")) > 0
    (keys / "agent-registry.master.former.key").unlink()
    assert await asyncio.to_thread(rewrapped_at_a_restart, containers, "agent-registry") == []
    # The former client may still wait before it connects to what was away twice.
    async with Synod.connect(containers.endpoints) as anew:
        after = await anew.verify_log("agent-registry")
        assert (before.ok, after.ok) == (True, True)
        # Views keep names in the clear; made anew from the log, they need the keys.
        for view in await anew.views("agent-registry"):
            await anew.rebuild_view("agent-registry", view.name)
        assert "Ada Byron" in await principals(anew)


async def principals(synod: Synod) -> set[str]:
    """The names of all, of whom other tests make many."""
    registry = AgentRegistryStub(synod.connection.channel("agent-registry"))
    names: set[str] = set()
    request = ListPrincipalsRequest(page_size=100)
    while True:
        page = await synod.connection.call(registry.ListPrincipals, request)
        names |= {principal.name for principal in page.principals}
        if not page.next_page_token:
            return names
        request.page_token = page.next_page_token


def rewrapped_at_a_restart(containers: Containers, service: str) -> list[int]:
    """How many keys of each kind the service says it wrapped anew when it was started again with its keys of now."""
    containers.make_secrets()
    begin = datetime.now(UTC).isoformat()
    containers.compose("restart", service)
    containers.wait_ready(service)
    logged = engine("logs", "--since", begin, containers.ids(service)[0]).splitlines()
    return [json.loads(line)["keys"] for line in logged if '"keys_rewrapped"' in line]


async def test_without_encryption_at_rest_payloads_are_readable_on_disk(containers: Containers) -> None:
    assert await where_it_is_readable(containers) == {"log", "streams"}
