"""Reservations of calls under way are renewed before they end, on a clock that the tests hold."""

from dataclasses import dataclass, field

import pytest
from eventlog.records import Context
from llm_gateway.errors import LedgerRefused, LedgerUnavailable
from llm_gateway.renewals import AT_ONCE_MAX, Renewals
from llm_gateway.testing import FakeLedger
from servicekit.testing import FakeClock

TTL_S = 100.0
CONTEXT = Context(tenant="local", actor="usr_ada")


@dataclass
class World:
    ledger: FakeLedger = field(default_factory=FakeLedger)
    clock: FakeClock = field(default_factory=FakeClock)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.renewals = Renewals(
            self.ledger, TTL_S, self.clock.monotonic, lambda reservation_id, error: self.refused.append(reservation_id)
        )

    async def after(self, seconds: float) -> list[str]:
        """What has been renewed so far once so many seconds more are over."""
        self.clock.advance(seconds)
        await self.renewals.renew_due()
        return [id for id, _ in self.ledger.renewals]


async def test_a_hold_is_renewed_when_half_of_its_time_is_over_and_again_after_that() -> None:
    world = World()
    world.renewals.enter("mc:1", CONTEXT)

    assert await world.after(49) == []
    assert await world.after(1) == ["mc:1"]
    assert await world.after(49) == ["mc:1"]
    assert await world.after(1) == ["mc:1", "mc:1"]
    assert world.ledger.renewals[0] == ("mc:1", TTL_S)


async def test_a_hold_whose_call_has_ended_is_not_renewed() -> None:
    world = World()
    world.renewals.enter("mc:1", CONTEXT)
    world.renewals.leave("mc:1")

    assert await world.after(TTL_S) == []


async def test_holds_are_renewed_each_by_its_own_age() -> None:
    world = World()
    world.renewals.enter("old:1", CONTEXT)
    assert await world.after(30) == []
    world.renewals.enter("new:1", CONTEXT)

    assert await world.after(20) == ["old:1"]
    assert await world.after(30) == ["old:1", "new:1"]


async def test_a_ledger_that_is_away_is_asked_again_at_the_next_look() -> None:
    world = World(FakeLedger([LedgerUnavailable("down")]))
    world.renewals.enter("mc:1", CONTEXT)

    assert await world.after(50) == []
    assert await world.after(0) == ["mc:1"]


async def test_a_hold_that_the_ledger_has_closed_is_told_and_not_asked_for_again() -> None:
    world = World(FakeLedger([LedgerRefused("RESERVATION_CLOSED", RuntimeError("settled"))]))
    world.renewals.enter("mc:1", CONTEXT)

    assert await world.after(50) == []
    assert world.refused == ["mc:1"]
    assert await world.after(TTL_S) == []


async def test_a_call_that_ends_while_its_hold_is_renewed_leaves_nothing_behind() -> None:
    world = World()

    class Ending(FakeLedger):
        async def renew(self, reservation_id: str, ttl_s: float, context: Context) -> None:
            await super().renew(reservation_id, ttl_s, context)
            world.renewals.leave(reservation_id)

    world.ledger = Ending()
    world.__post_init__()
    world.renewals.enter("mc:1", CONTEXT)

    assert await world.after(50) == ["mc:1"]
    assert await world.after(TTL_S) == ["mc:1"]


@pytest.mark.parametrize("calls", [AT_ONCE_MAX - 1, AT_ONCE_MAX, 2 * AT_ONCE_MAX + 1])
async def test_all_that_is_due_is_renewed_however_much_it_is(calls: int) -> None:
    world = World()
    for number in range(calls):
        world.renewals.enter(f"mc{number}:1", CONTEXT)

    assert len(await world.after(50)) == calls
