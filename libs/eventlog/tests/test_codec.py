"""Event classes become bytes and come back in their newest form."""

from typing import ClassVar
from uuid import UUID

import pytest
from eventlog.codec import Codec, UnknownEvent
from eventlog.errors import UnknownEventType
from eventlog.memory import MemoryEventLog
from eventlog.records import NewEvent, StoredEvent
from eventlog.testing import NOON, a_stream, an_append, an_event
from synod.common.event import Event
from synod.common.ids import uuid7


class Paid(Event):
    AGGREGATE = "order"
    VERSION: ClassVar[int] = 3
    amount_cents: int
    currency: str


class Shipped(Event):
    AGGREGATE = "order"


def cents(fields: dict) -> dict:
    return {"amount_cents": fields["amount"] * 100}


def euro(fields: dict) -> dict:
    return {**fields, "currency": "EUR"}


CODEC: Codec[Paid | Shipped] = Codec([Paid, Shipped], {("Paid", 1): cents, ("Paid", 2): euro})


async def stored(event: NewEvent) -> StoredEvent:
    log = MemoryEventLog()
    await log.append(an_append(a_stream(), event))
    (only,) = await log.read()
    return only


async def test_an_event_comes_back_as_it_was_encoded() -> None:
    paid = Paid(amount_cents=5, currency="USD")
    encoded = CODEC.encode(paid, at=NOON, data_subject="user-1")
    assert (encoded.type, encoded.type_version, encoded.data_subject) == ("Paid", 3, "user-1")
    assert encoded.data == b'{"amount_cents":5,"currency":"USD"}'
    assert CODEC.decode(await stored(encoded)) == paid


def test_an_id_may_be_given_and_is_new_otherwise() -> None:
    given = uuid7()
    assert CODEC.encode(Shipped(), id=given, at=NOON).id == given
    made: set[UUID] = {CODEC.encode(Shipped(), at=NOON).id for _ in range(10)}
    assert len(made) == 10


async def test_an_old_version_is_lifted_one_version_at_a_time() -> None:
    old = NewEvent("Paid", 1, b'{"amount":7}', uuid7(), NOON)
    assert CODEC.decode(await stored(old)) == Paid(amount_cents=700, currency="EUR")


async def test_a_version_newer_than_the_class_is_refused() -> None:
    newer = NewEvent("Shipped", 2, b"{}", uuid7(), NOON)
    with pytest.raises(UnknownEventType, match="knows up to version 1"):
        CODEC.decode(await stored(newer))


async def test_a_missing_upcaster_is_named() -> None:
    codec: Codec[Paid] = Codec([Paid], {("Paid", 1): cents})
    old = NewEvent("Paid", 1, b'{"amount":7}', uuid7(), NOON)
    with pytest.raises(UnknownEventType, match="no upcaster leads to version 3"):
        codec.decode(await stored(old))


async def test_an_unknown_type_is_handed_over_as_it_is() -> None:
    assert CODEC.decode(await stored(an_event("Foreign", b"[1]"))) == UnknownEvent("Foreign", 1, b"[1]")


def test_a_class_outside_the_codec_is_not_encoded() -> None:
    with pytest.raises(UnknownEventType, match="is not of this codec"):
        Codec([Shipped]).encode(Paid(amount_cents=1, currency="EUR"), at=NOON)  # type: ignore[type-var]
