"""Events of several logs become one story in which no effect comes before its cause."""

from itertools import permutations

from google.protobuf.timestamp_pb2 import Timestamp
from synod.eventlog.v1.eventlog_pb2 import Event
from synod_client.causality import in_causal_order


def an_event(id: str, at: int, cause: str = "") -> Event:
    return Event(id=id, recorded_at=Timestamp(seconds=at), causation_id=cause)


def told(**logs: list[Event]) -> list[str]:
    return [logged.event.id for logged in in_causal_order(logs)]


def test_events_of_one_log_stay_in_their_order_whatever_their_times() -> None:
    assert told(runtime=[an_event("a", 3), an_event("b", 1), an_event("c", 2)]) == ["a", "b", "c"]


def test_events_without_a_common_cause_come_by_time() -> None:
    assert told(runtime=[an_event("a", 1), an_event("c", 3)], ledger=[an_event("b", 2), an_event("d", 4)]) == [
        "a", "b", "c", "d",
    ]  # fmt: skip


def test_an_effect_comes_after_its_cause_although_its_clock_is_behind() -> None:
    runtime = [an_event("asked", 100), an_event("answered", 101, cause="charged")]
    ledger = [an_event("reserved", 5, cause="asked"), an_event("charged", 6, cause="reserved")]
    assert told(runtime=runtime, ledger=ledger) == ["asked", "reserved", "charged", "answered"]
    assert told(ledger=ledger, runtime=runtime) == ["asked", "reserved", "charged", "answered"]


def test_what_follows_a_waiting_event_in_its_log_waits_too() -> None:
    ledger = [an_event("effect", 1, cause="late"), an_event("after", 2)]
    assert told(ledger=ledger, runtime=[an_event("first", 50), an_event("late", 60)]) == [
        "first", "late", "effect", "after",
    ]  # fmt: skip


def test_a_cause_outside_the_story_is_not_waited_for() -> None:
    assert told(ledger=[an_event("a", 2, cause="elsewhere")], runtime=[an_event("b", 1)]) == ["b", "a"]


def test_the_order_does_not_depend_on_the_order_of_the_logs() -> None:
    logs = {
        "runtime": [an_event("a", 1), an_event("e", 9, cause="d")],
        "ledger": [an_event("b", 1, cause="a"), an_event("d", 2, cause="c")],
        "tools": [an_event("c", 1, cause="b")],
    }
    orders = {
        tuple(logged.event.id for logged in in_causal_order({name: logs[name] for name in names}))
        for names in permutations(logs)
    }
    assert orders == {("a", "b", "c", "d", "e")}


def test_a_circle_of_causes_loses_no_event() -> None:
    runtime, ledger = [an_event("a", 2, cause="b"), an_event("c", 3)], [an_event("b", 1, cause="a")]
    assert told(runtime=runtime, ledger=ledger) == ["b", "a", "c"]


def test_an_event_that_names_itself_as_cause_is_told() -> None:
    assert told(runtime=[an_event("a", 1, cause="a")]) == ["a"]


def test_no_events_are_no_story() -> None:
    assert told(runtime=[], ledger=[]) == []
