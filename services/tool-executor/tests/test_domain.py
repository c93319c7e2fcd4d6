"""Calls and grants without input or output: given events, when a command, then events."""

import json
from collections.abc import Sequence
from functools import reduce
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synod.common.event import Event
from synod.common.values import Attribution, Failure
from synod.tool_executor.events import (
    EffectClass,
    GrantRevoked,
    ToolCallCompleted,
    ToolCallFailed,
    ToolCallOutcomeUnknown,
    ToolCallReconciled,
    ToolCallRequested,
    ToolCallStarted,
    ToolGranted,
)
from tool_executor import arguments, domain
from tool_executor.application import deadline_s
from tool_executor.domain import Attempt, Failed, Grant, Interrupted, Reconcile, Succeeded, ToolCall
from tool_executor.errors import (
    ArgumentsInvalid,
    FieldInvalid,
    GrantUnknown,
    IdempotencyConflict,
    NotReconcilable,
    TooManyCalls,
)
from tool_executor.slots import Slots

ME = Attempt("wrk_me", "L2")
RESULT = Succeeded('{"value":1}', (), "L2", 12, 5)
TIMEOUT = Failed("timed_out", Failure(reason="LIMIT_WALL", message="too slow"), 30_000, certain=False)
REFUSAL = Failed("failed", Failure(reason="NOT_FOUND", message="no such file"), 3, certain=True)
GRANTED = ToolGranted(grant_id="grt_1", agent="a", tool="calc", granted_by="usr")
REPEATABLE: list[EffectClass] = ["pure", "idempotent"]


def requested(effect: EffectClass = "pure", **more: str) -> ToolCallRequested:
    values = {"arguments_json": "{}", "arguments_sha256": "aa", "agent": "analyst"} | more
    return ToolCallRequested(
        call_id="c1",
        tool="calc",
        tool_version="1.0.0",
        tool_digest="dd",
        workspace_id="w",
        effect=effect,
        grant_id="grt_1",
        attribution=Attribution(run_id="run_1"),
        **values,
    )


def started(attempt: int = 1) -> ToolCallStarted:
    return ToolCallStarted(call_id="c1", attempt=attempt, worker="wrk_old", isolation="L2")


def call(*events: Event) -> ToolCall:
    return reduce(domain.evolve_call, events, ToolCall())


def unknown(effect: EffectClass = "at_most_once") -> ToolCall:
    lost = ToolCallOutcomeUnknown(call_id="c1", attempt=1, tool="calc", evidence="its worker died")
    return call(requested(effect), started(), lost)


def kinds(events: Sequence[Event]) -> list[type[Event]]:
    return [type(event) for event in events]


def test_a_new_call_is_requested_and_started_in_one() -> None:
    assert kinds(domain.start(call(), requested(), ME)) == [ToolCallRequested, ToolCallStarted]


def test_the_same_call_again_is_no_event() -> None:
    assert domain.start(call(requested(), started()), requested(), ME) == []


@pytest.mark.parametrize(
    ("field", "value", "word"), [("arguments_sha256", "bb", "arguments"), ("agent", "other", "analyst")]
)
def test_a_call_id_stands_for_one_call(field: str, value: str, word: str) -> None:
    with pytest.raises(IdempotencyConflict, match=word):
        domain.start(call(requested(), started()), requested(**{field: value}), ME)


def test_the_same_call_may_name_the_version_or_not() -> None:
    domain.check_same(requested(), "calc@1.0.0", "aa", "analyst")
    with pytest.raises(IdempotencyConflict, match=r"calc@1\.0\.0"):
        domain.check_same(requested(), "calc@2.0.0", "aa", "analyst")


@pytest.mark.parametrize("effect", REPEATABLE)
def test_a_repeatable_call_of_a_dead_worker_is_started_again(effect: EffectClass) -> None:
    (again,) = domain.start_again(call(requested(effect), started()), 1, ME)
    assert again == ToolCallStarted(call_id="c1", attempt=2, worker="wrk_me", isolation="L2")


def test_of_an_at_most_once_call_of_a_dead_worker_the_outcome_is_unknown() -> None:
    (lost,) = domain.start_again(call(requested("at_most_once"), started()), 1, ME)
    assert isinstance(lost, ToolCallOutcomeUnknown)
    assert "worker died" in lost.evidence


def test_of_two_who_take_over_a_call_one_does() -> None:
    taken = call(requested(), started(1), started(2))
    assert domain.start_again(taken, 1, ME) == []


@pytest.mark.parametrize("effect", get_args(EffectClass))
def test_a_result_completes_a_call_and_keeps_whose_it_was(effect: EffectClass) -> None:
    (done,) = domain.finish(call(requested(effect), started()), 1, RESULT)
    assert isinstance(done, ToolCallCompleted)
    assert (done.attribution.run_id, done.cost_nano_usd, done.cpu_ms) == ("run_1", 0, 5)


@pytest.mark.parametrize("end", [RESULT, TIMEOUT, REFUSAL, Interrupted("stopped")])
def test_an_attempt_that_was_overtaken_records_nothing(end: domain.End) -> None:
    assert domain.finish(call(requested(), started(1), started(2)), 1, end) == []


@pytest.mark.parametrize("effect", REPEATABLE)
def test_a_call_out_of_time_has_timed_out(effect: EffectClass) -> None:
    (failed,) = domain.finish(call(requested(effect), started()), 1, TIMEOUT)
    assert isinstance(failed, ToolCallFailed)
    assert (failed.outcome, failed.failure.reason) == ("timed_out", "LIMIT_WALL")


def test_an_at_most_once_call_that_was_killed_may_have_happened() -> None:
    state = call(requested("at_most_once"), started())
    assert kinds(domain.finish(state, 1, TIMEOUT)) == [ToolCallOutcomeUnknown]
    assert kinds(domain.finish(state, 1, REFUSAL)) == [ToolCallFailed]
    assert kinds(domain.finish(state, 1, Interrupted("stopped"))) == [ToolCallOutcomeUnknown]


def test_an_interrupted_repeatable_call_stays_open() -> None:
    assert domain.finish(call(requested(), started()), 1, Interrupted("stopped")) == []


def test_cancelling_ends_a_call_and_of_an_effect_says_that_it_is_unknown() -> None:
    assert kinds(domain.cancel(call(requested(), started()), "usr", 5)) == [ToolCallFailed]
    assert kinds(domain.cancel(call(requested("at_most_once"), started()), "usr", 5)) == [ToolCallOutcomeUnknown]
    assert domain.cancel(unknown(), "usr", 5) == []


@pytest.mark.parametrize(("happened", "status"), [(True, "succeeded"), (False, "failed")])
def test_reconciling_says_what_happened_once(happened: bool, status: str) -> None:
    word = Reconcile(happened, '{"id":7}', "the bank says so", "usr")
    (said,) = domain.reconcile(unknown(), word)
    after = domain.evolve_call(unknown(), said)
    assert after.status == status
    assert domain.reconcile(after, word) == []
    with pytest.raises(NotReconcilable, match=status):
        domain.reconcile(after, Reconcile(not happened, "", "no", "usr"))


def test_only_an_unknown_outcome_can_be_reconciled() -> None:
    with pytest.raises(NotReconcilable, match="running"):
        domain.reconcile(call(requested(), started()), Reconcile(True, "1", "because", "usr"))


_ENDS = st.sampled_from([RESULT, TIMEOUT, REFUSAL, Interrupted("stopped")])
_STEPS = st.one_of(
    st.builds(lambda: lambda state: domain.start(state, requested("at_most_once"), ME)),
    st.builds(lambda n: lambda state: domain.start_again(state, n, ME), st.integers(1, 3)),
    st.builds(lambda n, end: lambda state: domain.finish(state, n, end), st.integers(1, 3), _ENDS),
    st.builds(lambda: lambda state: domain.cancel(state, "usr", 1)),
)


@given(st.lists(_STEPS, max_size=12))
def test_an_at_most_once_call_is_started_once_whatever_happens(steps: list[object]) -> None:
    state, history = ToolCall(), []
    for step in steps:
        events = step(state)  # type: ignore[operator]
        history += events
        state = reduce(domain.evolve_call, events, state)
    assert sum(isinstance(event, ToolCallStarted) for event in history) <= 1
    ended = (ToolCallCompleted, ToolCallFailed, ToolCallOutcomeUnknown, ToolCallReconciled)
    assert sum(isinstance(event, ended) for event in history) <= 1


def test_a_grant_stands_once_until_it_is_revoked() -> None:
    stands = Grant(GRANTED)
    assert domain.grant(stands, GRANTED) == []
    assert domain.revoke(stands, "grt_1", "usr") == [GrantRevoked(grant_id="grt_1", revoked_by="usr")]
    assert domain.revoke(Grant(GRANTED, revoked=True), "grt_1", "usr") == []
    assert domain.grant(Grant(GRANTED, revoked=True), GRANTED) == [GRANTED]
    with pytest.raises(GrantUnknown, match="grt_1"):
        domain.revoke(Grant(), "grt_1", "usr")


def test_arguments_have_one_form_however_they_are_written() -> None:
    assert arguments.parse('{"b": 1, "a": [1, 2]}').sha256 == arguments.parse('{"a":[1,2],"b":1}').sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "JSON object"),
        ("{", "no JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "no JSON"),
        ('{"a": "\\ud800"}', "no JSON"),
        ('{"a": ' + "[" * 50 + "]" * 50 + "}", "nested"),
        ('{"a": ' + "[" * 100_000, "no JSON"),
        (json.dumps({"a": "x" * 300_000}), "262144"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(FieldInvalid, match=words):
        arguments.parse(text)


def test_every_problem_of_the_arguments_is_told_with_its_path() -> None:
    schema = {
        "type": "object",
        "properties": {"path": {"type": "string"}, "rows": {"type": "array", "items": {"type": "integer"}}},
        "required": ["path", "mode"],
        "additionalProperties": False,
    }
    with pytest.raises(ArgumentsInvalid) as caught:
        arguments.check("t", schema, arguments.parse('{"path": 1, "rows": [1, "x"], "pth": 2}'))  # type: ignore[arg-type]
    assert {problem.path for problem in caught.value.problems} == {"$", "$.path", "$.rows[1]"}
    assert "'mode' is a required property" in caught.value.message
    assert "'pth' was unexpected" in caught.value.message


def test_many_problems_are_cut_and_counted() -> None:
    schema = {"additionalProperties": {"type": "string"}}
    given_ = arguments.parse(json.dumps({f"k{number}": number for number in range(40)}))
    with pytest.raises(ArgumentsInvalid) as caught:
        arguments.check("t", schema, given_)  # type: ignore[arg-type]
    assert len(caught.value.problems) == arguments.PROBLEMS_MAX
    assert "29 problems more" in caught.value.message


def test_slots_are_bounded_in_all_and_for_each_agent() -> None:
    slots = Slots(calls_max=3, calls_per_agent_max=2)
    with slots.taken("t", "a"), slots.taken("t", "a"):
        with pytest.raises(TooManyCalls, match="agent 'a' runs 2"), slots.taken("t", "a"):
            pass
        with (
            slots.taken("t", "b"),
            pytest.raises(TooManyCalls, match="this executor runs 3"),
            slots.taken("t", "c"),
        ):
            pass
    assert slots.running == 0


@pytest.mark.parametrize(
    ("timeout_s", "left_s", "expected"), [(30, None, 30), (30, 100, 30), (30, 10, 9.5), (30, 0.4, 0.2)]
)
def test_a_tool_stops_before_its_caller_does(timeout_s: float, left_s: float | None, expected: float) -> None:
    assert deadline_s(timeout_s, left_s) == expected
