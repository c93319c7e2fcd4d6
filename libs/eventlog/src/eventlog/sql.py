"""Tables and statements of a log, rendered once for its schema.

`head` is one row: the lock that serialises writers of all processes, and the end of the chain. Positions are handed
out under that lock, so they are contiguous and become visible in order: a reader that follows positions misses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from psycopg.sql import SQL, Identifier, Literal

from eventlog.admission import Head
from eventlog.arrays import Packed, bigints, byteas, names, streams, texts, times, uuids
from eventlog.records import EVERYTHING, Filter, StoredEvent, parse_stream

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
    """Every statement of a log; `%b` parameters are sent in binary."""

    lock_schema: bytes
    create: bytes
    lock_head: bytes
    ends: bytes
    known: bytes
    known_archived: bytes
    archived_in: bytes
    store: bytes
    listen: bytes
    head: bytes
    head_and_hash: bytes
    hash_at: bytes
    position_at: bytes
    read: bytes
    read_stream: bytes
    save_snapshot: bytes
    load_snapshot: bytes

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


def statements(schema: str) -> Statements:
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
            " from unnest(%b::text[]) s(stream) left join lateral"
            " (select version, hash from {schema}.events where stream = s.stream order by version desc limit 1) e on true"
            " left join lateral (select version, hash from {schema}.archived_streams"
            " where stream = s.stream and e.version is null order by segment desc limit 1) a on true"
        ),
        known=render(
            "select id, position, stream, version, type, type_version, data"
            " from {schema}.events where id = any(%b::uuid[])"
        ),
        known_archived=render("select id, position from {schema}.archived_events where id = any(%b::uuid[])"),
        archived_in=render(
            "select segment from {schema}.archived_streams where stream = %b and version > %b order by segment"
        ),
        store=render(_store_text()),
        listen=render("listen {channel}"),
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


def store_parameters(before: Head, events: Sequence[StoredEvent]) -> list[object]:
    """The parameters of `Statements.store` for events that follow each other and the head `before`."""
    columns = list(zip(*events, strict=True))
    packed: list[Packed] = [pack(columns[index]) for index, (_, _, pack) in _STORED]
    last = events[-1]
    begun = streams(event.stream for event in events if event.version == 1)
    ids = packed[_STORED_ID]
    expected = [before.position, before.hash, before.archived_to]
    moved = [last.position, last.hash, last.recorded_at]
    return [*moved, *expected, ids, begun, before.position, last.recorded_at, *packed]


def stored_events(columns: Sequence[Any]) -> list[StoredEvent]:
    """The arrays that a reading statement gives: one for each column of StoredEvent, in order; None for no event at all."""
    if columns[0] is None:
        return []
    positions, streams, *rest = columns
    return list(map(_new_event, zip(positions, map(parse_stream, streams), *rest, strict=True)))


_STORED: tuple[tuple[int, tuple[str, str, Callable[[Any], Packed]]], ...] = tuple(
    (StoredEvent._fields.index(column[0]), column)
    for column in (
        ("stream", "text", streams),
        ("version", "bigint", bigints),
        ("id", "uuid", uuids),
        ("type", "text", names),
        ("type_version", "bigint", bigints),
        ("tenant", "text", names),
        ("data_subject", "text", texts),
        ("occurred_at", "timestamptz", times),
        ("causation", "uuid", uuids),
        ("correlation", "text", texts),
        ("actor", "text", names),
        ("traceparent", "text", texts),
        ("data", "bytea", byteas),
        ("previous_hash", "bytea", byteas),
        ("hash", "bytea", byteas),
        ("stream_previous_hash", "bytea", byteas),
    )
)


_STORED_ID = [name for _, (name, _, _) in _STORED].index("id")


def _store_text() -> str:
    """Moves the head, if it is where it is believed to be, and stores the events; stores nothing if it is not.

    The indexes of `events` refuse a stream or an id that is there already; of those in the archive the head's condition
    does. The events are joined to the head's row, so that their indexes are touched only once its lock is held.
    """
    columns = ", ".join(name for _, (name, _, _) in _STORED)
    arrays = ", ".join(f"%b::{kind}[]" for _, (_, kind, _) in _STORED)
    return (
        "with moved as (update {schema}.head set position = %b, hash = %b, recorded_at = %b"
        " where position = %b and hash = %b and archived_to = %b"
        " and not exists (select from {schema}.archived_events where id = any(%b::uuid[]))"
        " and not exists (select from {schema}.archived_streams where stream = any(%b::text[]))"
        " returning pg_notify({channel_name}, position::text))"
        f" insert into {{schema}}.events (position, recorded_at, {columns})"
        f" select %b::bigint + number, %b::timestamptz, {columns}"
        f" from moved cross join unnest({arrays}) with ordinality as e({columns}, number)"
    )


def _conditions(where: Filter) -> list[tuple[bytes, object]]:
    return [
        (b" and type = any(%b)", None if where.types is None else texts(sorted(where.types))),
        (b" and tenant = %b", where.tenant),
        (b" and starts_with(stream, %b)", None if where.aggregate is None else f"{where.aggregate}/"),
        (b" and correlation = %b", where.correlation),
        (b" and stream = %b", None if where.stream is None else str(where.stream)),
        (b" and recorded_at >= %b", where.since),
        (b" and recorded_at < %b", where.until),
    ]
