"""What callers see of a call in flight, and in how many pieces."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress

import pytest
from eventlog.errors import LogUnavailable, QueueFull
from llm_gateway.domain import (
    Answer,
    Delta,
    Message,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Text,
    TextDelta,
    ToolCallDelta,
    Usage,
    UsageLine,
)
from llm_gateway.errors import CallFailed, StoreUnavailable
from llm_gateway.flight import FLUSH_BYTES, STOPPED, Began, Broken, CallEvent, Flight
from synod.common.values import Failure

WAIT_S = 30
BEGAN = Began("fake/m", 1, "mc:1")
USAGE = Usage.of((UsageLine("input", 1),))
ANSWER = Answer("req", Message("assistant", (Text("x"),)), "stop", USAGE, "provider_final", "fake/m", "r", "mc:1")


def flight() -> tuple[Flight, asyncio.Future[Answer]]:
    made = Flight("aa", asyncio.get_running_loop().time() + 60)
    outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def carry_out() -> Answer:
        return await outcome

    made.carry(asyncio.create_task(carry_out()), lambda: None)
    return made, outcome


THOUGHT = Reasoning("", "d", b"x")


async def shown(*deltas: Delta) -> list[CallEvent]:
    """What a caller sees of deltas that come all at once."""
    made, outcome = flight()
    for delta in deltas:
        made.show(BEGAN, delta)
    outcome.set_result(ANSWER)
    async with asyncio.timeout(WAIT_S):
        return [event async for event in made.events()]


async def test_the_first_delta_is_shown_at_once_and_the_others_joined() -> None:
    events = await shown(*(TextDelta(word) for word in ("a", "b", "c")))
    assert events == [BEGAN, TextDelta("a"), TextDelta("bc"), ANSWER]


async def test_what_came_before_the_first_content_is_shown_at_once_with_it() -> None:
    made, _ = flight()
    made.show(BEGAN, TextDelta("a"), (ReasoningDone(THOUGHT),))
    seen = made.events()
    assert [await anext(seen) for _ in range(3)] == [BEGAN, ReasoningDone(THOUGHT), TextDelta("a")]


async def test_a_caller_who_looks_just_when_the_call_has_ended_is_not_told_of_its_end_before_its_last_deltas() -> None:
    made = Flight("aa", asyncio.get_running_loop().time() + 60)

    async def carry_out() -> Answer:
        # Wakes the caller, who goes on when the call has ended and nobody was told so yet.
        made.show(BEGAN, TextDelta("a"))
        made.show(BEGAN, TextDelta("b"))
        return ANSWER

    made.carry(asyncio.create_task(carry_out()), lambda: None)
    async with asyncio.timeout(WAIT_S):
        assert [event async for event in made.events()] == [BEGAN, TextDelta("a"), TextDelta("b"), ANSWER]


async def test_deltas_of_different_things_are_not_joined() -> None:
    deltas = (
        TextDelta("a"),
        TextDelta("b"),
        ReasoningDelta("c"),
        ReasoningDone(THOUGHT),
        ReasoningDelta("d"),
        ReasoningDone(THOUGHT),
        ReasoningDone(THOUGHT),
        ToolCallDelta(0, "1", "calc", "{"),
        ToolCallDelta(0, "", "", "}"),
        ToolCallDelta(1, "2", "calc", "{}"),
    )
    assert await shown(*deltas) == [
        BEGAN,
        TextDelta("a"),
        TextDelta("b"),
        ReasoningDelta("c"),
        ReasoningDone(THOUGHT),
        ReasoningDelta("d"),
        ReasoningDone(THOUGHT),
        ReasoningDone(THOUGHT),
        ToolCallDelta(0, "1", "calc", "{}"),
        ToolCallDelta(1, "2", "calc", "{}"),
        ANSWER,
    ]


async def test_many_bytes_do_not_wait() -> None:
    made, outcome = flight()
    events = made.events()
    made.show(BEGAN, TextDelta("a"))
    made.show(BEGAN, TextDelta("b" * FLUSH_BYTES))
    seen = [await anext(events) for _ in range(3)]
    assert seen[-1] == TextDelta("b" * FLUSH_BYTES)
    outcome.set_result(ANSWER)
    assert await anext(events) == ANSWER


async def test_few_bytes_are_shown_after_a_moment_without_more_coming() -> None:
    made, outcome = flight()
    events = made.events()
    made.show(BEGAN, TextDelta("a"))
    made.show(BEGAN, TextDelta("b"))
    async with asyncio.timeout(WAIT_S):
        seen = [await anext(events) for _ in range(3)]
    assert seen == [BEGAN, TextDelta("a"), TextDelta("b")]
    outcome.set_result(ANSWER)
    assert await anext(events) == ANSWER


async def test_a_late_caller_sees_everything_from_the_start() -> None:
    made, outcome = flight()
    made.show(BEGAN, TextDelta("a"))
    early = [event async for event in _first(made, 2)]
    outcome.set_result(ANSWER)
    assert [event async for event in made.events()] == [*early, ANSWER]


async def test_a_failure_after_content_is_the_last_event() -> None:
    made, outcome = flight()
    made.show(BEGAN, TextDelta("a"))
    failure = Failure(reason="PROVIDER_UNAVAILABLE", message="cut", retryable=True)
    outcome.set_exception(CallFailed(failure))
    assert [event async for event in made.events()] == [BEGAN, TextDelta("a"), Broken(failure)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LogUnavailable("gone"), "LOG_UNAVAILABLE"),
        (QueueFull("full"), "LOG_QUEUE_FULL"),
        (StoreUnavailable("gone"), "STORE_UNAVAILABLE"),
    ],
)
async def test_an_end_that_could_not_be_recorded_is_the_last_event_after_content_and_raised_before(
    error: Exception, reason: str
) -> None:
    made, outcome = flight()
    made.show(BEGAN, TextDelta("a"))
    outcome.set_exception(error)
    *seen, broken = [event async for event in made.events()]
    assert seen == [BEGAN, TextDelta("a")]
    assert isinstance(broken, Broken)
    assert (broken.failure.reason, broken.failure.retryable) == (reason, True)

    unseen, outcome = flight()
    outcome.set_exception(error)
    with pytest.raises(type(error)):
        await anext(unseen.events())


async def test_a_stop_in_the_middle_of_a_stream_is_its_last_event() -> None:
    made, _ = flight()
    made.show(BEGAN, TextDelta("a"))
    made.stop()
    assert [event async for event in made.events()] == [BEGAN, TextDelta("a"), Broken(STOPPED)]


async def test_a_caller_who_is_cancelled_in_the_middle_of_a_stream_stays_cancelled() -> None:
    made, _ = flight()
    made.show(BEGAN, TextDelta("a"))

    async def follow() -> list[CallEvent]:
        return [event async for event in made.events()]

    caller = asyncio.create_task(follow())
    await asyncio.sleep(0)
    caller.cancel()
    made.stop()
    await asyncio.wait([caller])

    assert caller.cancelled()


def carried(made: Flight, work: Coroutine[object, object, Answer]) -> "asyncio.Task[Answer]":
    task = asyncio.create_task(work)
    made.carry(task, lambda: None)
    return task


async def steps(made: Flight, *recordings: asyncio.Future[None]) -> Answer:
    for recording in recordings:
        with suppress(ConnectionError):
            await made.step(recording)
    return ANSWER


@pytest.mark.parametrize("error", [None, ConnectionError("lost")])
async def test_a_step_is_recorded_to_its_end_and_the_next_one_not_begun(error: Exception | None) -> None:
    made = Flight("same", 100.0)
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    task = carried(made, steps(made, first, second))
    await asyncio.sleep(0)

    made.abandon()
    made.abandon()
    await asyncio.sleep(0)
    assert not task.done()
    assert not first.cancelled()
    if error is None:
        first.set_result(None)
    else:
        first.set_exception(error)
    await asyncio.wait([task])

    assert task.cancelled()
    assert not second.done()


async def recording_a_step() -> "tuple[Flight, asyncio.Future[None], asyncio.Task[Answer]]":
    made, recording = Flight("same", 100.0), asyncio.get_running_loop().create_future()
    task = carried(made, steps(made, recording))
    await asyncio.sleep(0)
    return made, recording, task


async def test_who_comes_back_before_it_was_heard_that_nobody_waits_has_the_call_go_on() -> None:
    made, recording, task = await recording_a_step()

    made.abandon()
    made.keep()
    recording.set_result(None)

    assert await task == ANSWER
    assert not made.abandoned


async def test_nobody_keeps_a_call_from_ending_with_its_process() -> None:
    made, recording, task = await recording_a_step()

    made.abandon()
    made.stop()
    made.keep()
    recording.set_result(None)
    await asyncio.wait([task])

    assert task.cancelled()


@pytest.mark.parametrize("heeds", [True, False])
async def test_the_end_is_recorded_unbroken_and_what_was_to_end_meanwhile_ends_if_that_was_none(heeds: bool) -> None:
    made, recording = Flight("same", 100.0), asyncio.get_running_loop().create_future()
    recorded = asyncio.Event()

    async def work() -> Answer:
        await made.unbroken(made.step(recording))
        recorded.set()
        if heeds:
            await made.heed()
        return ANSWER

    task = carried(made, work())
    await asyncio.sleep(0)
    made.abandon()
    recording.set_result(None)
    await asyncio.wait([task])

    assert recorded.is_set()
    assert task.cancelled() is heeds


async def test_nothing_breaks_off_the_record_of_how_a_call_ends_that_was_to_end() -> None:
    made, loop = Flight("same", 100.0), asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()

    async def record() -> None:
        await made.step(second)

    async def work() -> Answer:
        await made.unbroken(made.step(first))
        await made.last(record())
        return ANSWER

    task = carried(made, work())
    await asyncio.sleep(0)
    made.abandon()  # while the first is recorded, and not heeded
    first.set_result(None)
    await asyncio.sleep(0)
    made.stop()
    second.set_result(None)

    assert await task == ANSWER


async def _first(made: Flight, count: int):  # type: ignore[no-untyped-def]
    events = made.events()
    for _ in range(count):
        yield await anext(events)
