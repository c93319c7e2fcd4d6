"""The contracts of a log and of a master key as tests, and builders for them.

An implementation is tested by a subclass of EventLogContract that brings an empty log:

    class TestMyEventLog(EventLogContract):
        @pytest.fixture
        async def log(self): ...
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from synod.common.ids import uuid7

from eventlog.chain import GENESIS, sealed
from eventlog.errors import DuplicateEventId, EventTooLarge, FenceLost, KeyUnusable, VersionConflict
from eventlog.fences import take_fence
from eventlog.log import EventLog
from eventlog.master_keys import MasterKey
from eventlog.records import (
    ANY,
    NO_STREAM,
    Append,
    Appended,
    Context,
    ExpectedVersion,
    Fence,
    Filter,
    NewEvent,
    StoredEvent,
    StreamEnd,
    StreamId,
    VerifiedStream,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CONTEXT = Context(tenant="local", actor="tester")


def an_event(type_name: str = "Happened", data: bytes = b"{}", *, event_id: UUID | None = None) -> NewEvent:
    """A new event at noon."""
    return NewEvent(type_name, 1, data, event_id or uuid7(), NOON)


def an_append(
    stream: StreamId, *events: NewEvent, expected: ExpectedVersion = ANY, context: Context = CONTEXT
) -> Append:
    """An append of `events`, or of one event that does not matter."""
    return Append(stream, expected, events or (an_event(),), context)


def a_stream(aggregate: str = "order") -> StreamId:
    """A stream nobody else uses."""
    return StreamId(aggregate, uuid7().hex)


async def race(log: EventLog, stream: StreamId, racers: int, expected: int) -> list[Appended | BaseException]:
    """What each of `racers` callers gets who all append at once expecting the same version."""
    attempts = [log.append(an_append(stream, expected=expected)) for _ in range(racers)]
    return await asyncio.gather(*attempts, return_exceptions=True)


def positions(events: Sequence[StoredEvent]) -> list[int]:
    return [event.position for event in events]


def rechained(events: Sequence[StoredEvent]) -> list[StoredEvent]:
    """Events that follow each other as a forger stores them who leaves no trace: every hash of both chains is that of
    the events before them as they are here.
    """
    forged: list[StoredEvent] = []
    ends: dict[StreamId, bytes] = {}
    previous = events[0].previous_hash
    for event in events:
        linked = event._replace(stream_previous_hash=ends.get(event.stream, event.stream_previous_hash))
        forged.append(sealed(linked, previous))
        previous = ends[event.stream] = forged[-1].hash
    return forged


class EventLogContract:
    """What every EventLog does. Subclasses give a fixture `log`: an empty EventLog."""

    async def test_an_empty_log_has_head_0_and_verifies(self, log: EventLog) -> None:
        assert await log.head() == 0
        assert await log.read() == []
        assert (await log.verify()).ok

    async def test_append_returns_position_and_version_of_the_last_event(self, log: EventLog) -> None:
        appended = await log.append(an_append(a_stream(), an_event(), an_event(), expected=NO_STREAM))
        assert appended == Appended(position=2, versions=(2,), duplicate=False)
        assert await log.head() == 2

    async def test_every_column_is_read_as_it_was_appended(self, log: EventLog) -> None:
        stream, cause = a_stream(), uuid7()
        at = datetime(2026, 2, 3, 4, 5, 6, 789_012, tzinfo=UTC)
        event = NewEvent("Paid", 3, b'{"amount":"\xc3\xa9"}', uuid7(), at, data_subject="user-7")
        context = Context("acme", "agent zoë", "corr-1", cause, "00-ab-cd-01")

        await log.append(Append(stream, NO_STREAM, (event,), context))

        (stored,) = await log.read()
        assert (stored.position, stored.stream, stored.version) == (1, stream, 1)
        assert (stored.id, stored.type, stored.type_version) == (event.id, "Paid", 3)
        assert (stored.tenant, stored.actor, stored.correlation) == ("acme", "agent zoë", "corr-1")
        assert (stored.causation, stored.traceparent) == (cause, "00-ab-cd-01")
        assert (stored.occurred_at, stored.data_subject, stored.data) == (at, "user-7", event.data)
        assert stored.recorded_at.utcoffset() == timedelta(0)
        assert len(stored.hash) == len(stored.previous_hash) == 32

    async def test_optional_columns_may_be_absent(self, log: EventLog) -> None:
        await log.append(an_append(a_stream()))
        (stored,) = await log.read()
        assert stored.causation is None
        assert stored.data_subject is None

    async def test_an_expected_version_that_is_not_the_actual_one_conflicts(self, log: EventLog) -> None:
        stream = a_stream()
        await log.append(an_append(stream, expected=NO_STREAM))
        with pytest.raises(VersionConflict) as conflict:
            await log.append(an_append(stream, expected=NO_STREAM))
        assert (conflict.value.stream, conflict.value.expected, conflict.value.actual) == (stream, 0, 1)
        assert await log.head() == 1

    async def test_of_20_racers_one_wins(self, log: EventLog) -> None:
        stream = a_stream()
        results = await race(log, stream, 20, expected=NO_STREAM)
        assert sum(isinstance(result, Appended) for result in results) == 1
        assert sum(isinstance(result, VersionConflict) for result in results) == 19
        assert await log.head() == 1

    async def test_a_conflict_fails_only_its_own_caller(self, log: EventLog) -> None:
        taken = a_stream()
        await log.append(an_append(taken))
        good = [log.append(an_append(a_stream(), expected=NO_STREAM)) for _ in range(10)]
        bad = log.append(an_append(taken, expected=NO_STREAM))
        results = await asyncio.gather(*good[:5], bad, *good[5:], return_exceptions=True)
        assert [type(result) for result in results] == [Appended] * 5 + [VersionConflict] + [Appended] * 5

    async def test_concurrent_appends_leave_no_gap(self, log: EventLog) -> None:
        await asyncio.gather(*[log.append(an_append(a_stream(), an_event(), an_event())) for _ in range(100)])
        assert positions(await log.read()) == list(range(1, 201))

    async def test_several_streams_are_appended_to_together_or_not_at_all(self, log: EventLog) -> None:
        first, second = a_stream(), a_stream()
        appended = await log.append(an_append(first, an_event(), an_event()), an_append(second))
        assert appended.versions == (2, 1)
        with pytest.raises(VersionConflict):
            await log.append(an_append(first, expected=2), an_append(second, expected=7))
        assert [len(await log.read_stream(s)) for s in (first, second)] == [2, 1]

    async def test_an_append_without_events_guards_another_stream(self, log: EventLog) -> None:
        guarded, written = a_stream(), a_stream()
        await log.append(an_append(guarded))
        guard = Append(guarded, 1, (), CONTEXT)
        assert (await log.append(guard, an_append(written))).versions == (1, 1)
        await log.append(an_append(guarded))
        with pytest.raises(VersionConflict):
            await log.append(guard, an_append(written))

    async def test_one_stream_twice_in_a_request_counts_on(self, log: EventLog) -> None:
        stream = a_stream()
        appended = await log.append(an_append(stream, expected=0), an_append(stream, expected=1))
        assert appended.versions == (1, 2)

    async def test_a_conflict_on_any_stream_of_a_request_stores_nothing_of_it(self, log: EventLog) -> None:
        streams = [a_stream() for _ in range(4)]
        await log.append(an_append(streams[2]))
        for refused in (0, 1, 3):
            expected = [0, 0, 1, 0]
            expected[refused] = 9
            with pytest.raises(VersionConflict) as conflict:
                await log.append(*[an_append(s, expected=e) for s, e in zip(streams, expected, strict=True)])
            assert conflict.value.stream == streams[refused]
        assert await log.head() == 1
        stored = await log.append(*[an_append(s, expected=e) for s, e in zip(streams, [0, 0, 1, 0], strict=True)])
        assert (stored.position, stored.versions) == (5, (1, 1, 2, 1))

    async def test_a_request_over_several_streams_is_repeated_as_a_whole(self, log: EventLog) -> None:
        request = [an_append(a_stream(), an_event(), an_event(), expected=0), an_append(a_stream(), expected=0)]
        first = await log.append(*request)
        await log.append(an_append(request[0].stream))
        assert await log.append(*request) == Appended(first.position, first.versions, duplicate=True)
        with pytest.raises(DuplicateEventId, match="others are not"):
            await log.append(*request, an_append(a_stream()))
        assert await log.head() == 4

    async def test_a_stored_id_is_refused_on_another_stream(self, log: EventLog) -> None:
        event = an_event()
        await log.append(an_append(a_stream(), event))
        with pytest.raises(DuplicateEventId, match="other content"):
            await log.append(an_append(a_stream(), event))
        with pytest.raises(DuplicateEventId, match="twice"):
            await log.append(*[an_append(a_stream(), same) for same in (an_event(),) * 2])
        assert await log.head() == 1

    async def test_requests_over_crossing_streams_are_each_stored_whole(self, log: EventLog) -> None:
        left, right = a_stream(), a_stream()
        racers = [log.append(an_append(a, expected=0), an_append(b, expected=0)) for a, b in [(left, right)] * 5]
        racers += [log.append(an_append(b, expected=0), an_append(a, expected=0)) for a, b in [(left, right)] * 5]
        results = await asyncio.gather(*racers, return_exceptions=True)
        assert [type(result) for result in results].count(Appended) == 1
        assert [len(await log.read_stream(stream)) for stream in (left, right)] == [1, 1]

    async def test_an_append_under_the_epoch_that_holds_is_stored(self, log: EventLog) -> None:
        fence = await take_fence(log, "run-7", CONTEXT, NOON)
        assert fence == Fence("run-7", 1)
        stream = a_stream()
        assert (await log.append(replace(an_append(stream, expected=0), fence=fence))).versions == (1,)
        assert (await log.append(replace(an_append(stream, expected=1), fence=fence))).versions == (2,)

    async def test_the_next_epoch_shuts_out_every_earlier_one(self, log: EventLog) -> None:
        stream = a_stream()
        former, current = [await take_fence(log, "run-7", CONTEXT, NOON) for _ in range(2)]
        with pytest.raises(FenceLost) as lost:
            await log.append(replace(an_append(stream), fence=former))
        assert (lost.value.name, lost.value.epoch, lost.value.current) == ("run-7", 1, 2)
        await log.append(replace(an_append(stream, expected=0), fence=current))
        assert len(await log.read_stream(stream)) == 1

    async def test_a_lost_fence_refuses_all_streams_of_the_request(self, log: EventLog) -> None:
        former, _ = [await take_fence(log, "run-7", CONTEXT, NOON) for _ in range(2)]
        with pytest.raises(FenceLost):
            await log.append(an_append(a_stream()), replace(an_append(a_stream()), fence=former))
        assert await log.head() == 2

    async def test_an_epoch_nobody_took_does_not_hold(self, log: EventLog) -> None:
        with pytest.raises(FenceLost):
            await log.append(replace(an_append(a_stream()), fence=Fence("run-7", 1)))

    async def test_fences_of_other_names_do_not_meet(self, log: EventLog) -> None:
        mine = await take_fence(log, "run-7", CONTEXT, NOON)
        await take_fence(log, "run-8", CONTEXT, NOON)
        assert (await log.append(replace(an_append(a_stream()), fence=mine))).position == 3

    async def test_of_many_who_take_a_fence_at_once_each_gets_an_epoch_of_its_own(self, log: EventLog) -> None:
        fences = await asyncio.gather(*[take_fence(log, "run-7", CONTEXT, NOON) for _ in range(10)])
        assert sorted(fence.epoch for fence in fences) == list(range(1, 11))

    async def test_a_repeated_taking_gets_the_same_epoch(self, log: EventLog) -> None:
        event_id = uuid7()
        epochs = [await take_fence(log, "run-7", CONTEXT, NOON, event_id=event_id) for _ in range(2)]
        assert epochs == [Fence("run-7", 1)] * 2

    async def test_what_was_stored_under_a_fence_stays_a_duplicate_when_it_is_lost(self, log: EventLog) -> None:
        fence = await take_fence(log, "run-7", CONTEXT, NOON)
        append = replace(an_append(a_stream(), expected=0), fence=fence)
        await log.append(append)
        await take_fence(log, "run-7", CONTEXT, NOON)
        assert (await log.append(append)).duplicate

    async def test_an_append_of_stored_ids_succeeds_as_duplicate_whatever_it_expects(self, log: EventLog) -> None:
        append = an_append(a_stream(), an_event(), an_event(), expected=NO_STREAM)
        first = await log.append(append)
        await log.append(an_append(a_stream()))
        assert await log.append(append) == Appended(first.position, first.versions, duplicate=True)
        assert await log.head() == 3

    async def test_an_id_appended_many_times_at_once_is_stored_once(self, log: EventLog) -> None:
        append = an_append(a_stream())
        results = await asyncio.gather(*[log.append(append) for _ in range(10)])
        assert {result.position for result in results} == {1}
        assert [result.duplicate for result in results].count(False) == 1

    async def test_a_stored_id_with_other_content_is_refused(self, log: EventLog) -> None:
        stream, event_id = a_stream(), uuid7()
        await log.append(an_append(stream, an_event(data=b"1", event_id=event_id)))
        with pytest.raises(DuplicateEventId, match="other content") as refused:
            await log.append(an_append(stream, an_event(data=b"2", event_id=event_id)))
        assert refused.value.event_id == event_id

    async def test_a_request_stored_in_part_is_refused(self, log: EventLog) -> None:
        stream, event = a_stream(), an_event()
        await log.append(an_append(stream, event))
        with pytest.raises(DuplicateEventId, match="others are not"):
            await log.append(an_append(stream, event, an_event()))
        assert await log.head() == 1

    async def test_an_id_twice_in_one_request_is_refused(self, log: EventLog) -> None:
        event = an_event()
        with pytest.raises(DuplicateEventId, match="twice"):
            await log.append(an_append(a_stream(), event, event))

    async def test_nothing_to_append_and_too_much_data_are_refused(self, log: EventLog) -> None:
        with pytest.raises(ValueError, match="1 to 1000 events"):
            await log.append()
        with pytest.raises(EventTooLarge) as refused:
            await log.append(an_append(a_stream(), an_event(data=bytes(800_000))))
        assert refused.value.size == 800_000

    async def test_reading_goes_on_after_a_position_up_to_a_limit(self, log: EventLog) -> None:
        await log.append(an_append(a_stream(), *[an_event() for _ in range(10)]))
        assert positions(await log.read(3, limit=4)) == [4, 5, 6, 7]
        assert positions(await log.read(10)) == []

    async def test_a_follower_reads_page_by_page_and_is_told_whether_there_is_more(self, log: EventLog) -> None:
        await log.append(an_append(a_stream(), *[an_event() for _ in range(5)]))
        first = await log.next_page(0, limit=3)
        assert (positions(first.events), first.position, first.more) == ([1, 2, 3], 3, True)
        second = await log.next_page(3, limit=3)
        assert (positions(second.events), second.position, second.more) == ([4, 5], 5, False)
        nothing = await log.next_page(5)
        assert (list(nothing.events), nothing.position, nothing.more) == ([], 5, False)
        assert list(first.events) + list(second.events) == await log.read()

    async def test_a_follower_with_a_filter_passes_over_the_rest(self, log: EventLog) -> None:
        await log.append(an_append(a_stream(), an_event("Ended"), an_event(), an_event("Ended"), an_event()))
        where = Filter(types=frozenset({"Ended"}))
        page = await log.next_page(0, where=where)
        assert (positions(page.events), page.position, page.more) == ([1, 3], 4, False)
        page = await log.next_page(0, limit=1, where=where)
        assert (positions(page.events), page.position, page.more) == ([1], 1, True)

    async def test_a_follower_misses_nothing_and_sees_nothing_twice_while_many_append(self, log: EventLog) -> None:
        async def follow() -> list[int]:
            seen: list[int] = []
            while len(seen) < 300:
                page = await log.next_page(seen[-1] if seen else 0, limit=7)
                seen += positions(page.events)
                if not page.events:
                    await log.wait_for(page.position + 1, timeout_s=30)
            return seen

        followers = [asyncio.create_task(follow()) for _ in range(3)]
        await asyncio.gather(*[log.append(an_append(a_stream(), an_event(), an_event())) for _ in range(150)])
        async with asyncio.timeout(30):
            assert await asyncio.gather(*followers) == [list(range(1, 301))] * 3

    async def test_events_are_read_by_the_time_they_were_recorded(self, log: EventLog) -> None:
        for _ in range(4):
            await log.append(an_append(a_stream()))
        times = [event.recorded_at for event in await log.read()]
        assert times == sorted(times)

        def expected(since: datetime, until: datetime) -> list[int]:
            return [position for position, at in enumerate(times, 1) if since <= at < until]

        before, after = times[0] - timedelta(seconds=1), times[3] + timedelta(seconds=1)
        for since, until in ((times[1], after), (before, times[2]), (times[1], times[2]), (before, before)):
            where = Filter(since=since, until=until)
            assert positions(await log.read(where=where)) == expected(since, until)
            page = await log.next_page(where=where)
            assert (positions(page.events), page.position) == (expected(since, until), 4)
        assert positions(await log.read(2, where=Filter(since=before))) == [3, 4]

    async def test_a_moment_without_a_time_zone_is_refused(self, log: EventLog) -> None:
        with pytest.raises(ValueError, match="naive"):
            await log.read(where=Filter(since=datetime(2026, 1, 1)))  # noqa: DTZ001

    async def test_the_log_as_of_a_moment_ends_with_what_was_recorded_by_then(self, log: EventLog) -> None:
        assert await log.position_at(NOON) == 0
        for _ in range(9):
            await log.append(an_append(a_stream()))
        times = [event.recorded_at for event in await log.read()]
        assert await log.position_at(times[0] - timedelta(microseconds=1)) == 0
        for at in times:
            assert await log.position_at(at) == times.index(at) + times.count(at)
        assert await log.position_at(times[-1] + timedelta(days=1)) == 9

    async def test_a_stream_is_read_by_version(self, log: EventLog) -> None:
        stream = a_stream()
        for _ in range(3):
            await log.append(an_append(stream), an_append(a_stream()))
        events = await log.read_stream(stream, after=1)
        assert [(event.version, event.position) for event in events] == [(2, 3), (3, 5)]
        assert len(await log.read_stream(stream, limit=2)) == 2

    async def test_a_filter_narrows_what_is_read(self, log: EventLog) -> None:
        order, invoice = a_stream("order"), a_stream("invoice")
        await log.append(an_append(order, an_event("Placed"), an_event("Paid")))
        await log.append(an_append(invoice, an_event("Sent"), context=Context("acme", "x", correlation="run-1")))
        await log.append(an_append(a_stream("orders"), an_event("Placed")))

        async def found(where: Filter) -> list[int]:
            return positions(await log.read(where=where))

        assert await found(Filter(types=frozenset({"Paid", "Sent"}))) == [2, 3]
        assert await found(Filter(tenant="acme")) == [3]
        assert await found(Filter(aggregate="order")) == [1, 2]
        assert await found(Filter(correlation="run-1")) == [3]
        assert await found(Filter(stream=order)) == [1, 2]
        assert await found(Filter(aggregate="order", types=frozenset({"Placed"}))) == [1]

    async def test_a_waiter_wakes_when_the_position_is_reached(self, log: EventLog) -> None:
        waiting = asyncio.create_task(log.wait_for(2, timeout_s=30))
        await log.append(an_append(a_stream()))
        assert not waiting.done()
        await log.append(an_append(a_stream()))
        assert await waiting == 2

    async def test_a_waiter_gets_the_head_when_the_time_is_over(self, log: EventLog) -> None:
        await log.append(an_append(a_stream()))
        assert await log.wait_for(1, timeout_s=30) == 1
        assert await log.wait_for(2, timeout_s=0.01) == 1

    async def test_each_event_is_chained_to_its_predecessor(self, log: EventLog) -> None:
        await asyncio.gather(*[log.append(an_append(a_stream())) for _ in range(30)])
        events = await log.read()
        assert events[0].previous_hash == bytes(32)
        assert [event.previous_hash for event in events[1:]] == [event.hash for event in events[:-1]]
        verified = await log.verify()
        assert (verified.ok, verified.first, verified.last, verified.events) == (True, 1, 30, 30)

    async def test_every_event_names_the_one_before_it_in_its_stream(self, log: EventLog) -> None:
        """Over requests, in one request, twice in one, and past a guard that appends nothing."""
        busy, other = a_stream(), a_stream()
        await log.append(an_append(busy, an_event(), an_event()), an_append(other), an_append(busy))
        await asyncio.gather(*[log.append(an_append(busy), an_append(other, an_event(), an_event())) for _ in range(5)])
        await log.append(Append(busy, 8, (), CONTEXT), an_append(other))
        await log.append(an_append(busy))
        for stream, count in ((busy, 9), (other, 12)):
            events = await log.read_stream(stream)
            hashes = [GENESIS, *[event.hash for event in events]]
            assert [event.stream_previous_hash for event in events] == hashes[:-1]
            assert len(events) == count

    async def test_what_was_refused_leaves_no_trace_in_the_chain_of_its_stream(self, log: EventLog) -> None:
        stream = a_stream()
        requests = [an_append(stream, expected=version) for version in (0, 7, 1, 1, 2)]
        await asyncio.gather(*map(log.append, requests), return_exceptions=True)
        found = await log.verify_stream(stream)
        assert (found.ok, found.events, len(found.ends)) == (True, 3, 1)

    async def test_a_stream_verifies_alone(self, log: EventLog) -> None:
        stream = a_stream()
        for _ in range(3):
            await log.append(an_append(stream), an_append(a_stream()))
        last = (await log.read_stream(stream))[-1]
        found = await log.verify_stream(stream)
        assert found == VerifiedStream(stream, 3, (StreamEnd(3, last.position, last.hash),))
        unknown = a_stream()
        assert await log.verify_stream(unknown) == VerifiedStream(unknown, 0)

    async def test_a_range_is_verified_on_its_own(self, log: EventLog) -> None:
        await log.append(an_append(a_stream(), *[an_event() for _ in range(10)]))
        verified = await log.verify(4, 6)
        assert (verified.ok, verified.events) == (True, 3)

    async def test_a_range_beyond_the_head_is_not_found_good(self, log: EventLog) -> None:
        await log.append(an_append(a_stream()))
        verified = await log.verify(1, 3)
        assert (verified.ok, verified.broken_at) == (False, 2)

    async def test_the_newest_snapshot_of_a_fold_is_loaded(self, log: EventLog) -> None:
        stream = a_stream()
        assert await log.load_snapshot(stream, "sum-1") is None
        await log.save_snapshot(stream, 20, "sum-1", b"twenty")
        await log.save_snapshot(stream, 10, "sum-1", b"ten")
        await log.save_snapshot(stream, 10, "sum-2", b"other")
        snapshot = await log.load_snapshot(stream, "sum-1")
        assert snapshot is not None
        assert (snapshot.version, snapshot.data) == (20, b"twenty")


class MasterKeyContract:
    """What every MasterKey keeps, that of a key management service too.

    A subclass brings two fixtures: `master`, a key, and `other`, a different one of the same kind.
    """

    async def test_what_is_wrapped_is_unwrapped(self, master: MasterKey) -> None:
        wrapped = await master.wrap(b"k" * 32, b"for one")
        assert await master.unwrap(wrapped, b"for one") == b"k" * 32

    async def test_a_wrapped_key_does_not_show_the_key(self, master: MasterKey) -> None:
        assert b"k" * 32 not in await master.wrap(b"k" * 32, b"for one")

    async def test_the_same_key_wrapped_twice_looks_different(self, master: MasterKey) -> None:
        assert await master.wrap(b"k" * 32, b"for one") != await master.wrap(b"k" * 32, b"for one")

    async def test_a_key_is_unwrapped_for_what_it_was_wrapped_for_only(self, master: MasterKey) -> None:
        wrapped = await master.wrap(b"k" * 32, b"for one")
        with pytest.raises(KeyUnusable):
            await master.unwrap(wrapped, b"for another")

    async def test_a_damaged_wrapped_key_is_refused(self, master: MasterKey) -> None:
        wrapped = await master.wrap(b"k" * 32, b"for one")
        for damaged in (
            b"",
            wrapped[:-1],
            bytes([wrapped[0] ^ 1]) + wrapped[1:],
            wrapped[:-1] + bytes([wrapped[-1] ^ 1]),
        ):
            with pytest.raises(KeyUnusable):
                await master.unwrap(damaged, b"for one")

    async def test_another_master_key_neither_unwraps_it_nor_has_its_name(
        self, master: MasterKey, other: MasterKey
    ) -> None:
        wrapped = await master.wrap(b"k" * 32, b"for one")
        assert master.key_id != other.key_id
        with pytest.raises(KeyUnusable):
            await other.unwrap(wrapped, b"for one")

    async def test_the_name_of_a_key_stays(self, master: MasterKey) -> None:
        name = master.key_id
        await master.wrap(b"k" * 32, b"for one")
        assert master.key_id == name
        assert name


class FakeKms:
    """A key management service: it keeps its master keys, and counts what is asked of it. `down` makes it fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.down = False
        self._keys: dict[str, AESGCM] = {}

    def create_key(self) -> str:
        """The name of a new key."""
        name = f"kms-{len(self._keys) + 1}"
        self._keys[name] = AESGCM(AESGCM.generate_key(256))
        return name

    def encrypt(self, name: str, text: bytes, context: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._key(name, "encrypt").encrypt(nonce, text, context)

    def decrypt(self, name: str, text: bytes, context: bytes) -> bytes:
        try:
            return self._key(name, "decrypt").decrypt(text[:12], text[12:], context)
        except (InvalidTag, ValueError) as error:
            raise KeyUnusable(name, "the service refuses what is not its own") from error

    def _key(self, name: str, deed: str) -> AESGCM:
        self.calls.append(deed)
        if self.down:
            raise KeyUnusable(name, "the service does not answer")
        return self._keys[name]


@dataclass(frozen=True, slots=True)
class KmsMasterKey:
    """The MasterKey that stands for one key in the service: the key itself never comes here."""

    kms: FakeKms
    key_id: str

    async def wrap(self, key: bytes, context: bytes) -> bytes:
        return self.kms.encrypt(self.key_id, key, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return self.kms.decrypt(self.key_id, wrapped, context)
