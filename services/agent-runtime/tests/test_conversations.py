"""Conversations: stored as what is new, one turn at a time, the history by reference."""

from __future__ import annotations

import pytest
from agent_runtime.application import StartRun
from agent_runtime.domain import text_of
from agent_runtime.errors import CallFailed, ConversationNotFound, InvalidRequest, TurnInProgress
from agent_runtime.testing import InMemoryRuntime, a_context, a_model_answer, a_team, an_agent
from servicekit.testing import FakeClock
from synod.common.values import Failure


def a_runtime() -> InMemoryRuntime:
    system = InMemoryRuntime(FakeClock(), lambda call: a_model_answer(f"answer {len(call.messages)}"))
    system.registry.add(an_agent("ann", behaviour="chat"))
    return system


async def say(system: InMemoryRuntime, conversation_id: str, text: str) -> str:
    run = await system.runtime.send_message(a_context(), text, conversation_id, text)
    await system.settle()
    return (await system.runtime.get_run("local", run.id)).output


async def a_conversation(system: InMemoryRuntime) -> str:
    state = await system.runtime.create_conversation(a_context(), "c1", "ann")
    return state.started.conversation_id


async def test_each_turn_reads_the_turns_before() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    assert [await say(system, conversation_id, text) for text in ("one", "two", "three")] == [
        "answer 2",
        "answer 4",
        "answer 6",
    ]
    last = [text_of(message) for message in system.models.calls[-1].messages]
    assert last == ["You are ann.", "one", "answer 2", "two", "answer 4", "three"]


async def test_what_is_stored_grows_with_the_conversation_and_not_with_its_square() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    sizes = []
    for turn in range(30):
        before = sum(len(stored.data) for stored in await system.memory.read(limit=10_000))
        await say(system, conversation_id, f"{turn:02}")
        sizes.append(sum(len(stored.data) for stored in await system.memory.read(limit=10_000)) - before)
    assert max(sizes[1:]) - min(sizes[1:]) < 20


async def test_a_second_message_while_one_is_answered_is_refused() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    run = await system.runtime.send_message(a_context(), "m1", conversation_id, "one")
    with pytest.raises(TurnInProgress, match=run.id):
        await system.runtime.send_message(a_context(), "m2", conversation_id, "two")


async def test_sending_twice_with_one_request_id_is_one_turn() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    first = await system.runtime.send_message(a_context(), "m1", conversation_id, "one")
    again = await system.runtime.send_message(a_context(), "m1", conversation_id, "one")
    await system.settle()
    assert first.id == again.id
    state = await system.runtime.get_conversation("local", conversation_id)
    assert [turn.outcome for turn in state.turns] == ["completed"]


async def test_a_failed_turn_frees_the_conversation_and_stays_out_of_the_prompt() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    system.models.failures.append(CallFailed(Failure(reason="PROVIDER_REFUSED", message="no")))
    await say(system, conversation_id, "bad")
    await say(system, conversation_id, "good")
    assert [text_of(message) for message in system.models.calls[-1].messages] == ["You are ann.", "good"]


async def test_a_turn_replays_with_its_history() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    await say(system, conversation_id, "one")
    run = await system.runtime.send_message(a_context(), "m2", conversation_id, "two")
    await system.settle()
    await say(system, conversation_id, "three")
    replayed = await system.runtime.replay_run("local", run.id)
    assert replayed.equal, replayed.first_difference


async def test_the_definition_is_pinned_when_the_conversation_is_opened() -> None:
    system = a_runtime()
    conversation_id = await a_conversation(system)
    system.registry.add(an_agent("ann", behaviour="chat", instructions="You are somebody else."))
    await say(system, conversation_id, "one")
    assert text_of(system.models.calls[-1].messages[0]) == "You are ann."


async def test_a_team_cannot_hold_a_conversation() -> None:
    system = a_runtime()
    system.registry.add(a_team("crew", steps=[{"id": "a", "agent": "ann", "task": "x"}]))
    with pytest.raises(InvalidRequest, match="crew"):
        await system.runtime.create_conversation(a_context(), "c1", "crew")


async def test_an_unknown_conversation_is_named() -> None:
    with pytest.raises(ConversationNotFound, match="conv_1"):
        await a_runtime().runtime.send_message(a_context(), "m1", "conv_1", "hi")


async def test_a_run_outside_a_conversation_loads_none() -> None:
    system = a_runtime()
    state = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "hi"))
    await system.settle()
    assert (await system.runtime.get_run("local", state.id)).agent.history is None
