"""The queue before the writer: order, room, deadline."""

import asyncio

import pytest
from eventlog.backlog import Backlog
from eventlog.errors import QueueFull


async def test_items_come_out_in_order_up_to_a_weight() -> None:
    backlog: Backlog[str] = Backlog(100)
    for item in "abc":
        await backlog.put(item, 2, timeout_s=0)
    assert backlog.take(5) == ["a", "b"]
    assert backlog.take(5) == ["c"]


async def test_one_item_is_taken_whatever_it_weighs() -> None:
    backlog: Backlog[str] = Backlog(10)
    await backlog.put("heavy", 50, timeout_s=0)
    assert backlog.take(5) == ["heavy"]
    assert backlog.weight == 0


async def test_without_room_a_caller_is_refused_at_its_deadline() -> None:
    backlog: Backlog[str] = Backlog(2)
    await backlog.put("a", 2, timeout_s=0)
    with pytest.raises(QueueFull) as refused:
        await backlog.put("b", 1, timeout_s=0.01)
    assert refused.value.limit == 2
    assert backlog.weight == 2


async def test_held_back_callers_enter_in_the_order_they_came() -> None:
    backlog: Backlog[str] = Backlog(2)
    await backlog.put("a", 2, timeout_s=0)
    waiting = [asyncio.create_task(backlog.put(item, 2, timeout_s=30)) for item in "bc"]
    await asyncio.sleep(0)
    taken = []
    for _ in range(3):
        assert await backlog.filled()
        taken += backlog.take(2)
    await asyncio.gather(*waiting)
    assert taken == ["a", "b", "c"]


async def test_a_cancelled_caller_takes_no_room() -> None:
    backlog: Backlog[str] = Backlog(2)
    await backlog.put("a", 2, timeout_s=0)
    held_back = asyncio.create_task(backlog.put("b", 2, timeout_s=30))
    await asyncio.sleep(0)
    held_back.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held_back
    backlog.take(2)
    await backlog.put("c", 2, timeout_s=0)
    assert backlog.take(2) == ["c"]


async def test_a_closed_backlog_ends_when_it_is_empty() -> None:
    backlog: Backlog[str] = Backlog(2)
    await backlog.put("a", 1, timeout_s=0)
    backlog.close()
    assert await backlog.filled()
    backlog.take(1)
    assert not await backlog.filled()


async def test_a_closed_backlog_waits_for_a_caller_that_was_let_in() -> None:
    backlog: Backlog[str] = Backlog(1)
    await backlog.put("cancelled", 1, timeout_s=0)
    held_back = asyncio.create_task(backlog.put("held back", 1, timeout_s=30))
    await asyncio.sleep(0)
    backlog.close()
    backlog.take(1)  # lets the other one in, whose turn comes only later
    assert await backlog.filled()
    await held_back
    assert backlog.take(1) == ["held back"]
    assert not await backlog.filled()


async def test_a_closed_backlog_ends_although_who_was_let_in_gives_up() -> None:
    backlog: Backlog[str] = Backlog(1)
    await backlog.put("a", 1, timeout_s=0)
    held_back = asyncio.create_task(backlog.put("b", 1, timeout_s=30))
    await asyncio.sleep(0)
    backlog.close()
    backlog.take(1)
    held_back.cancel()
    assert not await backlog.filled()
    await asyncio.wait([held_back])
    assert held_back.cancelled()
