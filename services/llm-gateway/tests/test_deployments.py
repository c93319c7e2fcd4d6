"""Calls over several deployments of one model: two simulators as two endpoints under two keys, through a whole service."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from launcher.testing import RunningNats
from llm_gateway.main import compose
from llm_gateway.settings import Settings
from provider_simulator.faults import Fault
from provider_simulator.quota import QuotaTerms
from provider_simulator.testing import RunningSimulator, running_simulator
from servicekit.errors import FailedPrecondition, from_rpc_error
from servicekit.testing import Served, serve_in_process, settings_for
from synod.common.subjects import SHARED_TENANT
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerServicer, add_CostLedgerServicer_to_server
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub

WAIT_S = 20
KEYS = {"eu": "sk-eu-0123456789abcdef", "us": "sk-us-0123456789abcdef"}


class Ledger(CostLedgerServicer):
    """Grants all."""

    async def Reserve(self, request, context):  # type: ignore[no-untyped-def]
        return ledger_pb.Reservation(reservation_id=request.reservation_id, state=ledger_pb.RESERVATION_STATE_HELD)


class Farm:
    """A gateway before two simulators. `request_id`s are given in order."""

    def __init__(self, served: Served[Settings], simulators: dict[str, RunningSimulator], directory: Path) -> None:
        self.stub = LlmGatewayStub(served.channel)
        self.log = EventLogStub(served.channel)
        self.shared_log = EventLogStub(served.connect(served.token(tenant=SHARED_TENANT)))
        self.simulators = simulators
        self.directory = directory
        self.calls = 0

    async def ask(self, **more: object) -> pb.GenerateResponse:
        self.calls += 1
        message = pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=f"Hello {self.calls}")])
        values = {"request_id": f"req_{self.calls}", "model": "pool/sim-1", "messages": [message], **more}
        answer: pb.GenerateResponse = await self.stub.Generate(pb.GenerateRequest(**values), timeout=WAIT_S)  # type: ignore[arg-type]
        return answer

    async def events(self, type: str) -> list[dict[str, object]]:
        page = await self.log.Read(log_pb.ReadRequest(page_size=100))
        return [json.loads(event.data) for event in page.events if event.type == type]

    async def told(self, type: str) -> dict[str, object]:
        """The first event of this type about the gateway itself, as soon as there is one."""
        async with asyncio.timeout(WAIT_S):
            while True:
                page = await self.shared_log.Read(log_pb.ReadRequest(page_size=100))
                for event in page.events:
                    if event.type == type:
                        told: dict[str, object] = json.loads(event.data)
                        return told
                await asyncio.sleep(0.02)

    async def deployments(self, *, check: bool = False) -> dict[str, pb.Deployment]:
        request = pb.ListDeploymentsRequest(provider="pool", check=check)
        return {one.name: one for one in (await self.stub.ListDeployments(request)).deployments}

    def asked(self) -> dict[str, int]:
        return {name: one.usage.total().requests for name, one in self.simulators.items()}


def write_roster(directory: Path, simulators: dict[str, RunningSimulator]) -> Path:
    deployments = []
    for name, simulator in simulators.items():
        key_file = directory / f"{name}.key"
        key_file.write_text(KEYS[name])
        deployments.append(
            {
                "name": name,
                "provider": "pool",
                "dialect": "openai-chat",
                "region": name,
                "base_url": simulator.openai_base_url,
                "key_file": str(key_file),
            }
        )
    models = [{"id": "pool/sim-1", "input_usd_per_million": "1", "output_usd_per_million": "2"}]
    file = directory / "roster.json"
    file.write_text(json.dumps({"deployments": deployments, "models": models}))
    return file


@pytest.fixture
async def farm(postgres_dsn: str, fresh_nats: RunningNats, tmp_path: Path) -> AsyncIterator[Farm]:
    async with AsyncExitStack() as stack:
        simulators = {name: await stack.enter_async_context(running_simulator()) for name in KEYS}
        ledger = grpc.aio.server()
        add_CostLedgerServicer_to_server(Ledger(), ledger)
        address = f"127.0.0.1:{ledger.add_insecure_port('127.0.0.1:0')}"
        await ledger.start()
        stack.push_async_callback(ledger.stop, 0)
        settings = settings_for(
            Settings,
            postgres_dsn,
            fresh_nats.url,
            peers={"cost-ledger": address, "agent-registry": address},
            openai_api_key=None,
            anthropic_api_key=None,
            gemini_api_key=None,
            ollama_host="",
            roster_file=write_roster(tmp_path, simulators),
            roster_look_s=0.05,
            balancing="order",
        )
        served = await stack.enter_async_context(serve_in_process(compose, settings))
        yield Farm(served, simulators, tmp_path)


async def test_group_09_a_429_closes_one_key_and_the_other_answers_at_once(farm: Farm) -> None:
    farm.simulators["eu"].faults.plan(Fault(status=429, retry_after="60"))

    answers = [await farm.ask(), await farm.ask()]

    assert [answer.reservation_id.rpartition(":")[2] for answer in answers] == ["2", "1"]
    assert farm.asked() == {"eu": 1, "us": 2}
    started = await farm.events("ModelCallAttemptStarted")
    assert [event["deployment"] for event in started] == ["eu", "us", "us"]
    assert [event["region"] for event in started] == ["eu", "us", "us"]
    limited = (await farm.deployments())["eu"].called[0]
    assert (limited.model, limited.circuit) == ("pool/sim-1", "closed")
    assert 50 < limited.closed_s <= 60


async def test_group_11_a_deployment_that_fails_is_left_alone_and_the_log_says_when(farm: Farm) -> None:
    farm.simulators["eu"].faults.plan(Fault(status=500), requests=5)
    for _ in range(6):
        await farm.ask()
    assert farm.asked() == {"eu": 5, "us": 6}
    opened = await farm.told("CircuitOpened")
    assert (opened["model"], opened["deployment"], opened["open_ms"]) == ("pool/sim-1", "eu", 5000)


async def test_a_limit_that_its_provider_tells_is_kept_without_being_refused(farm: Farm) -> None:
    farm.simulators["eu"].quotas.set(QuotaTerms(requests_per_min=3))
    for _ in range(5):
        await farm.ask()
    assert farm.asked() == {"eu": 3, "us": 2}
    assert farm.simulators["eu"].usage.total().failed == 0
    adjusted = await farm.told("RateLimitAdjusted")
    assert (adjusted["meter"], adjusted["from_per_min"], adjusted["remaining"]) == ("requests", 3, 0)


async def test_a_policy_chooses_and_the_event_says_why(farm: Farm) -> None:
    routing = pb.RoutingPolicy(regions=["us"], required_capabilities=["tools"], max_cost_nano_usd=10_000_000)
    await farm.ask(routing=routing)

    assert farm.asked() == {"eu": 0, "us": 1}
    (started,) = await farm.events("ModelCallAttemptStarted")
    assert started["accepted"]["considered"] == [
        {"model": "pool/sim-1", "deployment": "eu", "verdict": "is in region eu"},
        {"model": "pool/sim-1", "deployment": "us", "verdict": "eligible"},
    ]
    for impossible in (pb.RoutingPolicy(max_cost_nano_usd=1), pb.RoutingPolicy(regions=["moon"])):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await farm.ask(routing=impossible)
        error = from_rpc_error(caught.value)
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "NO_ELIGIBLE_MODEL"
    assert (await farm.ask(model="auto", routing=pb.RoutingPolicy(cheapest=True))).model == "pool/sim-1"


async def test_a_key_is_rotated_without_a_restart_and_checked_for_free(farm: Farm) -> None:
    before = await farm.deployments(check=True)
    assert {name: one.key_state for name, one in before.items()} == dict.fromkeys(KEYS, pb.KEY_STATE_WORKS)

    (farm.directory / "eu.key").write_text("sk-rotated-revoked")
    async with asyncio.timeout(WAIT_S):
        while (await farm.deployments())["eu"].key_id == before["eu"].key_id:  # noqa: ASYNC110 - files offer no event
            await asyncio.sleep(0.02)

    checked = await farm.deployments(check=True)
    assert (checked["eu"].key_state, checked["us"].key_state) == (pb.KEY_STATE_REFUSED, pb.KEY_STATE_WORKS)
    assert "status 401" in checked["eu"].problem
    assert "sk-rotated" not in str(checked)
    assert (await farm.ask()).reservation_id.endswith(":2")
    assert farm.asked() == {"eu": 1, "us": 1}


async def test_a_roster_that_is_wrong_leaves_the_one_before_in_force(
    farm: Farm, caplog: pytest.LogCaptureFixture
) -> None:
    (farm.directory / "roster.json").write_text("{")
    async with asyncio.timeout(WAIT_S):
        while "roster_invalid" not in caplog.text:  # noqa: ASYNC110 - files offer no event
            await asyncio.sleep(0.02)
    assert (await farm.ask()).model == "pool/sim-1"


async def test_no_key_is_in_any_event_or_log_after_calls_that_fail_in_every_way(
    farm: Farm, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    quoted = Fault(status=401, message=f"Incorrect API key provided: {KEYS['eu']}")
    for fault in (quoted, Fault(status=400, message=f"bad {KEYS['eu']}"), Fault(status=500, raw_body=KEYS["eu"])):
        farm.simulators["eu"].faults.plan(fault)
        try:
            await farm.ask()
        except grpc.aio.AioRpcError as error:
            assert KEYS["eu"] not in str(error.details())
    await farm.deployments(check=True)

    page = await farm.log.Read(log_pb.ReadRequest(page_size=100))
    recorded = b"\n".join(event.data for event in page.events)
    printed = capfd.readouterr()
    logged = [str(record.__dict__) for record in caplog.records]
    assert len(page.events) > 5
    assert "model_call_attempt_failed" in caplog.text
    for key in KEYS.values():
        assert key.encode() not in recorded
        assert key not in printed.err + printed.out + "".join(logged)
