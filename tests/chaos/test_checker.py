"""Each violation is planted into a faultless history and must be found, and nothing else be said."""

from dataclasses import replace

import pytest

from .checker import Kind, check
from .history import (
    FORBIDDEN,
    POISON,
    Acked,
    Answer,
    Entry,
    Evidence,
    Refused,
    Request,
    Told,
    Unknown,
    ViewFound,
    Write,
)


def told(request: Request, begun_s: float, answer: Answer) -> Told:
    ended_s = begun_s + 0.5 if isinstance(answer, Acked) else float("inf")
    return Told(request, begun_s, answer, ended_s, step=7)


def entry(position: int, event_id: str, stream: str, version: int, type_name: str = "Happened") -> Entry:
    return Entry(position, event_id, stream, version, type_name, hash=f"hash of {event_id}")


LOG = (
    entry(1, "a1", "a", 1),
    entry(2, "a2", "a", 2),
    entry(3, "b1", "b", 1),
    entry(4, "a3", "a", 3, POISON),
    entry(5, "b2", "b", 2),
)
CREATED = told(Request((Write("a", 0, ("a1", "a2")),)), 0, Acked(2, (2,)))
UNANSWERED = told(Request((Write("b", None, ("b1",)),)), 1, Unknown("killed"))
OVER_TWO_STREAMS = told(Request((Write("a", 2, ("a3",), POISON), Write("b", 1, ("b2",)))), 2, Acked(5, (3, 2)))
CONFLICTED = told(Request((Write("a", 0, ("a9",)),)), 3, Refused("conflict"))
FAULTLESS = Evidence(
    told=(CREATED, UNANSWERED, OVER_TWO_STREAMS, CONFLICTED),
    log=LOG,
    tails={"tail": LOG},
    stream=LOG,
    view=ViewFound({"a": 2, "b": 2}, (4,), equals_rebuilt=True),
    chain_ok=True,
)


def without(*positions: int) -> tuple[Entry, ...]:
    return tuple(entry for entry in LOG if entry.position not in positions)


def found(log: tuple[Entry, ...], **changes: object) -> Evidence:
    """The evidence with another log, all else following it, so that one thing only is wrong."""
    tally: dict[str, int] = {}
    for each in log:
        if each.type != POISON:
            tally[each.stream] = tally.get(each.stream, 0) + 1
    parked = tuple(each.position for each in log if each.type == POISON)
    view = ViewFound(tally, parked, equals_rebuilt=True)
    return replace(FAULTLESS, log=log, tails={"tail": log}, stream=log, view=view, **changes)


def kinds(evidence: Evidence) -> set[Kind]:
    return {violation.kind for violation in check(evidence)}


def test_a_faultless_history_has_no_violation() -> None:
    assert check(FAULTLESS) == []


@pytest.mark.parametrize("stored", [True, False])
def test_an_unanswered_request_may_be_in_or_out(stored: bool) -> None:
    log = LOG[:3] if stored else LOG[:2]
    assert check(found(log, told=(CREATED, UNANSWERED))) == []


def test_an_acknowledged_event_that_is_gone_is_missing() -> None:
    (violation,) = check(found(LOG[:2], told=(CREATED, replace_answer(UNANSWERED, Acked(3)))))
    assert (violation.kind, violation.step) == (Kind.MISSING, 7)


def replace_answer(before: Told, answer: Answer) -> Told:
    return told(before.request, before.begun_s, answer)


def test_an_event_that_is_stored_again_is_there_twice() -> None:
    log = (*LOG, entry(6, "b1", "b", 3))
    assert kinds(found(log)) == {Kind.TWICE}


@pytest.mark.parametrize("answer", [Unknown("killed"), Acked(4)])
def test_a_request_stored_in_part_is_torn(answer: Answer) -> None:
    torn = replace_answer(OVER_TWO_STREAMS, answer)
    evidence = found(LOG[:4], told=(CREATED, UNANSWERED, torn))
    assert Kind.TORN in kinds(evidence)
    assert kinds(evidence) <= {Kind.TORN, Kind.MISSING}


@pytest.mark.parametrize("answer", [Refused("conflict"), Acked(4, (1,)), Acked(3, (2,))])
def test_an_answer_that_the_log_belies_is_untrue(answer: Answer) -> None:
    evidence = replace(FAULTLESS, told=(CREATED, replace_answer(UNANSWERED, answer), OVER_TWO_STREAMS))
    assert kinds(evidence) == {Kind.UNTRUE}


def test_an_expected_version_that_did_not_hold_is_untrue() -> None:
    wrong = told(Request((Write("b", 1, ("b1",)),)), 1, Acked(3, (1,)))
    assert kinds(replace(FAULTLESS, told=(CREATED, wrong, OVER_TWO_STREAMS))) == {Kind.UNTRUE}


def test_a_log_that_numbers_no_streams_is_not_held_to_versions() -> None:
    log = tuple(replace(each, version=0) for each in LOG)
    assert check(found(log, versioned=False)) == []


def test_an_event_that_the_database_forbids_and_has_is_untrue() -> None:
    forbidden = told(Request((Write("c", None, ("c1",), FORBIDDEN),)), 9, Acked(6, (1,)))
    log = (*LOG, entry(6, "c1", "c", 1, FORBIDDEN))
    assert kinds(found(log, told=(*FAULTLESS.told, forbidden))) == {Kind.UNTRUE}


def test_an_event_nobody_asked_for_is_invented() -> None:
    assert kinds(found((*LOG, entry(6, "x", "c", 1)))) == {Kind.INVENTED}


def test_a_hole_in_the_positions_is_found() -> None:
    log = (*LOG[:4], replace(LOG[4], position=6))
    acked = replace_answer(OVER_TWO_STREAMS, Acked(6, (3, 2)))
    assert kinds(found(log, told=(CREATED, UNANSWERED, acked))) == {Kind.HOLE}


def test_a_hole_in_the_versions_of_a_stream_is_found() -> None:
    log = (*LOG[:2], replace(LOG[2], version=2))
    assert kinds(found(log, told=(CREATED, UNANSWERED))) == {Kind.HOLE}


def test_what_began_after_an_acknowledgement_must_stand_behind_it() -> None:
    late = replace(CREATED, begun_s=5, ended_s=6)
    assert kinds(replace(FAULTLESS, told=(late, UNANSWERED, OVER_TWO_STREAMS))) == {Kind.DISORDER}


def test_a_tail_that_went_past_an_event_is_found() -> None:
    assert kinds(replace(FAULTLESS, tails={"tail": without(3)})) == {Kind.UNSEEN}


def test_a_tail_that_stopped_early_is_found() -> None:
    assert kinds(replace(FAULTLESS, tails={"tail": LOG[:4]})) == {Kind.UNSEEN}


def test_a_tail_that_saw_an_event_twice_is_found() -> None:
    assert kinds(replace(FAULTLESS, tails={"tail": (*LOG, LOG[4])})) == {Kind.TWICE, Kind.DISORDER}


def test_a_tail_that_saw_another_order_is_found() -> None:
    swapped = (LOG[1], LOG[0], *LOG[2:])
    assert kinds(replace(FAULTLESS, tails={"tail": swapped})) == {Kind.DISORDER}


@pytest.mark.parametrize(
    "stream",
    [LOG[:4], (*LOG, LOG[4]), (*LOG[:3], LOG[4]), (*LOG[:4], replace(LOG[4], hash="forged"))],
    ids=["tail lost", "published twice", "gap", "another hash"],
)
def test_a_stream_that_is_not_the_log_is_found(stream: tuple[Entry, ...]) -> None:
    assert kinds(replace(FAULTLESS, stream=stream)) == {Kind.STREAM}


@pytest.mark.parametrize(
    "view",
    [
        ViewFound({"a": 2, "b": 2}, (4,), equals_rebuilt=False),
        ViewFound({"a": 2, "b": 3}, (4,), equals_rebuilt=True),
        ViewFound({"a": 2}, (4,), equals_rebuilt=True),
        ViewFound({"a": 2, "b": 2}, (), equals_rebuilt=True),
        ViewFound({"a": 2, "b": 2}, (4, 5), equals_rebuilt=True),
    ],
    ids=["differs from rebuilt", "counted twice", "not counted", "poison not parked", "parked without reason"],
)
def test_a_view_that_is_not_the_fold_is_found(view: ViewFound) -> None:
    assert kinds(replace(FAULTLESS, view=view)) == {Kind.VIEW}


def test_a_chain_that_does_not_verify_is_found() -> None:
    assert kinds(replace(FAULTLESS, chain_ok=False)) == {Kind.CHAIN}


def test_an_acknowledgement_cannot_be_taken_back() -> None:
    asked = Told(UNANSWERED.request, 0)
    asked.told(Acked(3), 1, step=1)
    asked.attempt()
    asked.told(Refused("conflict"), 2, step=2)
    assert asked.answer == Acked(3)


def test_a_second_attempt_makes_a_refusal_unknown_until_answered() -> None:
    asked = Told(UNANSWERED.request, 0)
    asked.told(Unknown("timeout"), 1, step=1)
    asked.attempt()
    assert isinstance(asked.answer, Unknown)
    asked.told(Refused("conflict"), 2, step=2)
    assert asked.answer == Refused("conflict")
