"""200 requests at once for the price of ten, four gateways, one killed in the middle."""

from dataclasses import replace

import pytest
from synod_client import Synod

from .conftest import RunningSystem
from .replicas import gateways
from .rush import AFFORDED, LIMIT_NANO, REPLICAS, REQUESTS, Billed, Outcome, Settled, check, rush

CALL_NANO = LIMIT_NANO // AFFORDED
RIGHT = Outcome(
    answered=2,
    refused=REQUESTS - 2,
    admitted=3,
    unknown=1,
    settled=2,
    posted_nano=2 * CALL_NANO,
    suspense_nano=CALL_NANO,
    spent_nano=3 * CALL_NANO,
    pending_nano=0,
    unexplained_nano=0,
    simulator_nano=3 * CALL_NANO,
    billed=tuple(Billed(f"sim_{number}", f"run_1-{number}", CALL_NANO) for number in (1, 2, 3)),
    settlements=tuple(Settled(f"sim_{number}", f"run_1-{number}", CALL_NANO) for number in (1, 2)),
    doubtful=("run_1-3",),
)
"""Three admitted; the gateway of the third died, and its answer was billed."""


@pytest.mark.system
async def test_group_01_a_budget_for_ten_admits_ten_of_200_through_four_gateways_one_killed(
    running: RunningSystem, synod: Synod
) -> None:
    async with gateways(running.system, REPLICAS) as replicas:
        outcome = await rush(replicas, synod, "asked")
    check(outcome)
    assert outcome.admitted == AFFORDED
    # Whoever was killed had calls at the provider, so that only the invoice can tell what became of them.
    assert outcome.unknown > 0


def test_the_check_takes_what_is_right() -> None:
    check(RIGHT)
    check(replace(RIGHT, billed=RIGHT.billed[:2], simulator_nano=2 * CALL_NANO, spent_nano=2 * CALL_NANO))


@pytest.mark.parametrize(
    "settlements",
    [
        (Settled("sim_1", "run_1-1", CALL_NANO + 1), Settled("sim_2", "run_1-2", CALL_NANO - 1)),
        (Settled("sim_1", "run_1-2", CALL_NANO), Settled("sim_2", "run_1-1", CALL_NANO)),
        (Settled("sim_1", "run_1-1", CALL_NANO), Settled("sim_1", "run_1-1", CALL_NANO)),
        (Settled("sim_1", "run_1-1", CALL_NANO), Settled("sim_9", "run_1-2", CALL_NANO)),
        (Settled("sim_1", "run_1-1", CALL_NANO), Settled("sim_3", "run_1-3", CALL_NANO)),
    ],
    ids=["too-much-and-too-little", "each-for-the-other", "one-twice", "one-never-made", "one-is-in-suspense-too"],
)
def test_two_errors_of_the_same_sum_are_noticed(settlements: tuple[Settled, ...]) -> None:
    with pytest.raises(AssertionError):
        check(replace(RIGHT, settlements=settlements))
