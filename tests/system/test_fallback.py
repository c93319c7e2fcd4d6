"""A call whose model is away goes on to a dearer one only if the budget covers it: whole services, real prices, a real book."""

import grpc
import pytest
from servicekit.errors import BudgetExhausted, from_rpc_error
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod_client import Synod

from .conftest import RunningSystem
from .replicas import gateways
from .rush import billed, events, reservation, until

pytestmark = pytest.mark.system

PROVIDER, CHEAP, DEAR = "simulator", "sim-404", "sim-1"
"""The cheap one is not there, whoever asks."""
CHEAP_PICO, DEAR_PICO = (1_000, 4_000), (100_000, 400_000)
OUTPUT_TOKENS = 16
LIMIT_NANO = OUTPUT_TOKENS * DEAR_PICO[1] // 1_000 // 2
"""Half of what the dear one may take for its answer alone, and many times what the cheap one may for all."""
RICH_NANO = 10**9


def request_of(run_id: str) -> pb.GenerateRequest:
    texts = ((pb.ROLE_SYSTEM, "answer: here"), (pb.ROLE_USER, run_id))
    return pb.GenerateRequest(
        request_id=new_id("req"),
        model=f"{PROVIDER}/{CHEAP}",
        fallback_models=[f"{PROVIDER}/{DEAR}"],
        messages=[pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in texts],
        max_output_tokens=OUTPUT_TOKENS,
        attribution=ledger_pb.Attribution(run_id=run_id),
    )


async def budgeted(synod: Synod, limit_nano: int) -> str:
    """A run with a budget of its own, by that name."""
    run_id = new_id("run")
    await synod.set_price(PROVIDER, CHEAP, *CHEAP_PICO)
    await synod.set_price(PROVIDER, DEAR, *DEAR_PICO)
    await synod.set_budget(run_id, limit_nano, scope=ledger_pb.Attribution(run_id=run_id))
    return run_id


async def test_group_12_a_fallback_that_is_dearer_than_what_is_left_is_refused_and_not_asked(
    running: RunningSystem, synod: Synod
) -> None:
    run_id = await budgeted(synod, LIMIT_NANO)

    async with gateways(running.system, 1) as replicas:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await replicas.generate(0, request_of(run_id))

    assert isinstance(from_rpc_error(caught.value), BudgetExhausted)
    (denied,) = await events(synod, "cost-ledger", run_id, "ReservationDenied")
    assert (denied["model"], denied["budget_id"]) == (f"{PROVIDER}/{DEAR}", run_id)
    assert denied["required_nano_usd"] > LIMIT_NANO >= denied["available_nano_usd"] > 0
    (failed,) = await events(synod, "llm-gateway", run_id, "ModelCallFailed")
    assert failed["failure"]["reason"] == "BUDGET_EXHAUSTED"
    (started,) = await events(synod, "llm-gateway", run_id, "ModelCallAttemptStarted")
    assert started["model"] == f"{PROVIDER}/{CHEAP}"
    assert await billed(running.system, run_id) == ()
    (reserved,) = await events(synod, "cost-ledger", run_id, "CostReserved")
    assert (reserved["model"], reserved["amount_nano_usd"] < LIMIT_NANO) == (f"{PROVIDER}/{CHEAP}", True)
    await until(synod, "cost-ledger", run_id, "ReservationReleased", 1)
    budget = await synod.budget(run_id)
    assert (budget.posted, budget.pending) == (0, 0)


async def test_group_12_the_same_fallback_is_asked_where_the_budget_covers_it(
    running: RunningSystem, synod: Synod
) -> None:
    run_id = await budgeted(synod, RICH_NANO)

    async with gateways(running.system, 1) as replicas:
        answer = await replicas.generate(0, request_of(run_id))

    assert (answer.model, answer.message.parts[0].text) == (f"{PROVIDER}/{DEAR}", "here")
    held = await reservation(synod, answer.reservation_id)
    assert (held.model, held.reserved_nano_usd > LIMIT_NANO) == (f"{PROVIDER}/{DEAR}", True)
