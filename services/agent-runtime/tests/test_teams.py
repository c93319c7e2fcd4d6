"""Teams: order, templates, votes, supervision, cancelling, and crashes at every place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence

import pytest
from agent_runtime.application import StartRun
from agent_runtime.domain import RunState
from agent_runtime.errors import CallFailed
from agent_runtime.testing import InMemoryRuntime, Said, a_context, a_model_answer, a_team, an_agent, scripted
from servicekit.testing import FakeClock
from synod.agent_runtime.events import StepStarted
from synod.common.values import Failure, Tag

APPROVE = '{"vote": "approve", "reason": "it adds up"}'
REJECT = '{"vote": "reject", "reason": "a sum is wrong"}'


def a_runtime(lines: Mapping[str, Sequence[Said]], **team: object) -> InMemoryRuntime:
    """A runtime with a team named crew, and an agent for every name that says something."""
    system = InMemoryRuntime(FakeClock(), scripted(lines), {"echo": lambda arguments: arguments["text"]})
    for name in lines:
        system.registry.add(an_agent(name, tools=("echo",)))
    system.registry.add(a_team("crew", **team))
    return system


async def start(system: InMemoryRuntime, text: str = "the job", **order: object) -> RunState:
    return await system.runtime.start_run(a_context(), StartRun("r1", "crew", text, **order))  # type: ignore[arg-type]


async def run(system: InMemoryRuntime, text: str = "the job", **order: object) -> RunState:
    started = await start(system, text, **order)
    await system.settle()
    return await system.runtime.get_run("local", started.id)


def asked(system: InMemoryRuntime, agent: str) -> list[str]:
    """The tasks an agent was given, in order."""
    calls = [call for call in system.models.calls if call.attribution.agent == agent]
    return [call.messages[1].parts[0].text for call in calls]  # type: ignore[union-attr]


async def test_a_sequence_hands_each_output_to_the_next_step() -> None:
    system = a_runtime(
        {"ann": ["draft"], "bob": ["review"]},
        steps=[
            {"id": "write", "agent": "ann", "task": "Write about {{input}}"},
            {"id": "review", "agent": "bob", "task": "Review: {{steps.write.output}}"},
        ],
    )
    state = await run(system, "bees")
    assert state.output == "review"
    assert (asked(system, "ann"), asked(system, "bob")) == (["Write about bees"], ["Review: draft"])


async def test_members_share_the_workspace_and_name_their_parent_and_root() -> None:
    system = a_runtime({"ann": ["done"]}, steps=[{"id": "one", "agent": "ann", "task": "{{input}}"}])
    state = await run(system)
    child = await system.runtime.get_run("local", state.team.child_run_ids[0])
    assert (child.started.workspace_id, child.started.root_run_id) == (state.id, state.id)
    assert (child.started.parent_run_id, child.started.step, child.started.depth) == (state.id, "one", 1)


async def test_the_tags_of_a_team_are_on_every_call_of_its_members_and_teams_below_it() -> None:
    system = a_runtime({"ann": ["draft"]}, steps=[{"id": "one", "agent": "inner", "task": "{{input}}"}])
    system.registry.add(a_team("inner", steps=[{"id": "two", "agent": "ann", "task": "{{input}}"}]))
    tags = (Tag(name="team", value="search"),)
    state = await run(system, tags=tags)
    assert [call.attribution.tags for call in system.models.calls] == [tags]
    assert (await system.runtime.replay_run("local", state.id)).equal


async def test_parallel_steps_start_together_and_the_aggregator_reads_them_all() -> None:
    system = a_runtime(
        {"ann": ["A"], "bob": ["B"], "eve": ["A and B"]},
        pattern="parallel",
        steps=[{"id": "a", "agent": "ann", "task": "x"}, {"id": "b", "agent": "bob", "task": "y"}],
        aggregator={"id": "all", "agent": "eve", "task": "{{steps.a.output}}+{{steps.b.output}}"},
    )
    system.models.hold = asyncio.Event()
    started = await start(system)
    await system.dispatch()
    await system.worker.work(started.id)
    state = await system.runtime.get_run("local", started.id)
    assert [step.status for step in state.team.steps.values()] == ["running", "running", "pending"]
    system.models.hold.set()
    await system.settle()
    assert asked(system, "eve") == ["A+B"]


async def test_parallel_without_an_aggregator_answers_all_outputs_as_json() -> None:
    system = a_runtime(
        {"ann": ["A"], "bob": ["B"]},
        pattern="parallel",
        steps=[{"id": "a", "agent": "ann", "task": "x"}, {"id": "b", "agent": "bob", "task": "y"}],
    )
    assert json.loads((await run(system)).output) == {"a": "A", "b": "B"}


async def test_after_makes_a_graph_of_the_steps() -> None:
    system = a_runtime(
        {"ann": ["A"], "bob": ["B"], "eve": ["E"]},
        steps=[
            {"id": "a", "agent": "ann", "task": "x"},
            {"id": "b", "agent": "bob", "task": "y", "after": []},
            {"id": "c", "agent": "eve", "task": "{{steps.a.output}}{{steps.b.output}}", "after": ["a", "b"]},
        ],
    )
    state = await run(system)
    assert (state.output, asked(system, "eve")) == ("E", ["AB"])


async def test_a_team_may_be_a_member_of_a_team() -> None:
    system = a_runtime({"ann": ["done"]}, steps=[{"id": "one", "agent": "inner", "task": "{{input}}!"}])
    system.registry.add(a_team("inner", steps=[{"id": "deep", "agent": "ann", "task": "{{input}}?"}]))
    state = await run(system)
    assert (state.output, asked(system, "ann")) == ("done", ["the job!?"])


async def test_a_team_that_names_itself_ends_at_the_depth_limit() -> None:
    system = a_runtime({}, steps=[{"id": "again", "agent": "crew", "task": "{{input}}"}])
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "DEPTH_LIMIT"
    assert "nested 5 deep" in state.failure.message


async def test_a_placeholder_that_stands_for_nothing_fails_the_run_by_name() -> None:
    system = a_runtime(
        {"ann": ["A"]},
        steps=[
            {"id": "draft", "agent": "ann", "task": "x"},
            {"id": "next", "agent": "ann", "task": "{{steps.drft.output}}"},
        ],
    )
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "TEMPLATE_INVALID"
    assert "{{steps.drft.output}}" in state.failure.message
    assert "did you mean 'draft'?" in state.failure.message


async def test_a_member_without_definition_fails_the_run_by_name() -> None:
    system = a_runtime({}, steps=[{"id": "one", "agent": "nobody", "task": "x"}])
    state = await run(system)
    assert state.failure is not None
    assert (state.failure.reason, "nobody" in state.failure.message) == ("DEFINITION_NOT_FOUND", True)
    assert (await system.runtime.replay_run("local", state.id)).equal


async def test_a_waiting_team_holds_no_process() -> None:
    system = a_runtime({"ann": ["done"]}, steps=[{"id": "one", "agent": "ann", "task": "x"}])
    started = await start(system)
    await system.worker.work(started.id)
    state = await system.runtime.get_run("local", started.id)
    assert (state.status, state.team.steps["one"].status) == ("running", "running")


# --- votes --------------------------------------------------------------------------------------------------------------


def a_vote(answers: Sequence[str], **vote: object) -> InMemoryRuntime:
    voters = {f"voter-{index}": [answer] for index, answer in enumerate(answers, 1)}
    return a_runtime(
        voters, steps=[{"id": "decide", "task": "Is it right? {{input}}", "vote": {"voters": list(voters), **vote}}]
    )


async def test_voters_decide_through_consensus_and_every_reason_is_kept() -> None:
    system = a_vote([APPROVE, REJECT, APPROVE])
    state = await run(system)
    assert state.status == "completed"
    output = json.loads(state.output)
    assert (output["outcome"], output["tally"]) == ("approve", {"approve": 2, "reject": 1})
    assert output["ballots"][1] == {"voter": "voter-2", "vote": "reject", "reason": "a sum is wrong"}
    assert list(system.consensus.proposals) == list(state.team.proposal_ids)


async def test_a_required_vote_that_fails_fails_the_run() -> None:
    state = await run(a_vote([REJECT, REJECT, APPROVE]))
    assert state.failure is not None
    assert state.failure.reason == "NOT_AGREED"
    assert "'reject' where 'approve' was required" in state.failure.message


async def test_a_vote_that_is_not_required_reports_its_outcome() -> None:
    state = await run(a_vote([REJECT, REJECT, APPROVE], required=False))
    assert (state.status, json.loads(state.output)["outcome"]) == ("completed", "reject")


async def test_a_voter_that_talks_nonsense_abstains_with_what_it_said() -> None:
    system = a_vote([APPROVE, "I like it", 'Sure: ```json\n{"vote": "approve", "reason": "fine"}\n```'])
    output = json.loads((await run(system)).output)
    assert [one["vote"] for one in output["ballots"]] == ["approve", "", "approve"]
    assert "I like it" in output["ballots"][1]["reason"]


async def test_the_run_waits_for_a_decision_and_goes_on_when_it_comes() -> None:
    system = a_vote([APPROVE, REJECT, "no idea"], required=False)
    state = await run(system)
    (proposal_id,) = system.consensus.proposals
    assert (state.status, state.team.steps["decide"].status) == ("running", "voting")
    proposal = system.consensus.proposals[proposal_id]
    assert (proposal.deadline - system.clock.now()).total_seconds() == 10
    system.consensus.close(proposal_id)
    await system.wake(state.id)
    ended = await system.runtime.get_run("local", state.id)
    assert (ended.status, json.loads(ended.output)["outcome"]) == ("completed", "")


# --- supervision --------------------------------------------------------------------------------------------------------


def failing(times: Mapping[str, int], lines: Mapping[str, str]) -> tuple[object, dict[str, int]]:
    """A script in which agents fail so many times before they say their line."""
    left = dict(times)

    def answer(call):  # type: ignore[no-untyped-def]
        agent = call.attribution.agent
        if left.get(agent, 0) > 0:
            left[agent] -= 1
            raise CallFailed(Failure(reason="PROVIDER_REFUSED", message="bad day"))
        return a_model_answer(lines[agent])

    return answer, left


def a_supervised(times: Mapping[str, int], **team: object) -> InMemoryRuntime:
    lines = {"ann": "A", "bob": "B", "eve": "E"}
    system = a_runtime({name: [line] for name, line in lines.items()}, **team)
    system.models.script, _ = failing(times, lines)  # type: ignore[assignment]
    return system


SEQUENCE = [
    {"id": "a", "agent": "ann", "task": "x"},
    {"id": "b", "agent": "bob", "task": "y"},
]


async def test_a_failed_member_starts_afresh_under_a_new_run() -> None:
    system = a_supervised({"bob": 2}, steps=SEQUENCE)
    state = await run(system)
    assert state.output == "B"
    assert len(state.team.child_run_ids) == 4
    assert (state.team.steps["a"].attempt, state.team.steps["b"].attempt) == (1, 3)


async def test_past_the_restart_intensity_the_failure_escalates() -> None:
    system = a_supervised({"bob": 9}, steps=SEQUENCE, supervision={"max_restarts": 1})
    state = await run(system)
    assert state.failure is not None
    assert state.failure.reason == "MEMBER_FAILED"
    assert "step b, agent bob: PROVIDER_REFUSED: bad day" in state.failure.message
    assert len(state.team.child_run_ids) == 3


async def test_one_for_all_starts_every_begun_step_afresh() -> None:
    system = a_supervised({"bob": 1}, steps=SEQUENCE, supervision={"strategy": "one_for_all"})
    state = await run(system)
    assert (state.team.steps["a"].attempt, state.team.steps["b"].attempt) == (2, 2)
    assert asked(system, "ann") == ["x", "x"]


async def test_rest_for_one_leaves_the_steps_before_alone() -> None:
    steps = [*SEQUENCE, {"id": "c", "agent": "eve", "task": "z", "after": ["a"]}]
    system = a_supervised({"bob": 1}, steps=steps, supervision={"strategy": "rest_for_one"})
    state = await run(system)
    assert [step.attempt for step in state.team.steps.values()] == [1, 2, 2]


@pytest.mark.parametrize("reason", ["BUDGET_EXHAUSTED", "BUDGET_SUSPENDED"])
async def test_a_member_over_its_budget_is_not_restarted_and_the_reason_survives(reason: str) -> None:
    system = a_runtime({"ann": ["A"]}, steps=[{"id": "a", "agent": "ann", "task": "x"}])
    system.models.failures.append(CallFailed(Failure(reason=reason, message="$0 left")))
    state = await run(system)
    assert state.failure is not None
    assert (state.failure.reason, len(state.team.child_run_ids)) == (reason, 1)
    assert "$0 left" in state.failure.message


async def test_when_one_parallel_step_fails_for_good_the_others_are_stopped_first() -> None:
    system = a_supervised({"ann": 9}, pattern="parallel", steps=SEQUENCE, supervision={"max_restarts": 0})
    state = await run(system)
    assert state.failure is not None
    children = [await system.runtime.get_run("local", child) for child in state.team.child_run_ids]
    assert all(child.ended for child in children)


# --- cancel -------------------------------------------------------------------------------------------------------------


async def test_cancel_reaches_every_run_below_and_the_team_ends_last() -> None:
    system = a_runtime(
        {"ann": ["A"], "bob": ["B"]},
        steps=[{"id": "one", "agent": "inner", "task": "x"}, {"id": "two", "agent": "bob", "task": "y", "after": []}],
    )
    system.registry.add(a_team("inner", steps=[{"id": "deep", "agent": "ann", "task": "z"}]))
    started = await start(system)
    await system.worker.work(started.id)
    state = await system.runtime.get_run("local", started.id)
    await system.worker.work(state.team.child_run_ids[0])
    await system.runtime.cancel_run(a_context(), started.id, "enough")
    await system.settle()
    events = [stored for stored in await system.memory.read() if stored.type == "RunCancelled"]
    assert len(events) == 4
    assert events[-1].stream.id == started.id
    assert not system.models.asked


# --- crashes and replay -------------------------------------------------------------------------------------------------


def a_whole_team() -> InMemoryRuntime:
    return a_runtime(
        {
            "ann": [[("echo", {"text": "data"})], "A"],
            "bob": ["B"],
            "v1": [APPROVE],
            "v2": [REJECT],
            "v3": [APPROVE],
            "eve": ["report"],
        },
        steps=[
            {"id": "a", "agent": "ann", "task": "x"},
            {"id": "b", "agent": "bob", "task": "y", "after": []},
            {"id": "vote", "task": "{{steps.a.output}}", "after": ["a", "b"], "vote": {"voters": ["v1", "v2", "v3"]}},
            {"id": "write", "agent": "eve", "task": "{{steps.vote.json.ballots.1.reason}}"},
        ],
    )


async def test_a_crash_at_any_place_of_a_team_gives_the_same_result_and_nothing_twice() -> None:
    whole = a_whole_team()
    reference = await run(whole)
    assert reference.output == "report"
    assert asked(whole, "eve") == ["a sum is wrong"]
    system = a_whole_team()
    await start(system)
    await system.settle()
    for place in range(1, system.faults.passed + 1):
        system = a_whole_team()
        started = await start(system)
        await system.settle([place])
        state = await system.runtime.get_run("local", started.id)
        assert system.crashes == 1, place
        assert (state.status, state.result_sha256) == ("completed", reference.result_sha256), place
        assert set(system.tools.ran.values()) == {1}, place
        assert (set(system.models.produced.values()), len(system.models.produced)) == ({1}, 7), place
        assert len(system.consensus.proposals) == 1, place
        assert (await system.runtime.replay_run("local", started.id)).first_difference == "", place


async def test_replay_folds_the_team_and_all_below_it_and_finds_the_same_result() -> None:
    system = a_whole_team()
    state = await run(system)
    calls = sum(system.models.asked.values())
    replayed = await system.runtime.replay_run("local", state.id)
    assert replayed.equal, replayed.first_difference
    assert (replayed.runs, replayed.events) == (7, await system.memory.head())
    assert replayed.recorded_sha256 == replayed.replayed_sha256 == state.result_sha256
    assert (replayed.outside_calls, sum(system.models.asked.values())) == (0, calls)


@pytest.mark.parametrize(
    ("strategy", "times"), [("one_for_one", 1), ("one_for_all", 2), ("rest_for_one", 1), ("one_for_one", 9)]
)
async def test_replay_follows_supervision(strategy: str, times: int) -> None:
    system = a_supervised({"bob": times}, pattern="parallel", steps=SEQUENCE, supervision={"strategy": strategy})
    state = await run(system)
    replayed = await system.runtime.replay_run("local", state.id)
    assert replayed.equal, replayed.first_difference


async def test_child_ids_are_the_same_for_every_worker() -> None:
    started = []
    for _ in range(2):
        system = a_whole_team()
        await run(system)
        page = await system.memory.read()
        started.append([StepStarted.model_validate_json(e.data).child_run_ids for e in page if e.type == "StepStarted"])
    assert started[0] == started[1]
