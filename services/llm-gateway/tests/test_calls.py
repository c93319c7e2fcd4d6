"""Given events of a call, when something happens, then these events."""

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.calls import (
    OUTRUN,
    Billed,
    Call,
    Lost,
    begin,
    check_same,
    end,
    evolve,
    fail,
    give_up,
    has_completed,
    rival,
    serve,
)
from llm_gateway.errors import RequestIdReused
from synod.common.event import Event
from synod.common.values import Attribution, Failure
from synod.llm_gateway.events import (
    Acceptance,
    ModelCallAccepted,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ModelCallCompleted,
    ModelCallFailed,
    ModelCallServedFromCache,
)

FAILURE = Failure(reason="PROVIDER_UNAVAILABLE", message="gone", retryable=True)
SHA256 = "aa"
ACCEPTED = Acceptance(model="fake/m", request_sha256=SHA256, input_tokens_max=10, output_tokens_max=20)
SERVED = ModelCallServedFromCache(
    request_id="req",
    model="fake/m",
    attribution=Attribution(),
    source_reservation_id="other:1",
    input_tokens=1,
    output_tokens=1,
    usage=(),
    finish_reason="stop",
    response_sha256="bb",
)
CANCELLED = ModelCallCancelled(
    request_id="req", attempt=1, reservation_id="mc:1", usage=(), usage_source="gateway_counted"
)


def started(attempt: int = 1) -> ModelCallAttemptStarted:
    return ModelCallAttemptStarted(
        request_id="req",
        attempt=attempt,
        model="fake/m",
        provider="fake",
        reservation_id=f"mc:{attempt}",
        attribution=Attribution(),
        accepted=ACCEPTED if attempt == 1 else None,
    )


def failed(attempt: int = 1) -> ModelCallAttemptFailed:
    return ModelCallAttemptFailed(
        request_id="req", attempt=attempt, model="fake/m", reservation_id=f"mc:{attempt}", failure=FAILURE, billed="no"
    )


def completed(attempt: int = 1) -> ModelCallCompleted:
    return ModelCallCompleted(
        request_id="req",
        attempt=attempt,
        model="fake/m",
        provider="fake",
        reservation_id=f"mc:{attempt}",
        attribution=Attribution(),
        input_tokens=1,
        output_tokens=1,
        usage=(),
        usage_source="provider_final",
        finish_reason="stop",
        response_sha256="bb",
        duration_ms=5,
    )


def given_(*events: Event) -> Call:
    return reduce(evolve, events, Call())


def test_the_first_attempt_accepts_the_call() -> None:
    assert begin(given_(), started(), SHA256) == (started(),)
    call = given_(started())
    assert (call.phase, call.request_id, call.request_sha256, call.reserved) == ("running", "req", SHA256, ("mc:1",))


def test_a_further_attempt_only_starts() -> None:
    assert begin(given_(started(), failed()), started(2), SHA256) == (started(2),)


def test_an_attempt_is_started_once() -> None:
    assert begin(given_(started()), started(), SHA256) == ()
    assert begin(given_(started(), failed()), started(1), SHA256) == ()


def test_other_content_is_refused_in_every_phase() -> None:
    for call in (given_(started()), given_(started(), completed())):
        with pytest.raises(RequestIdReused):
            check_same(call, "req", "other")


def test_an_answer_from_the_cache_accepts_a_call_that_was_not_tried() -> None:
    (told,) = serve(given_(), SERVED, ACCEPTED)
    assert told == SERVED.model_copy(update={"accepted": ACCEPTED})
    call = given_(told)
    assert (call.phase, call.request_id, call.request_sha256) == ("completed", "req", SHA256)
    assert serve(given_(started(), failed()), SERVED, ACCEPTED) == (SERVED,)
    assert serve(given_(started()), SERVED, ACCEPTED) == ()
    with pytest.raises(RequestIdReused):
        serve(given_(started(), failed()), SERVED, ACCEPTED.model_copy(update={"request_sha256": "other"}))


def test_a_call_in_a_log_from_before_goes_on() -> None:
    before = ModelCallAccepted(request_id="req", attribution=Attribution(), **ACCEPTED.model_dump())
    call = given_(before, started().model_copy(update={"accepted": None}), failed())
    assert (call.phase, call.request_id, call.request_sha256) == ("waiting", "req", SHA256)
    assert begin(call, started(2), SHA256) == (started(2),)
    with pytest.raises(RequestIdReused):
        begin(call, started(2), "other")
    served = given_(before, SERVED)
    assert (served.phase, served.request_sha256) == ("completed", SHA256)


def lost(attempt: int = 1, billed: Billed = "no") -> Lost:
    return Lost(started(attempt), FAILURE, billed)


def test_a_failed_attempt_leaves_the_call_waiting() -> None:
    events = fail(given_(started()), [lost()])
    assert events == (failed(),)
    assert given_(started(), *events).phase == "waiting"


def test_the_last_failed_attempt_ends_the_call() -> None:
    events = fail(given_(started()), [lost()], last=True)
    assert events == (failed(), ModelCallFailed(request_id="req", failure=FAILURE))
    assert given_(started(), *events).failure == FAILURE


def test_an_attempt_that_was_ended_by_another_has_no_outcome() -> None:
    call = given_(started(), failed(), started(2))
    assert fail(call, [lost()]) == ()
    assert end(call, completed(1)) == ()
    assert end(call, completed(2)) == (completed(2),)


def test_only_a_waiting_call_is_given_up() -> None:
    assert give_up(given_(), FAILURE) == ()
    assert give_up(given_(started()), FAILURE) == ()
    assert give_up(given_(started(), failed()), FAILURE) == (ModelCallFailed(request_id="req", failure=FAILURE),)


# --- two attempts at once ---


def test_a_rival_starts_beside_the_attempt_that_runs_and_a_third_does_not() -> None:
    call = given_(started())
    assert rival(call, started(2)) == (started(2),)
    assert rival(given_(started(), started(2)), started(3)) == ()


def test_a_rival_is_for_a_call_that_runs() -> None:
    assert rival(given_(), started(1)) == ()
    assert rival(given_(started(), failed()), started(2)) == ()
    assert rival(given_(started(), completed()), started(2)) == ()


@pytest.mark.parametrize("winner", [1, 2])
def test_the_attempt_that_was_outrun_ends_before_the_call(winner: int) -> None:
    call, other = given_(started(), started(2)), 3 - winner
    events = end(call, completed(winner), [lost(other)])
    assert events == (failed(other), completed(winner))
    ended = given_(started(), started(2), *events)
    assert has_completed(ended, winner)
    assert not has_completed(ended, other)
    assert ended.running == ()


def test_an_attempt_of_which_nobody_says_how_it_ended_may_be_billed() -> None:
    outrun, _ = end(given_(started(), started(2)), completed(2))
    assert isinstance(outrun, ModelCallAttemptFailed)
    assert (outrun.attempt, outrun.billed, outrun.failure) == (1, "unknown", OUTRUN)


def test_a_call_goes_on_while_one_of_two_attempts_runs() -> None:
    call = given_(started(), started(2))
    events = fail(call, [lost(1)], last=True)
    assert events == (failed(1),)
    assert given_(started(), started(2), *events).phase == "running"
    assert fail(call, [lost(1), lost(2)], last=True) == (
        failed(1),
        failed(2),
        ModelCallFailed(request_id="req", failure=FAILURE),
    )


def test_a_rival_that_was_reserved_and_never_begun_is_told_with_the_end() -> None:
    call = given_(started())
    assert end(call, completed(1), [lost(2)]) == (started(2), failed(2), completed(1))
    assert fail(call, [lost(2), lost(1)]) == (started(2), failed(2), failed(1))


STEPS = st.lists(
    st.tuples(st.sampled_from(["begin", "rival", "fail", "last", "complete", "cancel", "give_up"]), st.integers(1, 4))
)


@given(STEPS)
def test_whatever_happens_there_is_at_most_one_end_and_it_is_the_last_event(steps: list[tuple[str, int]]) -> None:
    call, events = Call(), list[Event]()
    for step, attempt in steps:
        match step:
            case "begin":
                new = begin(call, started(attempt), SHA256)
            case "rival":
                new = rival(call, started(attempt))
            case "fail" | "last":
                new = fail(call, [lost(attempt)], last=step == "last")
            case "complete":
                new = end(call, completed(attempt))
            case "cancel":
                new = end(call, CANCELLED.model_copy(update={"attempt": attempt}))
            case _:
                new = give_up(call, FAILURE)
        events.extend(new)
        call = reduce(evolve, new, call)
    ends = [
        index
        for index, event in enumerate(events)
        if isinstance(event, ModelCallCompleted | ModelCallFailed | ModelCallCancelled)
    ]
    assert ends in ([], [len(events) - 1])
    assert call.ended == bool(ends)
    begun = [event.attempt for event in events if isinstance(event, ModelCallAttemptStarted)]
    over = [
        event.attempt
        for event in events
        if isinstance(event, ModelCallAttemptFailed | ModelCallCompleted | ModelCallCancelled)
    ]
    assert begun == list(range(1, len(begun) + 1))
    assert len(over) == len(set(over)), "each attempt ends once, so that each reservation is settled once"
    assert sorted(over + [each.attempt for each in call.running]) == begun
