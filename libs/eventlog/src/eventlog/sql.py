"""Tables and statements of a log, rendered once for its schema.

`head` is one row: the lock that serialises writers of all processes, and the end of the chain. Positions are handed
out under that lock, so they are contiguous and become visible in order: a reader that follows positions misses nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Final

from psycopg.sql import SQL, Identifier, Literal

from eventlog.admission import Head
from eventlog.arrays import BIGINTS, BYTEAS, NULL, TEXTS, TIMES, UUIDS, column, columns, length_of, sized_text
from eventlog.binary import from_int, from_time, microseconds
from eventlog.records import EVERYTHING, Filter, StoredEvent, name_bytes, parse_stream, stream_bytes
from eventlog.side_table import SideRow, SideTable

_TABLES = """
create schema if not exists {schema};
create table if not exists {schema}.head (
    one boolean primary key default true check (one),
    position bigint not null,
    hash bytea not null,
    archived_to bigint not null default 0,
    recorded_at timestamptz not null default 'epoch'
) with (fillfactor = 10);
create table if not exists {schema}.events (
    position bigint primary key,
    stream text collate "C" not null,
    version bigint not null,
    id uuid not null unique,
    type text not null,
    type_version integer not null,
    tenant text not null,
    data_subject text,
    occurred_at timestamptz not null,
    recorded_at timestamptz not null,
    causation uuid,
    correlation text not null,
    actor text not null,
    traceparent text not null,
    data bytea not null,
    previous_hash bytea not null,
    hash bytea not null,
    stream_previous_hash bytea,
    unique (stream, version)
);
create table if not exists {schema}.snapshots (
    stream text collate "C" not null,
    fold text not null,
    version bigint not null,
    data bytea not null,
    primary key (stream, fold)
);
create table if not exists {schema}.archived_segments (
    first bigint primary key,
    last bigint not null,
    file text not null,
    size bigint not null,
    sha256 bytea not null,
    index_at bigint not null,
    subjects_noted boolean not null default false
);
create table if not exists {schema}.archived_events (
    position bigint primary key,
    id uuid not null unique,
    hash bytea not null
);
create table if not exists {schema}.archived_subjects (
    position bigint primary key,
    stream text collate "C" not null,
    type text not null,
    tenant text not null,
    data_subject text not null
);
create index if not exists archived_subjects_by_name on {schema}.archived_subjects (tenant, data_subject);
create table if not exists {schema}.archived_streams (
    stream text collate "C" not null,
    segment bigint not null,
    version bigint not null,
    hash bytea,
    primary key (stream, segment)
);
-- Asked first: altering a table waits for everybody who uses it, also when there is nothing to alter.
do $$ begin
    if not exists (
        select from pg_attribute where attrelid = {head_name}::regclass and attname = 'archived_to'
    ) then
        alter table {schema}.head add column archived_to bigint not null default 0;
    end if;
    if not exists (
        select from pg_attribute where attrelid = {head_name}::regclass and attname = 'recorded_at'
    ) then
        alter table {schema}.head add column recorded_at timestamptz not null default 'epoch';
        update {schema}.head set recorded_at = newest.recorded_at
            from (select recorded_at from {schema}.events order by position desc limit 1) newest;
    end if;
    -- Without a value for events, and for streams archived, of before there was a chain for each stream. At the end of the
    -- table also where it is made anew: one layout for all.
    if not exists (
        select from pg_attribute where attrelid = {events_name}::regclass and attname = 'stream_previous_hash'
    ) then
        alter table {schema}.events add column stream_previous_hash bytea;
    end if;
    if not exists (
        select from pg_attribute where attrelid = {archived_streams_name}::regclass and attname = 'hash'
    ) then
        alter table {schema}.archived_streams add column hash bytea;
    end if;
    -- Empty but for those of before: so whoever opens the log finds at once that none is left.
    if to_regclass({unhashed_name}) is null then
        create index archived_streams_unhashed on {schema}.archived_streams (segment) where hash is null;
    end if;
    -- False for segments of before there was the table archived_subjects: whom their events are about is noted at the open.
    if not exists (
        select from pg_attribute where attrelid = {segments_name}::regclass and attname = 'subjects_noted'
    ) then
        alter table {schema}.archived_segments add column subjects_noted boolean not null default false;
    end if;
    -- Finds a run, or a rare type, among millions. It costs an append next to nothing: it is kept per 64 pages, afterwards.
    if to_regclass({found_by_name}) is null then
        create index events_found_by on {schema}.events
            using brin (correlation text_bloom_ops, type text_bloom_ops) with (pages_per_range = 64, autosummarize = on);
    end if;
    if to_regclass({hashes_name}) is null then
        create view {schema}.hashes as
            select position, hash from {schema}.archived_events union all select position, hash from {schema}.events;
    end if;
    if to_regclass({subjects_name}) is null then
        create view {schema}.subjects as
            select position, stream, type, tenant, data_subject from {schema}.archived_subjects
            union all
            select position, stream, type, tenant, data_subject from {schema}.events where data_subject is not null;
    end if;
end $$;
insert into {schema}.head (position, hash) values (0, '\\x{genesis}') on conflict do nothing;
"""

_new_event: Callable[[tuple[Any, ...]], StoredEvent] = partial(tuple.__new__, StoredEvent)
_COLUMNS = ", ".join(StoredEvent._fields)
_ORDER = b" order by position limit "
# One row of arrays instead of a row for each event: half the work for who reads many. Before them stands how far events
# had been archived in the snapshot that was read: who expects any up to there has to look for them in the files.
_ARCHIVED_TO = "(select archived_to from {schema}.head)"
_ARRAYS = f"select {_ARCHIVED_TO}, {', '.join(f'array_agg({name})' for name in StoredEvent._fields)} from"
_READ = f"{_ARRAYS} (select {_COLUMNS} from {{schema}}.events where position > %b order by position limit %b) ordered"
_READ_STREAM = (
    f"{_ARRAYS} (select {_COLUMNS} from {{schema}}.events where stream = %b and version > %b"
    " order by version limit %b) ordered"
)

# Halves the log until one position is left: some twenty look-ups for a million events, and no index on the time. What is
# no longer in the table is old.
_POSITION_AT = f"""
with recursive bisection (low, high) as (
    select 0::bigint, position + 1 from {{schema}}.head
    union all
    select case when old then middle else low end, case when old then high else middle end
    from (
        select low, high, middle,
            coalesce((select recorded_at <= %b from {{schema}}.events where position = middle), true) as old
        from (select low, high, (low + high) / 2 as middle from bisection where high - low > 1) halved
    ) compared
)
select max(low), {_ARCHIVED_TO} from bisection
"""


@dataclass(frozen=True, slots=True)
class Statements:
    """Every statement of a log. Those with `%b` are psycopg's to send, in binary; those with `$1` are prepared."""

    lock_schema: bytes
    create: bytes
    lock_head: bytes
    ends: bytes
    known: bytes
    known_archived: bytes
    archived_in: bytes
    store: bytes
    store_few: tuple[bytes, ...]
    """For a group of one event, of two, up to FEW; of a log of which nothing was archived."""
    side_table: SideTable | None
    store_beside: bytes
    """As `store`, with rows of the side table."""
    store_few_beside: tuple[bytes, ...]
    """As `store_few`, with one row of it."""
    listen: bytes
    announce: bytes
    head: bytes
    head_and_hash: bytes
    hash_at: bytes
    position_at: bytes
    read: bytes
    read_stream: bytes
    save_snapshot: bytes
    load_snapshot: bytes

    @property
    def storing_beside(self) -> tuple[bytes, ...]:
        """All that store rows of the side table."""
        return (self.store_beside, *self.store_few_beside)

    def filtered(self, where: Filter, last: int | None = None) -> tuple[bytes, list[object]]:
        """The reading statement narrowed by a filter, and the parameters that stand between position and limit.

        Nothing beyond the position `last` is looked at.
        """
        if where is EVERYTHING:
            return self.read, []
        bounded = [(b" and position <= %b", last), *_conditions(where)]
        conditions = [(column, value) for column, value in bounded if value is not None]
        clause = b"".join(column for column, _ in conditions)
        return self.read.replace(_ORDER, clause + _ORDER), [value for _, value in conditions]


def statements(schema: str, side_table: SideTable | None = None) -> Statements:
    channel = f"{schema}_appended"

    def render(text: str) -> bytes:
        template = SQL(text)
        return template.format(
            schema=Identifier(schema),
            channel=Identifier(channel),
            channel_name=Literal(channel),
            segments_name=Literal(Identifier(schema, "archived_segments").as_string(None)),
            events_name=Literal(Identifier(schema, "events").as_string(None)),
            archived_streams_name=Literal(Identifier(schema, "archived_streams").as_string(None)),
            head_name=Literal(Identifier(schema, "head").as_string(None)),
            hashes_name=Literal(Identifier(schema, "hashes").as_string(None)),
            subjects_name=Literal(Identifier(schema, "subjects").as_string(None)),
            unhashed_name=Literal(Identifier(schema, "archived_streams_unhashed").as_string(None)),
            found_by_name=Literal(Identifier(schema, "events_found_by").as_string(None)),
        ).as_bytes(None)

    return Statements(
        lock_schema=b"select pg_advisory_xact_lock(hashtextextended(%s, 0))",
        create=render(_TABLES.replace("{genesis}", "00" * 32)),
        lock_head=render("select position, hash, archived_to, recorded_at from {schema}.head for update"),
        ends=render(
            "select s.stream, coalesce(e.version, a.version, 0), coalesce(e.hash, a.hash)"
            " from unnest($1::text[]) s(stream) left join lateral"
            " (select version, hash from {schema}.events where stream = s.stream order by version desc limit 1) e on true"
            " left join lateral (select version, hash from {schema}.archived_streams"
            " where stream = s.stream and e.version is null order by segment desc limit 1) a on true"
        ),
        known=render(
            "select id, position, stream, version, type, type_version, data"
            " from {schema}.events where id = any($1::uuid[])"
        ),
        known_archived=render("select id, position from {schema}.archived_events where id = any($1::uuid[])"),
        archived_in=render(
            "select segment from {schema}.archived_streams where stream = %b and version > %b order by segment"
        ),
        store=render(_store_text()),
        store_few=tuple(render(_store_few_text(number)) for number in range(1, FEW + 1)),
        side_table=side_table,
        store_beside=render(_store_text(side_table)) if side_table else b"",
        store_few_beside=tuple(render(_store_few_text(number, side_table)) for number in range(1, FEW + 1))
        if side_table
        else (),
        listen=render("listen {channel}"),
        announce=render("select pg_notify({channel_name}, $1)"),
        head=render("select position from {schema}.head"),
        head_and_hash=render("select position, hash from {schema}.head"),
        position_at=render(_POSITION_AT),
        hash_at=render("select hash from {schema}.hashes where position = %b"),
        read=render(_READ),
        read_stream=render(_READ_STREAM),
        save_snapshot=render(
            "insert into {schema}.snapshots as kept (stream, fold, version, data) values (%b, %b, %b, %b)"
            " on conflict (stream, fold) do update set version = excluded.version, data = excluded.data"
            " where kept.version <= excluded.version"
        ),
        load_snapshot=render("select version, data from {schema}.snapshots where stream = %b and fold = %b"),
    )


def storing(
    sql: Statements, before: Head, events: Sequence[StoredEvent], beside: Sequence[SideRow] = ()
) -> tuple[bytes, list[bytes | None]]:
    """The statement, and its parameters, that stores events which follow each other and the head `before`, and the rows
    `beside` them.
    """
    last = events[-1]
    moved = [from_int(last.position), last.hash, from_time(last.recorded_at)]
    expected = [from_int(before.position), before.hash, from_int(before.archived_to)]
    if len(events) <= FEW and len(beside) <= 1 and not before.archived_to:
        few = sql.store_few_beside if beside else sql.store_few
        values = [value for row in (*map(_row, events), *beside) for value in row]
        return few[len(events) - 1], [*moved, *expected, *values]
    if not beside:
        return sql.store, [*moved, *expected, *_arrays(events)]
    assert sql.side_table is not None
    return sql.store_beside, [*moved, *expected, *_arrays(events), *sql.side_table.arrays(beside)]


def _arrays(events: Sequence[StoredEvent]) -> list[bytes]:
    rows = list(map(_sized_row, events))
    begun = [row[0] for row, event in zip(rows, events, strict=True) if event.version == 1]
    return [column(TEXTS, begun), *columns(_BEGUN, list(zip(*rows, strict=True)))]


def stored_events(columns: Sequence[Any]) -> list[StoredEvent]:
    """The arrays that a reading statement gives: one for each column of StoredEvent, in order; None for no event at all."""
    if columns[0] is None:
        return []
    positions, streams, *rest = columns
    return list(map(_new_event, zip(positions, map(parse_stream, streams), *rest, strict=True)))


_STORED: Final = (
    ("stream", "text", TEXTS),
    ("version", "bigint", BIGINTS),
    ("id", "uuid", UUIDS),
    ("type", "text", TEXTS),
    ("type_version", "bigint", BIGINTS),
    ("tenant", "text", TEXTS),
    ("data_subject", "text", TEXTS),
    ("occurred_at", "timestamptz", TIMES),
    ("causation", "uuid", UUIDS),
    ("correlation", "text", TEXTS),
    ("actor", "text", TEXTS),
    ("traceparent", "text", TEXTS),
    ("data", "bytea", BYTEAS),
    ("previous_hash", "bytea", BYTEAS),
    ("hash", "bytea", BYTEAS),
    ("stream_previous_hash", "bytea", BYTEAS),
)
"""The columns that are sent as arrays: their names and types, and how the arrays begin."""
_BEGUN: Final = tuple(begun for _, _, begun in _STORED)
FEW: Final = 4
"""Up to so many events are sent value by value: to open sixteen arrays costs the server as much as to store an event."""
_STORED_AT: Final = 8
"""The number of their first parameter."""
_VALUES_AT: Final = 7
"""The number of the first where they are sent value by value."""
_ID_PARAMETER: Final = _STORED_AT + [name for name, _, _ in _STORED].index("id")

_FIXED: Final = struct.Struct("!iqiqiq").pack
_LENGTH_16: Final = (16).to_bytes(4, "big")
_LENGTH_32: Final = (32).to_bytes(4, "big")


def _row(event: StoredEvent) -> tuple[bytes | None, ...]:
    """The values of _STORED."""
    causation = event.causation
    return (
        stream_bytes(event.stream),
        from_int(event.version),
        event.id.bytes,
        name_bytes(event.type),
        from_int(event.type_version),
        name_bytes(event.tenant),
        None if event.data_subject is None else event.data_subject.encode(),
        from_time(event.occurred_at),
        None if causation is None else causation.bytes,
        event.correlation.encode(),
        name_bytes(event.actor),
        event.traceparent.encode(),
        event.data,
        event.previous_hash,
        event.hash,
        event.stream_previous_hash,
    )


def _sized_row(event: StoredEvent) -> tuple[bytes, ...]:
    """The values of _STORED, each with its length before it. In one go, for an append spends much of its time here."""
    stream, data = stream_bytes(event.stream), event.data
    numbers = _FIXED(8, event.version, 8, event.type_version, 8, microseconds(event.occurred_at))
    causation, stream_previous = event.causation, event.stream_previous_hash
    return (
        length_of(len(stream)) + stream,
        numbers[:12],
        _LENGTH_16 + event.id.int.to_bytes(16, "big"),
        sized_text(event.type),
        numbers[12:24],
        sized_text(event.tenant),
        NULL if event.data_subject is None else sized_text(event.data_subject),
        numbers[24:],
        NULL if causation is None else _LENGTH_16 + causation.int.to_bytes(16, "big"),
        sized_text(event.correlation),
        sized_text(event.actor),
        sized_text(event.traceparent),
        length_of(len(data)) + data,
        _LENGTH_32 + event.previous_hash,  # SHA-256, all three
        _LENGTH_32 + event.hash,
        NULL if stream_previous is None else _LENGTH_32 + stream_previous,
    )


def _store_text(side_table: SideTable | None = None) -> str:
    """Of the streams and ids that are there already, those in the archive are looked for here."""
    parameters = count(_STORED_AT)
    arrays = ", ".join(f"${next(parameters)}::{kind}[]" for _, kind, _ in _STORED)
    unless_archived = (
        f" and not exists (select from {{schema}}.archived_events where id = any(${_ID_PARAMETER}::uuid[]))"
        " and not exists (select from {schema}.archived_streams where stream = any($7::text[]))"
    )
    beside = side_table.storing_all("moved", parameters) if side_table else ""
    return _storing_text(f"unnest({arrays}) with ordinality", unless_archived, beside)


def _store_few_text(number: int, side_table: SideTable | None = None) -> str:
    """For so many events, and a row beside them. Where nothing was archived no id or stream can be in the archive."""
    parameters = count(_VALUES_AT)
    values = ", ".join(
        f"({', '.join(f'${next(parameters)}::{kind}' for _, kind, _ in _STORED)}, {position})"
        for position in range(1, number + 1)
    )
    return _storing_text(f"(values {values})", beside=side_table.storing_one("moved", parameters) if side_table else "")


def _storing_text(events: str, condition: str = "", beside: str = "") -> str:
    """Moves the head, if it is where it is believed to be, and stores the events; stores nothing if it is not.

    The indexes of `events` refuse a stream or an id that is there already; of those in the archive the head's condition
    does. The events are joined to the head's row, so that their indexes are touched only once its lock is held. `beside` is a
    further statement, which stores nothing either unless a row was `moved`.
    """
    names = ", ".join(name for name, _, _ in _STORED)
    return (
        "with moved as (update {schema}.head set position = $1, hash = $2, recorded_at = $3"
        f" where position = $4 and hash = $5 and archived_to = $6{condition} returning position)"
        f"{f', beside as ({beside})' if beside else ''}"
        f" insert into {{schema}}.events (position, recorded_at, {names})"
        f" select $4::bigint + number, $3::timestamptz, {names}"
        f" from moved cross join {events} as e({names}, number)"
    )


def _conditions(where: Filter) -> list[tuple[bytes, object]]:
    return [
        (b" and type = any(%b::text[])", None if where.types is None else sorted(where.types)),
        (b" and tenant = %b", where.tenant),
        (b" and starts_with(stream, %b)", None if where.aggregate is None else f"{where.aggregate}/"),
        (b" and correlation = %b", where.correlation),
        (b" and stream = %b", None if where.stream is None else str(where.stream)),
        (b" and recorded_at >= %b", where.since),
        (b" and recorded_at < %b", where.until),
    ]
