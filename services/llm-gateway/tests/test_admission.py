"""Waiting for room within the limits, on a real event loop."""

import asyncio

import pytest
from llm_gateway.admission import Admission
from llm_gateway.errors import RateLimited
from llm_gateway.limits import LimitRule, Line, Need

WAIT_S = 5
ONE = Need(1, 1)


def admission(**rule: float) -> Admission:
    return Admission(Line((LimitRule("model", **rule),)))  # type: ignore[arg-type]


def entering(gate: Admission, seconds: float = WAIT_S) -> "asyncio.Task[object]":
    until = asyncio.get_running_loop().time() + seconds
    return asyncio.create_task(gate.enter("t", "p/m", ONE, "normal", until))


async def waiting(gate: Admission, calls: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(gate.line) != calls:  # noqa: ASYNC110 - the line offers no event
            await asyncio.sleep(0)


async def test_a_call_waits_until_another_one_ends() -> None:
    gate = admission(concurrent=1)
    first = await entering(gate)
    second = entering(gate)
    await waiting(gate, 1)
    gate.leave(first, ONE)  # type: ignore[arg-type]
    async with asyncio.timeout(WAIT_S):
        assert await second
    assert len(gate.line) == 0


async def test_a_call_waits_until_its_rate_allows_it() -> None:
    gate = admission(requests_per_min=3000, burst_s=0.02)
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(WAIT_S):
        for _ in range(5):
            await entering(gate)
    assert asyncio.get_running_loop().time() - began >= 0.08


async def test_who_leaves_the_line_takes_nothing_along() -> None:
    gate = admission(concurrent=1)
    first = await entering(gate)
    leaving, staying = entering(gate), entering(gate)
    await waiting(gate, 2)
    leaving.cancel()
    await waiting(gate, 1)
    gate.leave(first, ONE)  # type: ignore[arg-type]
    async with asyncio.timeout(WAIT_S):
        assert await staying


async def test_who_leaves_in_the_moment_of_admission_gives_its_place_back() -> None:
    gate = admission(concurrent=1)
    first = await entering(gate)
    leaving = entering(gate)
    await waiting(gate, 1)
    leaving.cancel()
    gate.leave(first, ONE)  # type: ignore[arg-type]
    async with asyncio.timeout(WAIT_S):
        assert await entering(gate)


async def test_who_would_wait_too_long_is_told_at_once() -> None:
    gate = admission(requests_per_min=1, burst_s=60)
    await entering(gate)
    with pytest.raises(RateLimited) as caught:
        await entering(gate)
    assert 50 < caught.value.retry_after_s <= 60


async def test_who_waited_too_long_is_told_when_the_time_is_over() -> None:
    gate = admission(concurrent=1)
    await entering(gate)
    with pytest.raises(RateLimited):
        await entering(gate, seconds=0.02)
    assert len(gate.line) == 0


async def test_the_depth_of_the_line_is_told() -> None:
    told: list[int] = []
    gate = Admission(Line((LimitRule("model", concurrent=1),)), told.append)
    first = await entering(gate)
    second = entering(gate)
    await waiting(gate, 1)
    assert told[-1] == 1
    gate.leave(first, ONE)  # type: ignore[arg-type]
    await second
    assert told[-1] == 0
