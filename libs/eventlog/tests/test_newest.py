"""The newest events are served from memory, but only where nothing can be missing."""

from uuid import UUID

from eventlog.newest import Newest, page_of
from eventlog.records import EVERYTHING, Filter, StoredEvent
from eventlog.testing import NOON, a_stream, positions

STREAM = a_stream()


def an_event(position: int, data: bytes = b"{}", type_name: str = "Happened") -> StoredEvent:
    return StoredEvent(
        position, STREAM, position, UUID(int=position), type_name, 1, "local", None, NOON, NOON, None, "", "tester", "",
        data, None, b"", b"",
    )  # fmt: skip


def events(first: int, last: int) -> list[StoredEvent]:
    return [an_event(position) for position in range(first, last + 1)]


def held(newest: Newest, after: int) -> list[int] | None:
    found = newest.after(after)
    return None if found is None else positions(list(found))


def test_what_was_committed_is_held_from_where_it_began() -> None:
    newest = Newest(10, 1_000)
    newest.extend(events(5, 6))
    newest.extend(events(7, 7))
    assert newest.head == 7
    assert held(newest, 4) == [5, 6, 7]
    assert held(newest, 6) == [7]


def test_who_stands_before_it_or_at_its_end_must_ask_the_database() -> None:
    newest = Newest(10, 1_000)
    assert held(newest, 0) is None
    newest.extend(events(5, 7))
    assert held(newest, 3) is None
    assert held(newest, 7) is None
    assert held(newest, 9) is None


def test_what_another_process_appended_in_between_is_never_passed_over() -> None:
    newest = Newest(10, 1_000)
    newest.extend(events(1, 3))
    newest.extend(events(5, 6))
    assert held(newest, 2) is None
    assert held(newest, 3) is None
    assert held(newest, 4) == [5, 6]


def test_a_commit_without_events_changes_nothing() -> None:
    newest = Newest(10, 1_000)
    newest.extend(events(1, 2))
    newest.extend([])
    assert held(newest, 0) == [1, 2]


def test_the_oldest_go_when_there_are_too_many() -> None:
    newest = Newest(3, 1_000)
    newest.extend(events(1, 2))
    newest.extend(events(3, 5))
    assert held(newest, 1) is None
    assert held(newest, 2) == [3, 4, 5]


def test_the_oldest_go_when_they_are_too_large() -> None:
    newest = Newest(10, 100)
    newest.extend([an_event(position, bytes(40)) for position in range(1, 4)])
    assert held(newest, 0) is None
    assert held(newest, 1) == [2, 3]
    newest.extend([an_event(4, bytes(500))])
    assert (newest.head, held(newest, 3)) == (0, None)
    newest.extend(events(5, 5))
    assert held(newest, 4) == [5]


def test_a_page_ends_at_its_limit_and_says_that_there_is_more() -> None:
    assert page_of(events(4, 9), 3, 9, EVERYTHING, 2, 1_000) == (events(4, 5), 5, True)
    assert page_of(events(4, 9), 3, 9, EVERYTHING, 6, 1_000) == (events(4, 9), 9, False)


def test_a_page_ends_with_the_event_that_goes_beyond_its_bytes() -> None:
    page = page_of([an_event(position, bytes(60)) for position in range(1, 5)], 0, 4, EVERYTHING, 10, 100)
    assert (positions(page.events), page.position, page.more) == ([1, 2], 2, True)


def test_a_page_passes_over_what_its_filter_leaves_out() -> None:
    mixed = [an_event(1), an_event(2, type_name="Ended"), an_event(3)]
    page = page_of(mixed, 0, 3, Filter(types=frozenset({"Ended"})), 10, 1_000)
    assert (positions(page.events), page.position, page.more) == ([2], 3, False)
