"""Who is woken when the log grows, and in which order."""

import asyncio

import pytest
from eventlog.signal import HeadSignal


async def waiting_for(signal: HeadSignal, position: int, order: list[str]) -> asyncio.Task[None]:
    """Somebody who follows the log, and waits by now."""

    async def follow() -> None:
        await signal.wait_for(position, timeout_s=30)
        order.append("follower")

    follower = asyncio.create_task(follow())
    await asyncio.sleep(0)
    return follower


async def test_a_head_wakes_those_who_wait_for_it_and_no_others() -> None:
    signal, order = HeadSignal(), []
    near, far = await waiting_for(signal, 1, order), await waiting_for(signal, 3, order)
    signal.advance(2)
    await near
    assert (order, far.done()) == (["follower"], False)
    signal.advance(3)
    await far


async def test_a_head_that_is_announced_is_known_at_once() -> None:
    signal = HeadSignal()
    signal.announce(2)
    assert await signal.wait_for(2, timeout_s=0) == 2


def test_a_head_that_nobody_waits_for_takes_no_turn_of_the_loop() -> None:
    signal = HeadSignal()
    signal.announce(1)  # there is none here
    assert signal.head == 1


@pytest.mark.parametrize("again", [1, 0], ids=["told_again", "told_once"])
async def test_who_was_answered_before_and_whom_he_answers_go_on_before_those_who_follow(again: int) -> None:
    """As a model call: its last append is shielded from who called, and so is the whole of it."""
    signal, order = HeadSignal(), []
    follower = await waiting_for(signal, 1, order)
    appended = asyncio.Event()

    async def called() -> None:
        await asyncio.shield(asyncio.create_task(appended.wait()))

    async def caller() -> None:
        await asyncio.shield(asyncio.create_task(called()))
        order.append("caller")

    calling = asyncio.create_task(caller())
    for _ in range(5):
        await asyncio.sleep(0)
    appended.set()
    signal.announce(1)
    signal.advance(again)  # as the database does by its notification
    await asyncio.gather(calling, follower)
    assert order == ["caller", "follower"]


async def test_what_is_done_aside_comes_after_the_answer_and_before_those_who_follow() -> None:
    signal, order = HeadSignal(), []
    follower = await waiting_for(signal, 1, order)
    signal.announce(1, lambda: order.append("aside"))
    await asyncio.sleep(0)
    order.append("caller")
    await follower
    assert order == ["caller", "aside", "follower"]


async def test_those_who_follow_are_woken_though_what_is_done_aside_fails(caplog: pytest.LogCaptureFixture) -> None:
    signal = HeadSignal()
    follower = await waiting_for(signal, 1, [])
    signal.announce(1, lambda: 1 // 0)
    await follower
    assert "ZeroDivisionError" in caplog.text


async def test_it_is_done_though_nobody_follows() -> None:
    done = asyncio.Event()
    HeadSignal().announce(1, done.set)
    await asyncio.wait_for(done.wait(), 30)


async def test_a_smaller_head_than_known_changes_nothing() -> None:
    signal = HeadSignal(5)
    signal.advance(3)
    signal.announce(4)
    assert signal.head == 5
