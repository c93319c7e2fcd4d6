"""The tags of a run are on all that it costs, from the order to the ledger."""

import asyncio

import pytest
from synod.agent_runtime.v1.agent_runtime_pb2 import RUN_STATE_COMPLETED
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod_client import Synod

from .definitions import CALCULATOR

pytestmark = pytest.mark.system
SETTLED_S = 10


async def test_the_cost_of_a_tagged_run_is_in_the_group_of_its_tag(synod: Synod) -> None:
    await synod.define(CALCULATOR)
    await synod.grant("calculator", "calc")
    await synod.set_price("simulator", "sim-1", 100_000, 400_000)
    started = await synod.start("calculator", "go", tags={"team": "figures"})
    run = await synod.wait(started.id)
    assert (run.state, dict(run.tags)) == (RUN_STATE_COMPLETED, {"team": "figures"})

    of_run = ledger_pb.QuerySpendRequest(group_by=["tag:team"], filter=ledger_pb.Attribution(root_run_id=run.id))
    async with asyncio.timeout(SETTLED_S):
        rows = (await synod.query_spend(of_run)).rows
        while not rows or sum(row.calls for row in rows) < run.model_calls or any(row.pending_nano_usd for row in rows):
            rows = (await synod.query_spend(of_run)).rows
    assert [list(row.group) for row in rows] == [["figures"]]
    of_tag = ledger_pb.QuerySpendRequest(filter=ledger_pb.Attribution(tags={"team": "figures"}))
    assert (await synod.query_spend(of_tag)).total_nano_usd == rows[0].cost_nano_usd > 0
