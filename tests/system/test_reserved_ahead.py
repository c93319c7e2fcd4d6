"""Calls that follow each other closely find reservations made ahead, and every budget comes out as if they had not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from servicekit.errors import from_rpc_error
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod_client import Synod

from .conftest import RunningSystem
from .replicas import LOOK_AGAIN_S, Gateways, gateways
from .rush import events, reservation

pytestmark = pytest.mark.system

PROVIDER, NAME = "simulator", "sim-1"
INPUT_PICO, OUTPUT_PICO = 100_000, 400_000
PICO_PER_NANO = 1_000
OUTPUT_TOKENS = 16
RICH_NANO = 10**12
WAIT_S = 30


@dataclass
class Caller:
    """A run that asks again and again, through each gateway in turn; its budget has its id."""

    synod: Synod
    gateways: Gateways
    run_id: str = field(default_factory=lambda: new_id("run"))
    answers: list[pb.GenerateResponse] = field(default_factory=list)

    @property
    def scope(self) -> ledger_pb.Attribution:
        return ledger_pb.Attribution(run_id=self.run_id)

    @property
    def spent_nano(self) -> int:
        """What the answers say was used, at the price."""
        each = [INPUT_PICO * a.usage.input_tokens + OUTPUT_PICO * a.usage.output_tokens for a in self.answers]
        return sum(pico // PICO_PER_NANO for pico in each)

    async def call(self) -> str:
        """The reservation of a call that was answered; empty for one that was refused."""
        number = len(self.answers)
        texts = ((pb.ROLE_SYSTEM, "answer: " + "word " * OUTPUT_TOKENS), (pb.ROLE_USER, "go"))
        request = pb.GenerateRequest(
            request_id=new_id("req"),
            model=f"{PROVIDER}/{NAME}",
            messages=[pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in texts],
            max_output_tokens=OUTPUT_TOKENS,
            attribution=self.scope,
        )
        try:
            answer = await self.gateways.generate(number % len(self.gateways), request)
        except grpc.aio.AioRpcError as error:
            assert from_rpc_error(error).reason in ("BUDGET_EXHAUSTED", "BUDGET_SUSPENDED")
            return ""
        self.answers.append(answer)
        return answer.reservation_id

    async def nothing_is_pending(self) -> ledger_pb.Budget:
        """The budget, once all that was used is settled and all that was not is back."""
        async with asyncio.timeout(WAIT_S):
            while True:
                budget = await self.synod.budget(self.run_id)
                if not budget.pending:
                    return budget
                await asyncio.sleep(LOOK_AGAIN_S)

    async def ahead(self) -> set[str]:
        """What was reserved ahead for this run."""
        reserved = await events(self.synod, "cost-ledger", self.run_id, "CostReserved")
        return {event["reservation_id"] for event in reserved if event.get("holder")}


@pytest.fixture
async def caller(running: RunningSystem, synod: Synod) -> AsyncIterator[Caller]:
    await synod.set_price(PROVIDER, NAME, INPUT_PICO, OUTPUT_PICO)
    async with gateways(running.system, 2) as replicas:
        yield Caller(synod, replicas)


async def test_what_is_used_is_settled_once_and_what_is_not_comes_back(caller: Caller) -> None:
    await caller.synod.set_budget(caller.run_id, RICH_NANO, scope=caller.scope)

    used = [await caller.call() for _ in range(100)]

    budget, ahead = await caller.nothing_is_pending(), await caller.ahead()
    assert budget.posted == caller.spent_nano > 0
    assert len(set(used)) == len(used)
    assert len(ahead.intersection(used)) > len(used) // 2
    states = {id: (await reservation(caller.synod, id)).state for id in {*ahead, *used}}
    assert {id for id, state in states.items() if state == ledger_pb.RESERVATION_STATE_SETTLED} == set(used)
    assert {states[id] for id in ahead.difference(used)} <= {ledger_pb.RESERVATION_STATE_RELEASED}


async def test_of_a_budget_for_few_nothing_is_reserved_ahead_and_it_is_spent_to_the_end(caller: Caller) -> None:
    await caller.synod.set_budget(caller.run_id, RICH_NANO, scope=caller.scope)
    await caller.call()
    (first,) = await events(caller.synod, "cost-ledger", caller.run_id, "CostReserved")
    afforded = 10
    await caller.nothing_is_pending()
    await caller.synod.set_budget(caller.run_id, afforded * first["amount_nano_usd"], scope=caller.scope)

    while await caller.call() or (await caller.nothing_is_pending() and await caller.call()):
        assert len(caller.answers) < 20 * afforded  # each costs somewhat less than it may

    budget = await caller.nothing_is_pending()
    assert budget.posted == caller.spent_nano <= budget.limit
    assert budget.limit - budget.posted < first["amount_nano_usd"]
    assert await caller.ahead() == set()


async def test_a_suspended_budget_lets_a_few_calls_begin_and_then_none(caller: Caller) -> None:
    await caller.synod.set_budget(caller.run_id, RICH_NANO, scope=caller.scope)
    for _ in range(50):
        await caller.call()

    await caller.synod.suspend_budget(caller.run_id, "a leaked key")
    begun = len(caller.answers)
    async with asyncio.timeout(WAIT_S):
        refused = 0
        while refused < 2 * len(caller.gateways):
            refused = 0 if await caller.call() else refused + 1

    ahead = await caller.ahead()
    assert {answer.reservation_id for answer in caller.answers[begun:]} <= ahead
    budget = await caller.nothing_is_pending()
    assert budget.posted == caller.spent_nano
