"""200 requests at once for the price of ten, four gateways, one killed in the middle."""

import pytest
from synod_client import Synod

from .conftest import RunningSystem
from .replicas import gateways
from .rush import AFFORDED, REPLICAS, check, rush

pytestmark = pytest.mark.system


async def test_group_01_a_budget_for_ten_admits_ten_of_200_through_four_gateways_one_killed(
    running: RunningSystem, synod: Synod
) -> None:
    async with gateways(running.system, REPLICAS) as replicas:
        outcome = await rush(replicas, synod, "asked")
    check(outcome)
    assert outcome.admitted == AFFORDED
    # Whoever was killed had calls at the provider, so that only the invoice can tell what became of them.
    assert outcome.unknown > 0
