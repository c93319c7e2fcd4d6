"""Runs of single agents: the loop, its limits, its failures, and that nothing known is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta

import pytest
from agent_runtime.application import StartRun
from agent_runtime.domain import RunState, effect_id, sha256_text, text_of
from agent_runtime.errors import (
    CallFailed,
    CallInterrupted,
    DefinitionNotFound,
    InvalidRequest,
    RequestIdReused,
    RunNotFound,
    Superseded,
)
from agent_runtime.testing import (
    InMemoryRuntime,
    Said,
    a_context,
    a_model_answer,
    an_agent,
    scripted,
)
from eventlog.records import Filter
from hypothesis import given, settings
from hypothesis import strategies as st
from servicekit.testing import FakeClock
from synod.common.values import Failure


def add(arguments: Mapping[str, object]) -> object:
    return {"sum": sum(arguments["numbers"])}  # type: ignore[call-overload]


def refuse(arguments: Mapping[str, object]) -> object:
    raise ValueError("numbers must not be empty")


def a_runtime(*says: Said, **spec: object) -> InMemoryRuntime:
    """A runtime with one agent, ann, that says these things one after the other."""
    system = InMemoryRuntime(FakeClock(), scripted({"ann": says}), {"add": add, "refuse": refuse})
    system.registry.add(an_agent("ann", **spec))
    return system


async def run(system: InMemoryRuntime, text: str = "add 1 and 2", **order: object) -> RunState:
    started = await system.runtime.start_run(
        a_context(), StartRun(request_id="r1", definition="ann", input=text, **order)
    )
    await system.settle()
    return await system.runtime.get_run("local", started.id)


async def types(system: InMemoryRuntime) -> list[str]:
    return [stored.type for stored in await system.memory.read()]


async def test_chat_answers_with_one_model_call() -> None:
    system = a_runtime("hello there", behaviour="chat")
    state = await run(system, "hi")
    assert (state.status, state.output, state.result_sha256) == ("completed", "hello there", sha256_text("hello there"))
    assert await types(system) == [
        "RunStarted",
        "RunClaimed",
        "ModelCallRequested",
        "ModelCallSucceeded",
        "RunCompleted",
    ]


async def test_react_uses_tools_until_it_answers() -> None:
    system = a_runtime([("add", {"numbers": [1, 2]})], "the sum is 3", tools=("add",))
    state = await run(system)
    assert state.output == "the sum is 3"
    assert (state.agent.model_calls, state.agent.tool_calls) == (2, 1)
    read_by_model = system.models.calls[1].messages[-1]
    assert read_by_model.role == "tool"
    assert read_by_model.parts[0].content == '{"sum": 3}'  # type: ignore[union-attr]


async def test_the_last_words_of_the_instructions_stay_last_in_the_prompt() -> None:
    system = a_runtime("done", tools=("add",), instructions="Add.\nanswer: {{1.sum}}")
    await run(system)
    assert text_of(system.models.calls[0].messages[0]).endswith("\nanswer: {{1.sum}}")


async def test_every_intent_stands_in_the_log_before_its_outcome() -> None:
    system = a_runtime([("add", {"numbers": [1]}), ("add", {"numbers": [2]})], "done", tools=("add",))
    await run(system)
    assert await types(system) == [
        "RunStarted",
        "RunClaimed",
        "ToolsResolved",
        "ModelCallRequested",
        "ModelCallSucceeded",
        "ToolCallIntended",
        "ToolCallIntended",
        "ToolCallSucceeded",
        "ToolCallSucceeded",
        "ModelCallRequested",
        "ModelCallSucceeded",
        "RunCompleted",
    ]


async def test_all_events_of_a_run_carry_its_root_as_correlation() -> None:
    system = a_runtime("hello", behaviour="chat")
    state = await run(system)
    events = await system.memory.read(where=Filter(correlation=state.id))
    assert len(events) == await system.memory.head()
    assert {event.actor for event in events} == {"usr_1"}


async def test_a_failed_tool_is_given_back_to_the_model_as_an_error() -> None:
    system = a_runtime([("refuse", {})], "it did not work", tools=("refuse",))
    state = await run(system)
    part = system.models.calls[1].messages[-1].parts[0]
    assert part.is_error  # type: ignore[union-attr]
    assert "numbers must not be empty" in part.content  # type: ignore[union-attr]
    assert state.output == "it did not work"


async def test_the_effect_id_ignores_the_models_call_id_and_the_order_of_arguments() -> None:
    system = a_runtime([("add", {"numbers": [1], "also": 2})], "done", tools=("add",))
    state = await run(system)
    arguments = '{"also":2,"numbers":[1]}'
    assert list(system.tools.ran) == [effect_id(state.id, 1, 0, "add", sha256_text(arguments))]


async def test_an_unknown_tool_fails_the_run_and_names_a_near_one() -> None:
    system = a_runtime("never said", tools=("ad",))
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "UNKNOWN_TOOL"
    assert "did you mean 'add'?" in state.failure.message
    assert not system.models.asked


async def test_the_run_fails_when_the_model_never_stops_asking() -> None:
    ask: Said = [("add", {"numbers": []})]
    system = a_runtime(ask, ask, ask, tools=("add",), max_turns=2)
    state = await run(system)
    assert state.failure is not None
    assert (state.failure.reason, state.agent.model_calls, state.agent.tool_calls) == ("STEP_LIMIT", 2, 1)


async def test_an_exhausted_budget_fails_the_run_with_the_ledgers_words() -> None:
    system = a_runtime("never said")
    said = "budget run_1 has $0.01 left, this call may cost $0.02"
    system.models.failures.append(CallFailed(Failure(reason="BUDGET_EXHAUSTED", message=said)))
    state = await run(system)
    assert state.failure == Failure(reason="BUDGET_EXHAUSTED", message=said)
    assert not system.models.produced


async def test_a_failure_that_may_pass_is_tried_again_as_a_new_call() -> None:
    system = a_runtime("hello", behaviour="chat")
    busy = CallFailed(Failure(reason="RATE_LIMITED", message="later", retryable=True))
    system.models.failures.extend([busy, busy])
    state = await run(system)
    assert state.output == "hello"
    assert len(system.models.asked) == 3


async def test_a_failure_that_does_not_pass_fails_the_run_with_its_reason() -> None:
    system = a_runtime("hello", behaviour="chat")
    system.models.failures.extend(
        [CallFailed(Failure(reason="PROVIDER_UNAVAILABLE", message="down", retryable=True))] * 10
    )
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "PROVIDER_UNAVAILABLE"
    assert len(system.models.asked) == 4


async def test_a_broken_connection_repeats_the_same_call_id() -> None:
    system = a_runtime("hello", behaviour="chat")
    system.models.failures.extend([CallInterrupted("connection reset")] * 3)
    state = await run(system)
    assert state.output == "hello"
    assert list(system.models.asked.values()) == [4]


async def test_a_model_that_cannot_be_reached_fails_the_run() -> None:
    system = a_runtime("hello", behaviour="chat")
    system.models.failures.extend([CallInterrupted("connection reset")] * 20)
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "MODEL_UNREACHABLE"


async def test_an_answer_that_was_cut_off_is_no_answer_of_react() -> None:
    system = a_runtime()
    cut = a_model_answer("half an ans")
    system.models.script = lambda call: type(cut)(cut.message, "length", cut.model, 1, 1)
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "OUTPUT_TRUNCATED"
    assert "max_output_tokens" in state.failure.message


async def test_tokens_are_numbered_over_the_whole_run() -> None:
    system = a_runtime([("add", {"numbers": [1]})], "one two three", tools=("add",))
    state = await run(system)
    assert system.tokens.published == [(state.id, 1, "one"), (state.id, 2, "two"), (state.id, 3, "three")]


async def test_a_run_past_its_deadline_fails_without_beginning_anything() -> None:
    clock = FakeClock()
    system = InMemoryRuntime(clock, scripted({"ann": ["late"]}))
    system.registry.add(an_agent("ann", timeout_s=60))
    await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hurry"))
    clock.advance(61)
    await system.settle()
    state = await system.runtime.get_run("local", (await system.memory.read())[0].stream.id)
    assert state.failure is not None
    assert state.failure.reason == "TIMEOUT"
    assert not system.models.asked


# --- starting -----------------------------------------------------------------------------------------------------------


async def test_starting_twice_with_one_request_id_starts_once() -> None:
    system = a_runtime("hello", behaviour="chat")
    first, second = await asyncio.gather(
        *(system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi")) for _ in range(2))
    )
    assert first.id == second.id
    assert await types(system) == ["RunStarted"]


async def test_a_request_id_with_another_input_is_refused() -> None:
    system = a_runtime("hello", behaviour="chat")
    await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi"))
    with pytest.raises(RequestIdReused, match="r1"):
        await system.runtime.start_run(a_context(), StartRun("r1", "ann", "something else"))
    with pytest.raises(RequestIdReused, match="r1"):
        await system.runtime.start_run(a_context(), StartRun("r1", "bob", "hi"))


async def test_an_unknown_definition_starts_nothing() -> None:
    system = a_runtime()
    with pytest.raises(DefinitionNotFound, match="nobody"):
        await system.runtime.start_run(a_context(), StartRun("r1", "nobody", "hi"))
    assert await system.memory.head() == 0


@pytest.mark.parametrize(
    ("order", "field"),
    [
        (StartRun("r1", "", "hi"), "definition"),
        (StartRun("r1", "ann", ""), "input"),
        (StartRun("r1", "ann", "x" * 65_537), "input"),
        (StartRun("r1", "ann", "hi", budget_nano_usd=-1), "budget_nano_usd"),
        (StartRun("r" * 129, "ann", "hi"), "request_id"),
    ],
)
async def test_a_wrong_order_names_its_field(order: StartRun, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        await a_runtime().runtime.start_run(a_context(), order)


async def test_the_tighter_of_two_budgets_is_set_before_the_run_exists() -> None:
    system = a_runtime("hello", behaviour="chat", budget="0.25")
    state = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi", budget_nano_usd=1_000))
    assert system.ledger.budgets == {state.id: 1_000}
    assert system.ledger.scopes == {state.id: ("", state.id)}


async def test_a_run_of_another_tenant_does_not_exist() -> None:
    system = a_runtime("hello", behaviour="chat")
    state = await run(system)
    with pytest.raises(RunNotFound):
        await system.runtime.get_run("other", state.id)


# --- cancel -------------------------------------------------------------------------------------------------------------


async def test_cancel_abandons_the_call_in_flight() -> None:
    system = a_runtime("hello", behaviour="chat")
    system.models.hold = asyncio.Event()
    started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi"))
    working = asyncio.create_task(system.worker.work(started.id))
    await system.models.was_asked(1)
    await system.runtime.cancel_run(a_context(), started.id, "changed my mind")
    await system.settle()
    await working
    state = await system.runtime.get_run("local", started.id)
    assert (state.status, state.failure) == ("cancelled", Failure(reason="CANCELLED", message="changed my mind"))


async def test_cancel_reaches_the_tool_that_is_running() -> None:
    system = a_runtime([("add", {"numbers": [1]})], "never said", tools=("add",))
    system.tools.hold = asyncio.Event()
    started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "go"))
    working = asyncio.create_task(system.worker.work(started.id))
    async with asyncio.timeout(30):
        await system.tools.waiting.wait()
    await system.runtime.cancel_run(a_context(), started.id, "enough")
    await system.settle()
    await working
    state = await system.runtime.get_run("local", started.id)
    assert state.status == "cancelled"
    assert system.tools.cancelled == list(system.tools.ran)
    assert (await system.runtime.replay_run("local", state.id)).equal


async def test_cancelling_an_ended_run_changes_nothing() -> None:
    system = a_runtime("hello", behaviour="chat")
    state = await run(system)
    head = await system.memory.head()
    again = await system.runtime.cancel_run(a_context(), state.id, "too late")
    assert (again.status, await system.memory.head()) == ("completed", head)


# --- crashes ------------------------------------------------------------------------------------------------------------


def a_busy_runtime() -> InMemoryRuntime:
    return a_runtime(
        [("add", {"numbers": [1, 2]}), ("add", {"numbers": [3]})],
        [("refuse", {})],
        "all done",
        tools=("add", "refuse"),
    )


async def places_of_a_run() -> int:
    system = a_busy_runtime()
    await system.runtime.start_run(a_context(), StartRun("r1", "ann", "work"))
    await system.settle()
    return system.faults.passed


async def test_a_crash_at_any_place_gives_the_same_result_and_no_effect_twice() -> None:
    places = await places_of_a_run()
    assert places > 20
    for place in range(1, places + 1):
        system = a_busy_runtime()
        started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "work"))
        await system.settle([place])
        state = await system.runtime.get_run("local", started.id)
        assert system.crashes == 1, place
        assert (state.status, state.output) == ("completed", "all done"), place
        assert set(system.tools.ran.values()) == {1}, place
        assert set(system.models.produced.values()) == {1}, place
        assert len(system.models.produced) == 3, place
        assert (await system.runtime.replay_run("local", started.id)).first_difference == "", place


@given(st.lists(st.integers(min_value=1, max_value=25), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_number_of_crashes_gives_the_same_result_and_no_effect_twice(deaths: list[int]) -> None:
    asyncio.run(survives(deaths))


async def survives(deaths: list[int]) -> None:
    system = a_busy_runtime()
    started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "work"))
    await system.settle(deaths)
    state = await system.runtime.get_run("local", started.id)
    assert (state.status, state.output) == ("completed", "all done")
    assert set(system.tools.ran.values()) == {1}
    assert set(system.models.produced.values()) == {1}
    assert (await system.runtime.replay_run("local", started.id)).equal


async def test_a_call_whose_outcome_is_recorded_is_never_repeated() -> None:
    places = await places_of_a_run()
    for place in range(1, places + 1):
        system = a_busy_runtime()
        await system.runtime.start_run(a_context(), StartRun("r1", "ann", "work"))
        await system.settle([place])
        answered = [event for event in await types(system) if event == "ModelCallSucceeded"]
        assert len(answered) == 3, place
        assert sum(system.models.asked.values()) <= 4, place


async def test_a_tool_that_may_have_acted_is_not_repeated_but_stops_the_run() -> None:
    system = a_runtime([("add", {"numbers": [1]})], "never said", tools=("add",))
    system.tools.at_most_once = frozenset({"add"})
    started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "pay"))
    for place in range(1, 30):
        system = a_runtime([("add", {"numbers": [1]})], "paid", tools=("add",))
        system.tools.at_most_once = frozenset({"add"})
        started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "pay"))
        await system.settle([place])
        state = await system.runtime.get_run("local", started.id)
        assert set(system.tools.ran.values()) <= {1}, place
        if state.failure is not None:
            assert state.failure.reason == "TOOL_OUTCOME_UNKNOWN"
            assert "ReconcileToolCall" in state.failure.message
            return
    pytest.fail("no crash left the outcome unknown")


async def test_a_stale_worker_is_refused_after_another_claimed_the_run() -> None:
    system = a_runtime("hello", behaviour="chat")
    system.models.hold = asyncio.Event()
    started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi"))
    stale = asyncio.create_task(system.worker.work(started.id))
    await system.models.was_asked(1)
    fresh = asyncio.create_task(system.new_worker().work(started.id))
    await system.models.was_asked(2)
    system.models.hold.set()
    stale_error, fresh_error = await asyncio.gather(stale, fresh, return_exceptions=True)
    state = await system.runtime.get_run("local", started.id)
    assert (state.status, state.epoch) == ("completed", 2)
    assert isinstance(stale_error, Superseded)
    assert fresh_error is None
    assert set(system.models.produced.values()) == {1}


async def test_work_without_news_claims_nothing() -> None:
    system = a_runtime("hello", behaviour="chat")
    state = await run(system)
    head = await system.memory.head()
    await system.new_worker().work(state.id)
    assert await system.memory.head() == head


async def test_a_run_that_cannot_go_on_is_given_up_with_a_reason() -> None:
    system = a_runtime("hello", behaviour="chat")
    started = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi"))
    await system.worker.give_up(started.id, Failure(reason="INTERNAL", message="error err_1"))
    state = await system.runtime.get_run("local", started.id)
    assert (state.status, state.failure) == ("failed", Failure(reason="INTERNAL", message="error err_1"))
    assert (await system.runtime.replay_run("local", started.id)).equal


async def test_the_started_deadline_comes_from_the_definition() -> None:
    system = a_runtime("hello", behaviour="chat", timeout_s=90)
    state = await run(system)
    assert state.deadline - state.started_at == timedelta(seconds=90)
