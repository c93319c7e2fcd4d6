"""The view of every round."""

from collections.abc import Sequence
from typing import Any

from eventlog.records import StoredEvent

from .history import POISON


class Tallies:
    """How many events each stream has. Chokes on poison."""

    name = "tallies"
    version = 1
    types = None
    tables = "create table tallies (stream text primary key, events bigint not null)"

    async def apply(self, connection: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            if event.type == POISON:
                raise ValueError("poison")
        streams = [event.stream.id for event in events]
        await connection.execute(
            "insert into tallies as t select stream, count(*) from unnest(%s::text[]) stream group by stream"
            " on conflict (stream) do update set events = t.events + excluded.events",
            [streams],
        )


VIEW: type[Tallies] = Tallies
"""The view that projectors keep."""
