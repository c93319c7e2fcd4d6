"""Replay finds what was changed in a recorded history, and says where."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from agent_runtime.application import StartRun
from agent_runtime.testing import InMemoryRuntime, a_context, an_agent, scripted
from eventlog.records import StoredEvent
from servicekit.testing import FakeClock

Change = Callable[[dict[str, object]], None]


async def a_recorded_run() -> tuple[InMemoryRuntime, str]:
    lines = {"ann": [[("add", {"numbers": [1, 2]})], "the sum is 3"]}
    system = InMemoryRuntime(FakeClock(), scripted(lines), {"add": lambda arguments: 3})
    system.registry.add(an_agent("ann", tools=("add",)))
    state = await system.runtime.start_run(a_context(), StartRun("r1", "ann", "add 1 and 2"))
    await system.settle()
    return system, state.id


def manipulate(system: InMemoryRuntime, type_name: str, change: Change) -> int:
    """Change the first event of a type behind the log's back; answers its position."""
    for events in (system.memory._events, *system.memory._streams.values()):
        for index, stored in enumerate(events):
            if stored.type == type_name:
                events[index] = _changed(stored, change)
                position = stored.position
                break
    return position


def _changed(stored: StoredEvent, change: Change) -> StoredEvent:
    content = json.loads(stored.data)
    change(content)
    return stored._replace(data=json.dumps(content).encode())


def put(**fields: object) -> Change:
    return lambda content: content.update(fields)


def reword(content: dict[str, object]) -> None:
    content["message"]["parts"][0]["arguments_json"] = '{"numbers": [1, 3]}'  # type: ignore[index]


async def test_an_untouched_run_replays_equal() -> None:
    system, run_id = await a_recorded_run()
    replayed = await system.runtime.replay_run("local", run_id)
    assert (replayed.equal, replayed.first_difference, replayed.runs) == (True, "", 1)


@pytest.mark.parametrize(
    ("type_name", "change", "found"),
    [
        ("RunCompleted", put(output="the sum is 4"), "output is recorded as 'the sum is 4'"),
        ("RunCompleted", put(result_sha256="0" * 64), "result_sha256 is recorded as '0000"),
        ("ModelCallRequested", put(prompt_sha256="f" * 64), "prompt_sha256 is recorded as 'ffff"),
        ("ModelCallRequested", put(call_id="call_other"), "call_id is recorded as 'call_other'"),
        ("ToolCallIntended", put(arguments_json='{"numbers":[9]}'), "arguments_json is recorded as"),
        ("ToolCallIntended", put(effect_id="eff_other"), "effect_id is recorded as 'eff_other'"),
        ("ToolCallSucceeded", put(effect_id="eff_other"), "effect_id is recorded as 'eff_other'"),
        ("ToolCallSucceeded", put(result_json="4"), "ModelCallRequested: prompt_sha256"),
        ("ModelCallSucceeded", reword, "ToolCallIntended: effect_id"),
        ("RunStarted", put(input="add 2 and 2"), "ModelCallRequested: prompt_sha256"),
        ("RunClaimed", put(epoch=7), "epoch is recorded as 7, computed as 1"),
    ],
)
async def test_a_changed_event_is_found_by_position_and_field(type_name: str, change: Change, found: str) -> None:
    system, run_id = await a_recorded_run()
    position = manipulate(system, type_name, change)
    system.runtime = system.new_runtime()
    replayed = await system.runtime.replay_run("local", run_id)
    assert not replayed.equal
    assert found in replayed.first_difference
    where = int(replayed.first_difference.split("position ")[1].split(",")[0])
    assert where >= position


async def test_a_recorded_run_survives_in_the_log_and_replays_in_a_fresh_process() -> None:
    system, run_id = await a_recorded_run()
    system.models.script = lambda call: pytest.fail("a replay called a model")
    assert (await system.new_runtime().replay_run("local", run_id)).equal
