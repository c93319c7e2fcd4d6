"""Events out of bytes: once for all views, and not at all for what this process has just made."""

from datetime import UTC, datetime

import pytest
from cost_ledger.decoding import Decoder
from eventlog.codec import Codec
from eventlog.errors import UnknownEventType
from eventlog.records import NewEvent, StoredEvent, StreamId
from synod.cost_ledger.events import EVENTS, ReservationRenewed

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CODEC = Codec(EVENTS)


def renewed(reservation_id: str) -> ReservationRenewed:
    return ReservationRenewed(reservation_id=reservation_id, expires_at=NOON)


def encoded(reservation_id: str) -> NewEvent:
    return CODEC.encode(renewed(reservation_id), at=NOON)


def stored(new: NewEvent, position: int = 1) -> StoredEvent:
    stream, hash_ = StreamId("book", "acme"), bytes(32)
    what = (new.id, new.type, new.type_version, "acme", None, NOON, NOON, None, "", "usr_1", "", new.data)
    return StoredEvent(position, stream, position, *what, None, hash_, hash_)


def test_all_who_fold_an_event_get_the_same_one() -> None:
    decoded, event = Decoder(CODEC), stored(encoded("r1"))
    assert decoded(event) == renewed("r1")
    assert decoded(event) is decoded(event._replace())


def test_what_was_encoded_a_moment_ago_is_not_decoded() -> None:
    decoded, made, new = Decoder(CODEC), renewed("r1"), encoded("r1")
    decoded.learn(new, made)
    assert decoded(stored(new)) is made


def test_an_event_is_known_by_its_content_not_by_its_place() -> None:
    decoded = Decoder(CODEC)
    assert decoded(stored(encoded("r1"))) == renewed("r1")
    assert decoded(stored(encoded("r2"))) == renewed("r2")
    assert decoded(stored(encoded("r1"), position=9)) is decoded(stored(encoded("r1")))


def test_the_oldest_are_forgotten_first() -> None:
    decoded = Decoder(CODEC, remembered_max=2)
    first, second = decoded(stored(encoded("r1"))), decoded(stored(encoded("r2")))
    decoded(stored(encoded("r3")))
    assert decoded(stored(encoded("r2"))) is second
    assert decoded(stored(encoded("r1"))) is not first


def test_an_event_of_a_later_release_is_not_taken_for_nothing() -> None:
    with pytest.raises(UnknownEventType, match="deploy the release that wrote it"):
        Decoder(CODEC)(stored(encoded("r1"))._replace(type="BudgetMoved"))
