"""Events outlive the code that wrote them: old versions are read by new releases, and new events pass through old ones."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import nats
import pytest
from eventlog.aggregates import Aggregates
from eventlog.clock import SystemClock
from eventlog.codec import Codec, UnknownEvent
from eventlog.errors import UnknownEventType
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import NewEvent, StoredEvent, StreamId
from eventlog.relay import Relay
from eventlog.sources import LogSource, StreamSource
from eventlog.testing import CONTEXT, NOON, an_append
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.common.ids import uuid7

GOLDEN = Path(__file__).parent / "golden"


class Renamed(Event):
    """Called Delivery in Python now; what is stored knows nothing of it."""

    AGGREGATE = "parcel"
    VERSION: ClassVar[int] = 2
    street: str
    city: str

    @classmethod
    def type_name(cls) -> str:
        return "ParcelSent"


def split_address(fields: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had one line of address."""
    street, _, city = fields.pop("address").partition(", ")
    return {**fields, "street": street, "city": city}


NEW_RELEASE = Codec([Renamed], {("ParcelSent", 1): split_address})
OLD_RELEASE: Codec[Event] = Codec([])


def golden(version: int) -> NewEvent:
    return NewEvent("ParcelSent", version, (GOLDEN / f"ParcelSent.v{version}.json").read_bytes(), uuid7(), NOON)


class Parcels:
    """Counts what the old release knows; what it does not know it leaves alone."""

    name = "parcels"
    version = 1
    types = None
    tables = "create table parcels (type text primary key, known boolean not null)"

    async def apply(self, connection: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            known = not isinstance(OLD_RELEASE.decode(event), UnknownEvent)
            await connection.execute("insert into parcels values (%s, %s)", [event.type, known])


@pytest.mark.parametrize("version", [1, 2])
async def test_every_version_ever_published_folds_into_the_same_state(postgres_dsn: str, version: int) -> None:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        await log.append(an_append(StreamId("parcel", "p1"), golden(version)))
        parcels = Aggregates(log, "parcel", str, lambda _, sent: sent.city, NEW_RELEASE, SystemClock())
        assert (await parcels.load("p1")).state == "Bern"
        (stored,) = await log.read()
        assert (stored.type_version, stored.data) == (version, golden(version).data)


def test_what_is_written_today_is_the_golden_file_of_today() -> None:
    event = NEW_RELEASE.encode(Renamed(street="Gasse 1", city="Bern"), at=NOON)
    assert (event.type, event.type_version) == ("ParcelSent", 2)
    assert json.loads(event.data) == json.loads(golden(2).data)


def test_the_type_is_a_name_of_its_own_not_a_path_in_python() -> None:
    assert NEW_RELEASE.types == {"ParcelSent"}
    encoded = NEW_RELEASE.encode(Renamed(street="Gasse 1", city="Bern"), at=NOON)
    assert "Renamed" not in encoded.type and __name__ not in encoded.type


async def test_an_event_from_the_future_passes_through_log_stream_and_view_unharmed(
    postgres_dsn: str, nats_url: str
) -> None:
    future = NewEvent("ParcelTeleported", 7, b'{"to": "Mars", "via": [1, null]}', uuid7(), NOON)
    service, client = f"parcels-{uuid7().hex}", await nats.connect(nats_url)
    async with (
        await PostgresEventLog.open(postgres_dsn) as log,
        AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool,
    ):
        await log.append(an_append(StreamId("parcel", "p1"), future))
        (stored,) = await log.read()
        assert OLD_RELEASE.decode(stored) == UnknownEvent("ParcelTeleported", 7, future.data)
        assert (await log.next_page(0)).events == [stored]

        relay = Relay(log, client, service)
        relaying = asyncio.create_task(relay.run())
        await relay.wait_for(1, timeout_s=30)
        page = await StreamSource(client, service).reader(None).read(0, 10)
        assert list(page.events) == [stored]

        projector = Projector(pool, Parcels(), LogSource(log))
        assert await projector.catch_up() == 1
        assert await projector.parked() == []
        relaying.cancel()
        await asyncio.wait([relaying])
    await client.close()


async def test_a_future_version_of_a_known_type_is_refused_rather_than_misread(postgres_dsn: str) -> None:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        future = NewEvent("ParcelSent", 3, b'{"place": "Bern"}', uuid7(), NOON)
        await log.append(an_append(StreamId("parcel", "p1"), future, context=CONTEXT))
        parcels = Aggregates(log, "parcel", str, lambda _, sent: sent.city, NEW_RELEASE, SystemClock())
        with pytest.raises(UnknownEventType, match="knows up to version 2"):
            await parcels.load("p1")
        assert (await log.read())[0].data == future.data
