"""Aggregates: decide on the newest state, whatever happens meanwhile."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from eventlog.aggregates import Aggregates, SnapshotPolicy
from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.errors import UnknownEventType, VersionConflict
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Appended, StoredEvent, StreamId
from eventlog.testing import CONTEXT, NOON, an_append, an_event
from synod.common.event import Event
from synod.common.ids import derived_uuid


class Counted(Event):
    AGGREGATE = "counter"
    by: int


@dataclass(frozen=True)
class Counter:
    total: int = 0
    steps: int = 0


class TooMuch(Exception):
    """The counter's own refusal."""


def evolve(state: Counter, event: Counted) -> Counter:
    return replace(state, total=state.total + event.by, steps=state.steps + 1)


def add(by: int, limit: int = 1_000_000):
    def decide(state: Counter) -> Sequence[Counted]:
        if state.total + by > limit:
            raise TooMuch
        return [Counted(by=by)]

    return decide


SNAPSHOTS = SnapshotPolicy[Counter](
    fold="counter-1",
    dump=lambda state: f"{state.total} {state.steps}".encode(),
    load=lambda data: Counter(*map(int, data.split())),
    every=10,
)


class SpiedLog(MemoryEventLog):
    """Counts the reads and the events read, and lets others come first a number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.events_read = 0
        self.rivals = 0

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        events = await super().read_stream(stream, after=after, limit=limit)
        self.reads += 1
        self.events_read += len(events)
        return events

    async def append(self, *appends: Append) -> Appended:
        if self.rivals:
            self.rivals -= 1
            await super().append(an_append(appends[0].stream, an_event("Counted", b'{"by":100}')))
        return await super().append(*appends)


@pytest.fixture
def log() -> SpiedLog:
    return SpiedLog()


def counters(log: MemoryEventLog, **options: object) -> Aggregates[Counter, Counted]:
    options = {"stopwatch": lambda: 0.0, **options}
    return Aggregates(log, "counter", Counter, evolve, Codec([Counted]), SystemClock(), **options)  # type: ignore[arg-type]


async def filled(log: MemoryEventLog, events: int) -> None:
    counted = [an_event("Counted", b'{"by":1}') for _ in range(events)]
    await log.append(an_append(StreamId("counter", "c1"), *counted))


async def test_an_aggregate_without_events_is_in_its_initial_state(log: SpiedLog) -> None:
    loaded = await counters(log).load("c1")
    assert (loaded.state, loaded.version) == (Counter(), 0)


async def test_a_decision_is_appended_and_folded(log: SpiedLog) -> None:
    executed = await counters(log).execute("c1", add(5), CONTEXT)
    assert (executed.state, executed.version, executed.position) == (Counter(5, 1), 1, 1)
    assert executed.events == (Counted(by=5),)
    assert (await counters(log).load("c1")).state == Counter(5, 1)


async def test_no_events_is_a_decision_that_changes_nothing(log: SpiedLog) -> None:
    executed = await counters(log).execute("c1", lambda state: [], CONTEXT)
    assert (executed.events, executed.position, await log.head()) == ((), 0, 0)


async def test_what_decide_raises_passes_through(log: SpiedLog) -> None:
    with pytest.raises(TooMuch):
        await counters(log).execute("c1", add(5, limit=4), CONTEXT)
    assert await log.head() == 0


async def test_after_a_conflict_the_decision_is_made_on_the_newer_state(log: SpiedLog) -> None:
    log.rivals = 3
    executed = await counters(log).execute("c1", add(5), CONTEXT)
    assert (executed.state.total, executed.version) == (305, 4)


async def test_conflicts_without_end_are_raised(log: SpiedLog) -> None:
    log.rivals = 100
    with pytest.raises(VersionConflict):
        await counters(log).execute("c1", add(5), CONTEXT, retries=2)
    assert log.rivals == 97


async def test_a_command_on_a_cached_state_that_is_the_newest_reads_nothing(log: SpiedLog) -> None:
    aggregates = counters(log)
    await aggregates.execute("c1", add(1), CONTEXT)
    log.reads = 0
    executed = await aggregates.execute("c1", add(1), CONTEXT)
    assert (executed.state, executed.version, log.reads) == (Counter(2, 2), 2, 0)


async def test_a_cached_state_that_others_have_left_behind_is_decided_on_anew(log: SpiedLog) -> None:
    aggregates = counters(log)
    await aggregates.execute("c1", add(1), CONTEXT)
    await counters(log).execute("c1", add(100), CONTEXT)
    executed = await aggregates.execute("c1", add(1), CONTEXT, retries=0)
    assert (executed.state.total, executed.version) == (102, 3)


async def test_what_a_cached_state_refuses_the_newest_may_grant(log: SpiedLog) -> None:
    aggregates = counters(log)
    await aggregates.execute("c1", add(10), CONTEXT)
    await counters(log).execute("c1", add(-10), CONTEXT)
    assert (await aggregates.execute("c1", add(5, limit=5), CONTEXT)).state.total == 5


async def test_that_nothing_is_to_be_done_is_for_the_newest_state_to_say(log: SpiedLog) -> None:
    aggregates = counters(log)
    await aggregates.execute("c1", add(10), CONTEXT)
    await counters(log).execute("c1", add(-10), CONTEXT)
    executed = await aggregates.execute("c1", lambda state: [] if state.total else [Counted(by=1)], CONTEXT)
    assert executed.state.total == 1


async def test_a_command_repeated_on_a_state_of_before_it_is_not_taken_for_another_fact(log: SpiedLog) -> None:
    aggregates, others, ids = counters(log), counters(log), [derived_uuid("request-1")]
    await aggregates.execute("c1", add(1), CONTEXT)

    def top_up(state: Counter) -> Sequence[Counted]:
        return [Counted(by=10 - state.total)] if state.total < 10 else []

    await others.execute("c1", add(2), CONTEXT)
    await others.execute("c1", top_up, CONTEXT, event_ids=ids)
    executed = await aggregates.execute("c1", top_up, CONTEXT, event_ids=ids)
    assert (executed.state.total, executed.version, executed.events) == (10, 3, ())


async def test_commands_on_one_aggregate_take_turns(log: SpiedLog) -> None:
    aggregates = counters(log)
    await asyncio.gather(*[aggregates.execute("c1", add(1), CONTEXT, retries=0) for _ in range(50)])
    assert (await aggregates.load("c1")).state.total == 50


async def test_a_repeated_command_with_its_event_ids_is_stored_once(log: SpiedLog) -> None:
    aggregates = counters(log)

    async def command() -> int:
        executed = await aggregates.execute(
            "c1", add(5), CONTEXT, event_ids=lambda index: derived_uuid("request-1", str(index))
        )
        return executed.position

    assert [await command(), await command()] == [1, 1]
    assert (await aggregates.load("c1")).state.total == 5


async def test_too_few_event_ids_are_refused(log: SpiedLog) -> None:
    with pytest.raises(ValueError, match="1 events were decided, ids are given for 0"):
        await counters(log).execute("c1", add(5), CONTEXT, event_ids=[])


async def test_a_cached_state_is_brought_up_to_date_by_its_newer_events_alone(log: SpiedLog) -> None:
    aggregates = counters(log)
    for _ in range(20):
        await counters(log).execute("c1", add(1), CONTEXT)
    await aggregates.load("c1")
    await counters(log).execute("c1", add(1), CONTEXT)
    log.events_read = 0
    assert (await aggregates.load("c1")).state.total == 21
    assert log.events_read == 1


async def test_the_cache_forgets_what_was_used_least_recently(log: SpiedLog) -> None:
    aggregates = counters(log, cache=2)
    for name in ("c1", "c2", "c3"):
        await aggregates.execute(name, add(1), CONTEXT)
    log.events_read = 0
    await aggregates.load("c3")
    assert log.events_read == 0
    await aggregates.load("c1")
    assert log.events_read == 1


async def test_a_load_from_a_snapshot_equals_the_full_fold(log: SpiedLog) -> None:
    writer = counters(log, snapshots=SNAPSHOTS)
    for number in range(27):
        await writer.execute("c1", add(number), CONTEXT)
    await writer.settle()

    full = await counters(log).load("c1")
    log.events_read = 0
    from_snapshot = await counters(log, snapshots=SNAPSHOTS).load("c1")

    assert from_snapshot == full
    assert log.events_read == 7


async def test_a_long_stream_is_snapshot_by_whoever_loads_it_first(log: SpiedLog) -> None:
    await filled(log, 30)
    reader = counters(log, snapshots=SNAPSHOTS)
    await reader.load("c1")
    await reader.settle()
    log.events_read = 0
    assert (await counters(log, snapshots=SNAPSHOTS).load("c1")).state == Counter(30, 30)
    assert log.events_read == 0


@pytest.mark.parametrize(("fold_s", "events_read"), [(3.0, 0), (3.1, 5)])
async def test_a_slow_fold_is_snapshot_however_few_its_events(log: SpiedLog, fold_s: float, events_read: int) -> None:
    await filled(log, 5)
    ticks = iter([10.0, 13.0])
    reader = counters(log, snapshots=replace(SNAPSHOTS, fold_s=fold_s), stopwatch=lambda: next(ticks))
    await reader.load("c1")
    await reader.settle()
    log.events_read = 0
    await counters(log, snapshots=SNAPSHOTS).load("c1")
    assert log.events_read == events_read


async def test_a_snapshot_of_another_version_of_the_fold_is_not_used(log: SpiedLog) -> None:
    await filled(log, 30)
    former = counters(log, snapshots=replace(SNAPSHOTS, dump=lambda _: b"1 1"))
    await former.load("c1")
    await former.settle()
    newer = replace(SNAPSHOTS, version=2)
    assert (await counters(log, snapshots=SNAPSHOTS).load("c1")).state == Counter(1, 1)
    assert (await counters(log, snapshots=newer).load("c1")).state == Counter(30, 30)


@pytest.mark.parametrize("damaged", [b"", b"no numbers", b"1 2 3", b"\xff"])
async def test_an_unreadable_snapshot_is_folded_anew_and_replaced(log: SpiedLog, damaged: bytes) -> None:
    await filled(log, 30)
    await log.save_snapshot(StreamId("counter", "c1"), 30, SNAPSHOTS.key, damaged)
    reader = counters(log, snapshots=replace(SNAPSHOTS, load=strictly))
    assert (await reader.load("c1")).state == Counter(30, 30)
    await reader.settle()
    log.events_read = 0
    assert (await counters(log, snapshots=SNAPSHOTS).load("c1")).state == Counter(30, 30)
    assert log.events_read == 0


def strictly(data: bytes) -> Counter:
    total, steps = map(int, data.split())
    return Counter(total, steps)


async def test_an_event_that_cannot_be_folded_stops_the_load(log: SpiedLog) -> None:
    await log.append(an_append(StreamId("counter", "c1"), an_event("Foreign")))
    with pytest.raises(UnknownEventType, match="counter cannot fold it"):
        await counters(log).load("c1")


class TickingClock:
    """Each moment is a second after the one before."""

    def __init__(self) -> None:
        self.at = NOON

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at


async def test_a_state_is_loaded_as_it_was_at_a_moment() -> None:
    log = MemoryEventLog(clock=TickingClock())
    counters = Aggregates(log, "counter", Counter, evolve, Codec([Counted]), SystemClock(), snapshots=SNAPSHOTS)
    for _ in range(15):
        await counters.execute("c1", add(1), CONTEXT)
    times = [event.recorded_at for event in await log.read()]
    assert (await counters.load_as_of("c1", times[3])).state == Counter(4, 4)
    assert (await counters.load_as_of("c1", times[4] - timedelta(microseconds=1))).version == 4
    assert (await counters.load_as_of("c1", NOON)).state == Counter()
    assert (await counters.load_as_of("c1", times[-1])) == await counters.load("c1")
