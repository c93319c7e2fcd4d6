"""Background tasks come back after a crash, and everyone knows."""

import asyncio
from contextlib import suppress

import pytest
from servicekit.clock import SystemClock
from servicekit.health import Health
from servicekit.retry import Backoff
from servicekit.tasks import Tasks
from servicekit.telemetry import Logger, Metrics

WAIT_S = 30


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def health(metrics: Metrics) -> Health:
    return Health(metrics.ready, metrics.problem, phase="ready", ready=True)


@pytest.fixture
def tasks(metrics: Metrics, health: Health) -> Tasks:
    return Tasks(SystemClock(), health, metrics, Logger("test"), Backoff(initial_s=0.001, max_s=0.001))


async def test_a_crashed_task_is_restarted_counted_and_named_in_health(
    tasks: Tasks, health: Health, metrics: Metrics
) -> None:
    runs, steady = 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise RuntimeError("lost the thread")
        steady.set()
        await asyncio.Event().wait()

    tasks.start("spinner", work)
    await asyncio.wait_for(steady.wait(), WAIT_S)
    assert health.status == "degraded"
    assert health.problems == {"spinner": "crashed: RuntimeError('lost the thread')"}
    assert metrics.registry.get_sample_value("task_restarts_total", {"task": "spinner"}) == 2
    await tasks.stop(WAIT_S)


async def test_restarts_are_counted_from_none_on(tasks: Tasks, metrics: Metrics) -> None:
    tasks.start("spinner", asyncio.Event().wait)
    assert metrics.registry.get_sample_value("task_restarts_total", {"task": "spinner"}) == 0
    await tasks.stop(WAIT_S)


async def test_a_task_that_returns_is_done_and_well(tasks: Tasks, health: Health) -> None:
    runs, done = 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise RuntimeError("once")
        done.set()

    tasks.start("once", work)
    await asyncio.wait_for(done.wait(), WAIT_S)
    await tasks.stop(WAIT_S)
    assert (runs, health.status) == (2, "ok")


async def test_stop_lets_a_task_put_down_what_it_holds(tasks: Tasks) -> None:
    started, put_down = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            put_down.set()

    tasks.start("holder", work)
    await asyncio.wait_for(started.wait(), WAIT_S)
    await tasks.stop(WAIT_S)
    assert put_down.is_set()


async def test_two_tasks_may_not_share_a_name(tasks: Tasks) -> None:
    tasks.start("one", asyncio.Event().wait)
    with pytest.raises(ValueError, match="'one' runs already"):
        tasks.start("one", asyncio.Event().wait)
    await tasks.stop(WAIT_S)


async def test_stop_cancels_again_when_a_cancellation_got_lost(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("servicekit.tasks.CANCEL_AGAIN_S", 0.01)
    started, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tasks.start("deaf", work)
    await asyncio.wait_for(started.wait(), WAIT_S)
    await tasks.stop(WAIT_S)
    assert ended.is_set()
    assert "task_abandoned" not in caplog.text
